"""Rows of scores: means, results.csv and the table in the terminal."""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.messages import counted

log = logging.getLogger(__name__)

NOT_SCORES = ("model", "scale", "dataset", "image", "protocol")  # columns of a row; all others are scores
_TWO_DECIMALS = ("psnr", "consistency", "fid")  # how the names of scores begin that are in dB, or large


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the rows of images that were scored under one protocol, except scores that images do not have, None.

    Raises:
        InputError: LR files were given for some images and not for others.
    """
    protocols = sorted({row["protocol"] for row in rows})
    if len(protocols) != 1:
        raise InputError(f"{rows[0]['dataset']} mixes protocols: {protocols}. Give LR for all of its images or none")
    scores = [key for key, value in rows[0].items() if key not in NOT_SCORES and value is not None]
    return rows[0] | {"image": "mean"} | {key: sum(row[key] for row in rows) / len(rows) for key in scores}


def score_digits(name: str) -> int:
    """Return the number of decimals with which a score is shown."""
    return 2 if name.startswith(_TWO_DECIMALS) else 4


def first_mean(rows: Sequence[dict[str, Any]], model: str) -> float:
    """Return the mean PSNR of a model on the first set it was scored on, in dB."""
    row = next(row for row in rows if row["image"] == "mean" and row["model"] == model)
    return next(value for key, value in row.items() if key.startswith("psnr"))


def report_scores(
    rows: Sequence[dict[str, Any]], pictures: Sequence[Path], run_dir: Path, images_of: str | None = None
) -> None:
    """Write results.csv; log the table and the paths of the files.

    Args:
        rows: Of `Scorer.score_sets`.
        pictures: Comparison pictures that were written.
        run_dir: Gets results.csv.
        images_of: The data set whose images get a line each.
    """
    write_results(RunFolder(run_dir).results, rows)
    log.info("protocol %s\n%s", ", ".join(sorted({row["protocol"] for row in rows})), score_table(rows, images_of))
    log.info("%s", RunFolder(run_dir).results)
    if pictures:
        log.info("%s in %s", counted(len(pictures), "picture"), pictures[0].parent)


def score_table(rows: Sequence[dict[str, Any]], images_of: str | None = None) -> str:
    """Format scores as a Markdown table, the lines of `score_lines`."""
    return markdown_table(score_lines(rows, images_of))


def score_lines(rows: Sequence[dict[str, Any]], images_of: str | None = None) -> list[list[str]]:
    """Return the cells of a table, the header first: a line per model and set, and per image of the set `images_of`.

    The gain is over bicubic on the same images.
    """
    metrics = [key for key in rows[0] if key not in NOT_SCORES]
    psnr = metrics[0]
    bicubic = {(r["dataset"], r["scale"], r["image"]): r[psnr] for r in rows if r["model"] == "bicubic"}
    lines = [["data set", "image", "scale", "model", *metrics, "gain"]]
    for row in rows:
        if row["image"] == "mean" or row["dataset"] == images_of:
            gain = row[psnr] - bicubic[row["dataset"], row["scale"], row["image"]]
            scores = ["" if row[m] is None else f"{row[m]:.{score_digits(m)}f}" for m in metrics]
            last = "" if row["model"] == "bicubic" else f"{gain:+.2f}"
            lines.append([row["dataset"], row["image"], f"x{row['scale']}", row["model"], *scores, last])
    return lines


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, completely or not at all."""
    write_text(path, csv_text(rows))


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as CSV, with the columns of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
