"""leaderboard.html: the table to sort and filter, validation curves, costs, and the report of each run, in one page."""

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sr_lightning.configs import command
from sr_lightning.evaluation.subjects import thinned
from sr_lightning.leaderboard.runs import Group
from sr_lightning.leaderboard.table import remarks
from sr_lightning.runs.folder import RunFolder
from sr_lightning.sweeps.cells import with_bicubic
from sr_lightning.sweeps.invocation import relative
from sr_lightning.sweeps.run import hydra_value
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.page import fill_page, plain_value, relative_url

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("leaderboard.html")
REPORT = "report"  # folder in a run's directory for the report that the page's command makes
# settings of the table that its page leaves out of the command for the report of one run
OF_TABLE = ("runs", "scale", "name", "report_images", "num_comparisons", "wandb", "hydra.run.dir")
FILES = ("leaderboard.csv", "leaderboard.json", "leaderboard.md", "results.csv", "report.html")


def write_page(
    folder: Path, content: Mapping[str, Any], groups: Sequence[Group], reasons: Mapping[Path, tuple[str, str]]
) -> None:
    """Write leaderboard.html beside the table.

    Args:
        folder: Of the table.
        content: Of leaderboard.json: rows, not_in_the_table, notes and command.
        groups: Runs, scored or not.
        reasons: Directory -> status and reason of the runs that are not in the table.
    """
    rows = [{key: plain_value(value) for key, value in row.items()} for row in content["rows"]]
    data = dict(content) | {
        "rows": rows,
        "runs": list(_runs(folder, groups, reasons)),
        "remarks": remarks(content["rows"]),
        "files": [name for name in FILES if (folder / name).is_file()],
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
    }
    benchmarks, scales = (dict.fromkeys(row[key] for row in rows) for key in ("benchmark", "scale"))
    title = f"Leaderboard: {', '.join(benchmarks)} at {', '.join(f'×{scale}' for scale in scales)}"
    write_text(folder / TEMPLATE.name, fill_page(TEMPLATE, title, data))
    log.info("%s: the table to sort and filter, curves and costs", folder / TEMPLATE.name)


def _runs(folder: Path, groups: Sequence[Group], reasons: Mapping[Path, tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Describe runs: row, state, curve of (step, seconds, PSNR), and the report or the command that makes it."""
    members = [(one, run) for one in groups for run in one.runs]
    cells = with_bicubic([run.cell for _, run in members])
    for (one, run), cell in zip(members, cells, strict=True):
        status, reason = reasons.get(run.directory, (run.status, ""))
        report = _report(run.directory)
        yield {
            "model": one.label,
            "name": one.name_of(run),
            "scale": run.config.scale,
            "seed": run.config.seed,
            "data": run.data,
            "directory": str(relative(run.directory)),
            "status": status,
            "reason": reason,
            "step": cell.step,
            "psnr": cell.psnr,
            "bicubic": cell.bicubic,
            "seconds": run.result.get("seconds") or (cell.times[-1] if cell.times else None),
            "curve": thinned([(step, t, psnr) for (step, psnr), t in zip(cell.curve, cell.times, strict=True)]),
            "report": report and relative_url(report, folder),
            "command": _command(run.directory) if run.is_scorable else None,
        }


def _report(directory: Path) -> Path | None:
    """Find the page of a run: made by the command of `_command`, or at the end of its training."""
    pages = RunFolder(directory / REPORT).report, RunFolder(directory).report
    return next((page for page in pages if page.is_file()), None)


def _command(directory: Path) -> str:
    """Return the command that scores one run with the settings of this process and writes its report."""
    settings = [word for word in sys.argv[1:] if "=" in word and word.lstrip("+").partition("=")[0] not in OF_TABLE]
    place = relative(directory)
    words = [f"ckpt={hydra_value(str(place))}", *settings, f"hydra.run.dir={hydra_value(str(place / REPORT))}"]
    return f"{command('evaluate.py')} {shlex.join(words)}"
