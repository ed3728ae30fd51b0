"""Plots of the leaderboard. Matplotlib is imported when something is drawn, and needs no screen."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_lightning.leaderboard.table import psnr_key
from sr_lightning.utils.plots import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which are distinct for all kinds of colour vision, without yellow: too light for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "os^DvPX*", ("-", "--", ":", "-.")
LEGEND_INSIDE = 6  # models; the legend of more is beside the panel
Curve = Sequence[tuple[int, float]]
Styles = dict[str, tuple[str, str, str]]  # model -> colour, marker, dashes


def styles(models: Iterable[str]) -> Styles:
    """Assign colour, marker and dashes to each model, the same in all plots."""
    names = list(dict.fromkeys(models))
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, name in enumerate(names)
    }


def plot_costs(path: Path, rows: Sequence[dict[str, Any]], cost: str, label: str, styles: Styles) -> None:
    """Plot PSNR against a cost, a panel per benchmark and scale; a line joins the networks that no cheaper one reaches.

    Args:
        path: The PNG file.
        rows: Rows of the leaderboard.
        cost: Key of the x axis; rows without a value are left out, and without any row no file is written.
        label: Label of the x axis.
        styles: Style of every model.
    """
    drawn = [row for row in rows if row["model"] != "bicubic" and row[cost]]
    if not drawn:
        return
    benchmarks, scales = ({row[key]: None for row in drawn} for key in ("benchmark", "scale"))
    low, high = min(row[cost] for row in drawn), max(row[cost] for row in drawn)
    room = max(1.5, (high / low) ** 0.2)  # for labels
    with picture(path, len(benchmarks), len(scales), (5.0, 3.4), sharex=True) as (figure, panels):
        for (i, benchmark), (j, scale) in itertools.product(enumerate(benchmarks), enumerate(scales)):
            axes = panels[i][j]
            here = [row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)]
            axes.set_xscale("log")
            axes.set_xlim(low / room, high * room)
            _draw_costs(axes, here, cost, styles)
            axes.set_title(f"{benchmark} ×{scale}", loc="left", fontweight="bold")
            axes.set(xlabel=label if i == len(benchmarks) - 1 else "", ylabel="" if j else "PSNR, dB")
        figure.draw_without_rendering()  # computes the layout
        figure.set_layout_engine("none")
        for axes in itertools.chain(*panels):
            _place_labels(axes)


def _draw_costs(axes: "Axes", rows: Sequence[dict[str, Any]], cost: str, styles: Styles) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.15)
    psnr = psnr_key(rows[0])
    for row in (row for row in rows if row["model"] == "bicubic"):
        axes.axhline(row[psnr], color="0.5", linestyle="--", linewidth=1, zorder=1)
        axes.text(0.01, row[psnr], "bicubic", color="0.4", va="bottom", transform=axes.get_yaxis_transform())
    points = sorted((row for row in rows if row["model"] != "bicubic" and row[cost]), key=lambda row: row[cost])
    front = [row for i, row in enumerate(points) if all(row[psnr] > other[psnr] for other in points[:i])]
    axes.plot([row[cost] for row in front], [row[psnr] for row in front], color="0.75", zorder=2)
    for row in points:
        colour, marker, _ = styles[row["model"]]
        deviation = row[f"{psnr}_deviation"] or 0
        axes.errorbar(row[cost], row[psnr], deviation, color=colour, marker=marker, markersize=6, capsize=3, zorder=3)
        at, line = (row[cost], row[psnr]), {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 4}
        label = axes.annotate(row["model"], at, (0, 0), textcoords="offset points", color=colour, arrowprops=line)
        label.set_in_layout(False)


def _thousands(value: float, _: int) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {letter}"
    return f"{value:g}"


def _place_labels(axes: "Axes") -> None:
    """Place each point's label beside the point, where it overlaps other labels and lines least."""
    from matplotlib.text import Annotation, Text
    from matplotlib.transforms import Bbox

    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    inside = axes.get_window_extent()
    points = [axes.transData.transform(label.xy) for label in labels]
    taken = [text.get_window_extent() for text in axes.texts if text not in labels]
    taken += [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for line in axes.lines:
        path = line.get_transform().transform_path(line.get_path()).interpolated(50)
        taken += [Bbox.from_extents(x - 1, y - 1, x + 1, y + 1) for x, y in path.vertices]
    for label in labels:
        best = None
        for distance in (5, 12, 22, 34):
            for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)):
                label.set(
                    position=(x * distance, y * distance),
                    ha="left" if x > 0 else "right" if x < 0 else "center",
                    va="bottom" if y > 0 else "top" if y < 0 else "center",
                )
                box = Text.get_window_extent(label)  # without its line
                hidden = sum(_overlap(box, other) for other in taken)
                hidden += box.width * box.height - _overlap(box, inside) + distance / 10
                if best is None or hidden < best[0]:
                    best = hidden, box, label.get_position(), label.get_ha(), label.get_va(), distance
        _, box, position, ha, va, distance = best
        label.set(position=position, ha=ha, va=va)
        label.arrow_patch.set_visible(distance > 12)
        taken.append(box)


def _overlap(a: Any, b: Any) -> float:
    """Area of the intersection of two boxes."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def plot_validation(path: Path, curves: Sequence[tuple[int, str, Sequence[Curve]]], styles: Styles) -> None:
    """Plot PSNR on the validation images over the steps: a panel per scale, a colour per model, a line per seed.

    Args:
        path: The PNG file; not written without a curve.
        curves: (scale, model, curves of its runs).
        styles: Style of every model.
    """
    scales = sorted({scale for scale, _, _ in curves})
    if not scales:
        return
    most = max(sum(one == scale for one, _, _ in curves) for scale in scales)
    size, columns = ((5.0, 3.6), 3) if most <= LEGEND_INSIDE else ((8.0, max(3.6, 0.2 * most)), 2)
    columns = min(columns, len(scales))
    with picture(path, -(-len(scales) // columns), columns, size) as (_, panels):
        every = list(itertools.chain(*panels))
        for axes, scale in itertools.zip_longest(every, scales):
            if scale is None:
                axes.set_visible(False)
                continue
            of_scale = [(model, runs) for s, model, runs in curves if s == scale]
            _draw_curves(axes, of_scale, styles)
            axes.set_title(f"×{scale}", loc="left", fontweight="bold")
            axes.set_xlabel("steps")
        for line in panels:
            line[0].set_ylabel("PSNR on the validation images, dB")


def _draw_curves(axes: "Axes", models: Sequence[tuple[str, Sequence[Curve]]], styles: Styles) -> None:
    from matplotlib.ticker import FuncFormatter

    last = {model: statistics.fmean(run[-1][1] for run in runs) for model, runs in models}
    for model, runs in sorted(models, key=lambda item: -last[item[0]]):
        colour, marker, dashes = styles[model]
        for i, run in enumerate(runs):
            few = len(run) < 12
            seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
            axes.plot(
                *zip(*run, strict=True),
                color=colour,
                linestyle=dashes,
                linewidth=1.3,
                marker=marker if few else None,
                markersize=3,
                label="_" if i else f"{model} {last[model]:.2f}{seeds}",
            )
    values = sorted(value for _, runs in models for run in runs for _, value in run)
    top, middle = values[-1], statistics.median(values)
    # All final values are shown; values far below are from the first steps and are cut off.
    low = min([max(values[0], middle - 2 * (top - middle)), *(run[-1][1] for _, runs in models for run in runs)])
    space = 0.05 * (top - low) or 0.1
    axes.set_ylim(low - space, top + space)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    if len(models) <= LEGEND_INSIDE:
        axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
