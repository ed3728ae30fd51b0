"""One line on the screen for each cell of a sweep that has ended; everything else of a cell is in its train.log."""

import shlex
import threading
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tqdm import tqdm

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.result import read_result
from sr_lightning.sweeps.invocation import FINAL_STATUSES, SweepInvocation, relative
from sr_lightning.utils.messages import counted, printable, show

TAIL = 8  # lines of its log that are printed of a failed cell


class CellLines:
    """Print a line when a cell ends, under every launcher: from the reports of the jobs, in the sweep's own process.

    Args:
        invocation: Whose cells are printed.
    """

    def __init__(self, invocation: SweepInvocation) -> None:
        self.invocation = invocation
        self.printed: dict[int, str] = {}  # a job's number -> its status when it was printed
        self.closing = ""  # printed after the summary of the sweep
        self.parallel = 1  # the most cells that were seen training at the same time
        self.lock = threading.Lock()

    def start(self, pause: float = 0.5) -> None:
        """Print how many cells there are and how to watch them, and from now on each cell, until this process exits."""

        def watch() -> None:
            while True:
                self.update()
                time.sleep(pause)

        sweep, cells = relative(self.invocation.sweep_dir), self.invocation.facts["cells"]
        unit = "cell" if self.invocation.facts["done"] is None else "trial"
        number = "" if cells is None else f", {counted(cells, unit)}"
        watched = f"python -m sr_lightning.sweeps.status {shlex.quote(str(sweep))} --watch"
        show(f"sweep {sweep}{number}. To watch it from elsewhere:\n  {watched}")
        threading.Thread(target=watch, daemon=True).start()

    def update(self) -> None:
        """Print the cells that have ended since the last call."""
        with self.lock:
            reports = self.invocation.reports()
            self.parallel = max(self.parallel, sum(report["status"] == "running" for report in reports))
            for report in sorted(reports, key=lambda report: report.get("ended", 0.0)):
                status = report["status"]
                if status in (*FINAL_STATUSES, "interrupted") and status != self.printed.get(report["number"]):
                    self.printed[report["number"]] = status
                    show(time.strftime("[%H:%M:%S] ") + printable(self.line(report, reports)))

    def line(self, report: dict[str, Any], reports: Sequence[dict[str, Any]]) -> str:
        """Format a cell: its number among all, name, status, score, gain, the best so far and the time left."""
        facts, status = self.invocation.facts, report["status"]
        before = facts.get("done") or 0  # trials of a study in earlier invocations
        ended = sum(one in FINAL_STATUSES for one in self.printed.values())
        unit = "" if facts.get("done") is None else "trial "
        parts = [f"{unit}{before + ended} of {facts['cells']}" if facts.get("cells") else str(ended), report["cell"]]
        if status == "failed":
            log = self.end_of_log(report["cell"]) if "started" in report else ""
            parts.append(f"FAILED, {report['error']}{log}")
        elif status != "finished":
            parts.append(status)
        if status != "failed" and report.get("psnr") is not None:
            parts.append(f"{report['psnr']:.2f} dB")
            if (bicubic := report.get("bicubic")) is not None:
                parts.append(f"{report['psnr'] - bicubic:+.2f} over bicubic")
            if report.get("stopped_early"):
                parts.append(f"stopped early at step {report['steps']}")
            parts.append(self.best_so_far(report["cell"]))
        left = seconds_left(reports, (facts.get("cells") or 0) - before, self.parallel)
        if left and status != "failed":
            parts.append(f"{tqdm.format_interval(left)} left")
        return "  ".join(filter(None, parts))

    def best_so_far(self, cell: str) -> str:
        """Name the highest PSNR of the sweep's cells that have the data, scale and protocol of a cell."""
        results = {
            path.parent.name: self.result(path.parent.name) for path in self.invocation.sweep_dir.glob("*/result.json")
        }
        own = results.get(cell)
        scored = {name: one for name, one in results.items() if one.get("psnr") is not None}
        same = [
            name
            for name in scored
            if own and all(scored[name].get(k) == own.get(k) for k in ("data", "scale", "protocol"))
        ]
        if len(same) < 2:
            return ""
        best = max(same, key=lambda name: scored[name]["psnr"])
        return "the best so far" if best == cell else f"best so far {scored[best]['psnr']:.2f} ({best})"

    def result(self, cell: str) -> dict[str, Any]:
        """Read the result.json of a cell; empty if it is missing or damaged."""
        try:
            return read_result(self.invocation.sweep_dir / cell) or {}
        except InputError:
            return {}

    def end_of_log(self, cell: str) -> str:
        """Return the place and the last lines of a cell's log; empty if it has none."""
        path = RunFolder(self.invocation.sweep_dir / cell).log
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()[-TAIL:]
        return "".join([f"\n  see {relative(path)}", *(f"\n  | {line}" for line in lines)])


def seconds_left(reports: Sequence[dict[str, Any]], cells: int, parallel: int) -> float | None:
    """Estimate the seconds until all cells have ended, from the mean of those trained; None before the first one.

    Args:
        reports: Of the jobs that have begun.
        cells: Number of all cells.
        parallel: Cells that train at the same time.
    """
    trained = [report for report in reports if report["status"] in ("finished", "resumed", "pruned")]
    spent = [report["ended"] - report["started"] for report in trained if "started" in report]
    if not spent:
        return None
    running = [time.time() - report["started"] for report in reports if report["status"] == "running"]
    waiting = cells - len(running) - sum(report["status"] in FINAL_STATUSES for report in reports)
    return (sum(max(fmean(spent) - seconds, 0.0) for seconds in running) + fmean(spent) * max(waiting, 0)) / parallel
