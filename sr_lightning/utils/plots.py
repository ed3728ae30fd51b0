"""Pictures of plots in one style. Matplotlib is imported when something is drawn, and needs no screen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_lightning.utils.atomic_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
}


@contextmanager
def picture(
    path: Path, lines: int, columns: int, size: tuple[float, float], **how: Any
) -> Iterator[tuple["Figure", list[list["Axes"]]]]:
    """Open a figure of lines x columns panels, each `size` inches, and write it to `path` at the end of the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(columns * size[0], lines * size[1]), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, **how)
        yield figure, panels.tolist()
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
