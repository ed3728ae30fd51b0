"""A call: one run of a sweep's command. What its jobs must know, and what has become of each."""

import functools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sr_lightning.sweeps.processes import PAUSE
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.markdown import markdown_table

VARIABLE = "SR_LIGHTNING_CALL"  # in the environment of all jobs: the call's directory
ENDED = ("finished", "resumed", "pruned", "skipped", "failed")

_alive: list[FileLock] = []  # held until this process ends
_watched: set[Path] = set()  # calls that this process ends with


@dataclass(frozen=True)
class Call:
    """One run of a sweep's command.

    Attributes:
        directory: <sweep>/.sweep/<time>_<process>. Holds call.json and one file per job, which only that job writes.
    """

    directory: Path

    @classmethod
    def begin(cls, sweep_dir: Path, devices: Sequence[str] | None) -> "Call":
        """Start a call and tell the jobs to come by the environment.

        Args:
            sweep_dir: The sweep's directory.
            devices: The machine's devices, for which cells queue; None where a scheduler hands them out.
        """
        call = cls(sweep_dir.absolute() / ".sweep" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}")
        call.directory.mkdir(parents=True)
        _alive.append(FileLock(call.directory / "alive.lock"))
        _alive[-1].acquire()
        command = [str(Path(sys.argv[0]).absolute()), *sys.argv[1:]]
        facts = {"command": command, "host": socket.gethostname(), "process": os.getpid(), "devices": devices}
        with replacing(call.directory / "call.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
        os.environ[VARIABLE] = str(call.directory)
        return call

    @classmethod
    def current(cls) -> "Call":
        """The call that this job belongs to."""
        return cls(Path(os.environ[VARIABLE]))

    @property
    def sweep_dir(self) -> Path:
        return self.directory.parents[1]

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What `begin` wrote down: command, host, process, devices."""
        return json.loads((self.directory / "call.json").read_text())

    def abandoned(self) -> bool:
        """Whether the process that began the call has ended; never where a scheduler runs the jobs."""
        if self.facts["devices"] is None:
            return False
        try:
            FileLock(self.directory / "alive.lock").acquire(timeout=0).lock.release()
        except Timeout:
            return False
        return True

    def end_with_it(self) -> None:
        """End this job's process, whatever it waits for, soon after the process that began the call has ended."""

        def watch() -> None:
            while not self.abandoned():
                time.sleep(PAUSE)
            os._exit(1)  # and the cell's process ends with this one

        if os.getpid() != self.facts["process"] and self.directory not in _watched:
            _watched.add(self.directory)
            threading.Thread(target=watch, daemon=True).start()

    def report(self, number: int, **facts: Any) -> None:
        """Write down where a job stands: cell, status, and what else is known. Adds to what was reported before."""
        path = self.directory / f"{number:05d}.json"
        known = json.loads(path.read_text()) if path.exists() else {"number": number}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known | facts) + "\n")

    def reports(self) -> list[dict[str, Any]]:
        """The latest report of every job, by number."""
        files = [path for path in self.directory.glob("*.json") if re.fullmatch(r"\d+", path.stem)]
        return [json.loads(path.read_text()) for path in sorted(files)]


def summary(call: Call) -> str:
    """Every cell of a call, and what became of it, as a Markdown table under a line of counts."""
    reports = call.reports()
    for report in reports:
        if report["status"] not in ENDED:
            report["status"] = "interrupted"
    statuses = [report["status"] for report in reports]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    lines = [["cell", "settings", "status", "PSNR", "steps", "time", "what went wrong"]]
    for report, settings in zip(reports, what_differs(reports), strict=True):
        forms = {"psnr": "{:.2f}".format, "steps": "{:,d}".format, "seconds": clock}
        shown = ["" if report.get(key) is None else form(report[key]) for key, form in forms.items()]
        lines.append([report["cell"], settings, report["status"], *shown, first_line(report)])
    return f"sweep {relative(call.sweep_dir)}: {len(reports)} cells, {counts}\n{table(lines)}"


def what_differs(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Of each cell the words of its command that not all have, and that its name does not say."""
    common = set.intersection(*(set(report["words"]) for report in reports))
    said = ("model", "data", "scale", "seed", "name")
    return [" ".join(w for w in r["words"] if w not in common and w.split("=")[0] not in said) for r in reports]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the header first, as a Markdown table without the columns that are empty."""
    kept = [i for i, column in enumerate(zip(*lines, strict=True)) if any(column[1:])]
    return markdown_table([[line[i] for i in kept] for line in lines])


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds, after days if there are any."""
    return str(timedelta(seconds=round(seconds)))


def first_line(report: dict[str, Any]) -> str:
    """Of what went wrong, if anything did."""
    return report.get("error", "").strip().split("\n")[0]


def plan(reports: Sequence[dict[str, Any]]) -> str:
    """What cells would take, as a Markdown table over a line of sums; those that cannot be are named below."""
    lines = [["cell", "settings", "parameters", "steps", "patches", "memory", "time"]]
    fine = [report for report in reports if report["status"] == "fine"]
    for report, settings in zip(reports, what_differs(reports), strict=True):
        if report not in fine:
            continue
        counts = [f"{report[key]:,}" for key in ("parameters", "steps", "patches")]
        memory = f"{report['memory'] / 2**20:,.0f} MiB"
        lines.append([report["cell"], settings, *counts, memory, clock(report["seconds"])])
    sums = f"{len(reports)} cells, {clock(sum(report['seconds'] for report in fine))} in all, estimated"
    bad = [report for report in reports if report["status"] != "fine"]
    named = "".join(f"\n  {report['cell']}: {first_line(report)}" for report in bad)
    return f"{table(lines)}\n{sums}" + (f"\n{len(bad)} CANNOT BE:{named}" if bad else "")


def relative(path: Path) -> Path:
    """The path from the working directory where it lies below, else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
