"""Show a sweep, from elsewhere while it runs or later: python -m sr_lightning.sweeps.status multirun/NAME."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sr_lightning.sweeps.cells import Cell, SweepState, read_sweep
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.messages import counted, printable

TITLES = ("cell", "status", "step", "PSNR", "gain", "steps/s", "left", "val/psnr")
BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"
CURVE, SHORTEST = 8, 16  # characters of a curve, and the fewest of a name that is cut
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def main(arguments: list[str] | None = None) -> int:
    """Print the state of a sweep, once or until it has ended; return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.sweeps.status", description="Show the cells of a sweep. Nothing is written."
    )
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as multirun/NAME")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=5.0,
        type=interval,
        metavar="SECONDS",
        help="show it again every SECONDS (5) until no cell runs or waits",
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: show(options.folder, options.watch))


def show(folder: Path, seconds: float | None) -> None:
    """Print the state of a sweep; again every so many seconds until no cell runs or waits."""
    while True:
        state = read_sweep(folder)
        print(f"{CLEAR if seconds and sys.stdout.isatty() else ''}{page(folder, state)}", flush=True)
        if seconds is None or not any(cell.status in ("running", "waiting") for cell in state.cells):
            return
        time.sleep(seconds)


def interval(text: str) -> float:
    """Parse the seconds between two pages."""
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0.1 to 86400")
    return seconds


def page(folder: Path, state: SweepState, size: os.terminal_size | None = None) -> str:
    """Format the state of a sweep: a table of its cells, its failures, and a line of sums.

    Args:
        folder: The sweep's folder.
        state: Its state.
        size: Columns and lines; None: those of the terminal, and 80 columns without one. On a terminal that is too low
            for all cells, those that run and those that failed come first, and the others are counted.
    """
    columns, lines = size or (
        shutil.get_terminal_size()[0],
        shutil.get_terminal_size()[1] if sys.stdout.isatty() else 0,
    )
    failed = [f"{cell.name}: {cell.error}" for cell in state.cells if cell.error]
    cells, hidden = state.cells, ""
    room = max(3, lines - 4 - len(failed))
    if lines and len(cells) > room:
        urgent = sorted(
            cells,
            key=lambda cell: ("running", "failed").index(cell.status) if cell.status in ("running", "failed") else 2,
        )
        cells, hidden = urgent[:room], f"... and {len(cells) - room} more cells"
    text = [*table(cells, columns), hidden, *failed, *sums(folder, state)]
    return "\n".join(cut(printable(line), columns) for line in text if line)


def table(cells: Sequence[Cell], columns: int) -> list[str]:
    """Format a line for each cell under titles. Columns without a value are left out, and names are cut to fit."""
    if not cells:
        return []
    blocks = BLOCKS if encodes(BLOCKS) else ASCII
    rows = [[*fields(cell), curve(cell, blocks)] for cell in cells]
    used = [i for i in range(len(TITLES)) if any(row[i] for row in rows)]
    widths = {i: max(len(TITLES[i]), *(len(row[i]) for row in rows)) for i in used}
    for i in (6, 5, 7):  # time left, speed, curve are left out, in this order, on a narrow terminal
        if sum(widths.values()) + len(widths) - 1 - widths[0] + SHORTEST > columns:
            widths.pop(i, None)
    widths[0] = max(SHORTEST, min(widths[0], columns - sum(widths.values()) - len(widths) + 1 + widths[0]))
    lines = [list(TITLES), *rows]
    return [
        " ".join(
            middle(line[i], width).ljust(width) if i in (0, 1, 7) else line[i].rjust(width)
            for i, width in widths.items()
        ).rstrip()
        for line in lines
    ]


def fields(cell: Cell) -> list[str]:
    """Format the columns of a cell but its curve; empty where nothing is known."""
    gain = None if cell.psnr is None or cell.bicubic is None else cell.psnr - cell.bicubic
    left = cell.seconds_left
    return [
        cell.name,
        cell.status,
        f"{cell.step}/{cell.max_steps or '?'}" if cell.step or cell.max_steps else "",
        "" if cell.psnr is None else f"{cell.psnr:.2f}",
        "" if gain is None else f"{gain:+.2f}",
        "" if cell.speed is None else f"{cell.speed:.{0 if cell.speed >= 100 else 1 if cell.speed >= 1 else 3}f}",
        "" if left is None else tqdm.format_interval(left),
    ]


def curve(cell: Cell, blocks: str) -> str:
    """Draw val/psnr from its lowest to its highest value over the whole training, as far as it has come."""
    if not cell.curve:
        return ""
    last, values = max(cell.max_steps or 0, cell.curve[-1][0]), [psnr for _, psnr in cell.curve]
    low, high = min(values), max(values)
    reached = max(1, round(CURVE * cell.curve[-1][0] / last))
    drawn = []
    for column in range(1, reached + 1):  # the latest value before the column's end
        until = [psnr for step, psnr in cell.curve if column == reached or step <= last * column / CURVE] or values[:1]
        drawn.append(blocks[round((until[-1] - low) / (high - low) * (len(blocks) - 1)) if high > low else 0])
    return "".join(drawn)


def sums(folder: Path, state: SweepState) -> list[str]:
    """Count the cells by status, and name the one of largest gain and the time left."""
    statuses = [cell.status for cell in state.cells] + ["not begun"] * state.not_begun
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "none has begun"
    left = "" if state.seconds_left is None else f", {tqdm.format_interval(state.seconds_left)} left"
    lines = [f"{folder}: {counted(len(statuses), 'cell')}: {counts}{left}"]
    gains = [
        (cell.psnr - cell.bicubic, cell) for cell in state.cells if cell.psnr is not None and cell.bicubic is not None
    ]
    if gains:
        gain, best = max(gains, key=lambda pair: pair[0])
        lines.append(f"best: {best.name}, {best.psnr:.2f} dB, {gain:+.2f} over bicubic")
    return lines


def encodes(text: str) -> bool:
    """Return True if standard output can show a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def middle(text: str, width: int) -> str:
    """Cut a text in its middle: the end of a cell's name tells it from others."""
    dots = "…" if encodes("…") else "~"
    return text if len(text) <= width else f"{text[: width - 9]}{dots}{text[-8:]}"


def cut(text: str, width: int) -> str:
    """Cut the end of a line."""
    return text if len(text) <= width else text[: width - 3] + "..."


if __name__ == "__main__":
    sys.exit(main())
