"""The leaderboard's rows, and their Markdown, CSV and JSON."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_lightning.evaluation.score_table import NOT_SCORES, score_digits
from sr_lightning.leaderboard.published import published_score
from sr_lightning.leaderboard.runs import mean_and_deviation
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.markdown import markdown_table

Row = dict[str, Any]
# Columns that a narrow terminal does without, in the order in which they are left out
DISPENSABLE = (
    "compared with",
    "published",
    "multiply-adds",
    "ms",
    "distance",
    "seeds",
    "data",
    "minutes",
    "SSIM",
    "parameters",
)


def make_row(
    who: Mapping[str, Any],
    means: Sequence[Row],
    bicubic: Row,
    config: Mapping[str, Any] | None,
    costs: Mapping[str, Any],
    seconds: Sequence[float | None] = (),
) -> Row:
    """Make one row of the leaderboard.

    Args:
        who: benchmark, scale, model and data.
        means: Average over the images, one per run.
        bicubic: Average of the baseline.
        config: Config of a run, to find its published score; None: no comparison.
        costs: parameters, multiply_adds, milliseconds.
        seconds: Training time, one per run.

    Returns:
        `who`; the mean over runs of each score and, with several runs, its deviation (psnr_y, psnr_y_deviation,
        ...); gain, over bicubic; published, distance, compared_with and differs; `costs`; seconds; seeds; protocol.
    """
    row = dict(who)
    for key in means[0]:
        if key not in NOT_SCORES:
            row[key], row[f"{key}_deviation"] = mean_and_deviation([mean[key] for mean in means])
    psnr = psnr_key(row)
    row["gain"] = row[psnr] - bicubic[psnr]
    protocol = means[0]["protocol"]
    match = config and published_score(config, who["scale"], who["benchmark"], protocol)
    row["published"] = match.psnr if match else None
    row["distance"] = row[psnr] - match.psnr if match else None
    row["compared_with"] = match.system if match else ""
    row["differs"] = "; ".join(match.differs) if match else ""
    known = [value for value in seconds if value is not None]
    row |= costs | {"seconds": mean_and_deviation(known)[0] if known else None}
    return row | {"seeds": len(seconds) or None, "protocol": protocol}


def psnr_key(row: Mapping[str, Any]) -> str:
    """Return psnr_y or psnr_rgb, whichever the row has."""
    return next(key for key in row if key.startswith("psnr") and not key.endswith("_deviation"))


def score_keys(row: Mapping[str, Any]) -> list[str]:
    """List the scores of a row, PSNR first."""
    return [key for key in row if f"{key}_deviation" in row]


def markdown(rows: Sequence[Row], left_out: Sequence[Row], notes: Sequence[str], width: int | None = None) -> str:
    """Format the table, its notes, and the runs that are not in it.

    Args:
        rows: Results of `make_row`.
        left_out: run, status and reason.
        notes: Lines below the table.
        width: Characters of a line, for which columns are left out; None: all columns.
    """
    scores = score_keys(rows[0])
    titles = [key.split("_")[0].upper() if key.startswith(("psnr", "ssim")) else key for key in scores]
    head = ["rank", "benchmark", "scale", "model", "data", *titles, "gain", "published", "distance", "compared with"]
    head += ["parameters", "multiply-adds", "ms", "minutes", "seeds"]
    lines = [head, *(_cells(row, scores) for row in rows)]
    if width is not None and (dropped := _narrow(lines, width)):
        notes = [*notes, f"not shown: {', '.join(dropped)}; all columns are in leaderboard.md and leaderboard.csv"]
    parts = [_table(lines), _wrapped(notes, width)]
    if starred := remarks(rows):
        parts.append(_wrapped([f"* {line}" for line in starred], width))
    if left_out:
        lines = [["not in the table", "status", "reason"], *([r["run"], r["status"], r["reason"]] for r in left_out)]
        parts.append(_table(lines))
    return "\n\n".join(parts) + "\n"


def _wrapped(lines: Sequence[str], width: int | None) -> str:
    """Join lines, wrapped to a width if there is one."""
    return "\n".join(line if width is None else textwrap.fill(line, width, subsequent_indent="  ") for line in lines)


def _narrow(lines: list[list[str]], width: int) -> list[str]:
    """Remove columns, the header in the first line, until the lines of their table fit; return the removed ones."""
    dropped = []
    for title in DISPENSABLE:
        if len(_table(lines).partition("\n")[0]) <= width:
            break
        if title in lines[0]:
            column = lines[0].index(title)
            for line in lines:
                del line[column]
            dropped.append(title)
    return dropped


def remarks(rows: Sequence[Row]) -> list[str]:
    """Explain the stars in a table."""
    lines = [f"{r['model']} differs from {r['compared_with']}: {r['differs']}" for r in rows if r["differs"]]
    return list(dict.fromkeys(lines))


def _table(lines: Sequence[Sequence[str]]) -> str:
    return markdown_table([[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines])


def _cells(row: Row, scores: Sequence[str]) -> list[str]:
    giga = row["multiply_adds"] / 1e9
    return [
        *(str(row["rank"] or ""), row["benchmark"], f"x{row['scale']}", row["model"], row["data"]),
        *(_with_deviation(row, key) for key in scores),
        "" if row["model"] == "bicubic" else _number(row["gain"], "+.2f"),
        *(_number(row["published"], ".2f"), _number(row["distance"], "+.2f")),
        row["compared_with"] + ("*" if row["differs"] else ""),
        *(f"{row['parameters']:,}", f"{giga:.{2 if giga < 1 else 1}f} G", _short(row["milliseconds"])),
        *(_number(row["seconds"], ".1f", 1 / 60), str(row["seeds"] or "")),
    ]


def _with_deviation(row: Row, key: str) -> str:
    digits = score_digits(key)
    deviation = row[f"{key}_deviation"]
    return f"{row[key]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _number(value: float | None, form: str, by: float = 1) -> str:
    return "" if value is None else format(value * by, form).replace("-0.00", "+0.00")


def _short(value: float | None) -> str:
    """Format with three significant digits, or all digits before the point."""
    if value is None:
        return ""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per row, in full precision; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, complete or not at all; infinite numbers and NaN become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def for_page(rows: Sequence[Row]) -> list[Row]:
    """Convert the rows for report.html: readable units, no empty columns."""
    shown = []
    for row in rows:
        line = {"model": row["model"], "set": f"{row['benchmark']} ×{row['scale']}", "data": row["data"]}
        for score in score_keys(row):
            line |= {score: row[score], f"{score.split('_')[0]}_±": row[f"{score}_deviation"]}
        line |= {"gain": None if row["model"] == "bicubic" else row["gain"], "psnr_published": row["published"]}
        line |= {"psnr_distance": row["distance"]}
        line |= {"compared_with": row["compared_with"] + ("*" if row["differs"] else "")}
        line |= {"parameters": row["parameters"], "multiply-adds, G": row["multiply_adds"] / 1e9}
        line |= {"ms": row["milliseconds"], "minutes": None if row["seconds"] is None else row["seconds"] / 60}
        shown.append(line | {"seeds": row["seeds"]})
    return [{k: v for k, v in line.items() if any(other[k] not in (None, "") for other in shown)} for line in shown]
