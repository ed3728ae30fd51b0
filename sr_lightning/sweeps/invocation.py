"""Invocation of a sweep's command: state that its jobs share, and the outcome of each job."""

import functools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sr_lightning.sweeps.processes import GRACE, PAUSE
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.messages import counted

VARIABLE = "SR_LIGHTNING_CALL"  # in the environment of all jobs: the invocation's directory
FINAL_STATUSES = ("finished", "resumed", "pruned", "skipped", "failed")

_alive: list[FileLock] = []  # held until this process ends
_watched: set[Path] = set()  # invocations with which this process exits


@dataclass(frozen=True)
class SweepInvocation:
    """One run of a sweep's command.

    Attributes:
        directory: <sweep>/.sweep/<time>_<process>. Contains call.json and one file per job, written by that job only.
    """

    directory: Path

    @classmethod
    def begin(cls, sweep_dir: Path, devices: Sequence[str] | None, **facts: Any) -> "SweepInvocation":
        """Begin an invocation; its jobs find it by an environment variable.

        Args:
            sweep_dir: The sweep's directory.
            devices: The machine's devices, for which cells queue; None if a scheduler assigns them.
            **facts: Further fields of call.json: cells (number of all), done (trials of a study before this
                invocation; None for a sweep over given values), and ray (address of the cluster that runs the jobs).
        """
        invocation = cls(sweep_dir.absolute() / ".sweep" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}")
        invocation.directory.mkdir(parents=True)
        _alive.append(FileLock(invocation.directory / "alive.lock"))
        _alive[-1].acquire()
        command = [str(Path(sys.argv[0]).absolute()), *sys.argv[1:]]
        facts = {"command": command, "host": socket.gethostname(), "process": os.getpid(), "devices": devices} | facts
        with replacing(invocation.directory / "call.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
        os.environ[VARIABLE] = str(invocation.directory)
        return invocation

    @classmethod
    def current(cls) -> "SweepInvocation":
        """Return the invocation that this job belongs to."""
        return cls(Path(os.environ[VARIABLE]))

    @property
    def sweep_dir(self) -> Path:
        return self.directory.parents[1]

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Contents of call.json: command, host, process, devices, cells, done."""
        return json.loads((self.directory / "call.json").read_text())

    def abandoned(self) -> bool:
        """Return True if the process that began the invocation has ended; never under a scheduler.

        Under Ray neither: a lock cannot be seen from other machines, and Ray ends the jobs.
        """
        if self.leaves or "ray" in self.facts:
            return False
        try:
            FileLock(self.directory / "alive.lock").acquire(timeout=0).lock.release()
        except Timeout:
            return False
        return True

    def exit_with_invocation(self) -> None:
        """Exit this job's process soon after the process that began the invocation has ended, whatever it waits for."""

        def watch() -> None:
            while not self.abandoned():
                time.sleep(PAUSE)
            os._exit(1)  # the cell's process exits with this one

        if os.getpid() != self.facts["process"] and self.directory not in _watched:
            _watched.add(self.directory)
            threading.Thread(target=watch, daemon=True).start()

    @property
    def leaves(self) -> bool:
        """Return True if a scheduler runs the jobs: on other machines, and also after the command has ended."""
        return self.facts["devices"] is None

    def report_file(self, number: int) -> Path:
        """Return the file of a job's report."""
        return self.directory / f"{number:05d}.json"

    def report(self, number: int, **facts: Any) -> None:
        """Update a job's file with its cell, status and other facts."""
        path = self.report_file(number)
        known = json.loads(path.read_text()) if path.exists() else {"number": number}
        known.pop("error", None)  # of an earlier start of the job
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known | facts) + "\n")

    def reports(self) -> list[dict[str, Any]]:
        """Read the latest report of every job, by number."""
        files = [path for path in self.directory.glob("*.json") if re.fullmatch(r"\d+", path.stem)]
        return [json.loads(path.read_text()) for path in sorted(files)]

    def stop_cells(self) -> None:
        """Terminate the trainings of all cells on this machine, and wait until they have saved."""
        if self.leaves:  # numbers of processes on other machines
            return
        started = [report for report in self.reports() if "process" in report]  # one that is just forked ends with this
        running = [report["process"] for report in started if report["status"] == "running"]
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and any(is_alive(process) for process in running):
            time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Return True if a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def summary(invocation: SweepInvocation, number: int | None = None) -> str:
    """Format the outcome of every cell as a Markdown table under a line of counts.

    Args:
        invocation: Whose cells are listed.
        number: Cells of the whole sweep, if known: those that have not begun are counted.
    """
    reports = invocation.reports()
    for report in reports:
        if report["status"] not in FINAL_STATUSES and not invocation.leaves:
            report["status"] = "interrupted"
    statuses = [report["status"] for report in reports]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    lines = [["cell", "settings", "status", "PSNR", "steps", "time", "error"]]
    for report, settings in zip(reports, distinguishing_overrides(reports), strict=True):
        formats = {"psnr": "{:.2f}".format, "steps": "{:,d}".format, "seconds": clock}
        shown = ["" if report.get(key) is None else text(report[key]) for key, text in formats.items()]
        lines.append([report["cell"], settings, report["status"], *shown, first_error_line(report)])
    number = max(len(reports), number or 0)
    if number > len(reports):
        counts += f", {number - len(reports)} not begun"
    hint = (
        "" if "interrupted" not in statuses and number == len(reports) else "\nThe same command goes on with the sweep."
    )
    if {"waiting", "running"} & set(statuses):
        hint = "\nThe jobs go on without this command; the same command collects their results."
    return f"sweep {relative(invocation.sweep_dir)}: {counted(number, 'cell')}, {counts}\n{table(lines)}{hint}"


def distinguishing_overrides(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Join each cell's overrides that not all cells have and that are not part of its name."""
    overrides = [report["words"] for report in reports]
    common = set.intersection(*map(set, overrides))
    in_name = ("model", "data", "scale", "seed", "name")
    return [" ".join(o for o in own if o not in common and o.split("=")[0] not in in_name) for own in overrides]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Format rows, the header first, as a Markdown table without empty columns."""
    filled = [i for i, column in enumerate(zip(*lines, strict=True)) if any(column[1:])]
    return markdown_table([[line[i] for i in filled] for line in lines])


def clock(seconds: float) -> str:
    """Format seconds as hours:minutes:seconds, with days in front if there are any."""
    return str(timedelta(seconds=round(seconds)))


def first_error_line(report: dict[str, Any]) -> str:
    """Return the first line of a report's error; empty without one."""
    return report.get("error", "").strip().split("\n")[0]


def plan(reports: Sequence[dict[str, Any]]) -> str:
    """Format the estimates of a dry run as a Markdown table over a line of totals; invalid cells are named below."""
    lines = [["cell", "settings", "parameters", "steps", "patches", "memory", "time"]]
    fine = [report for report in reports if report["status"] == "fine"]
    for report, settings in zip(reports, distinguishing_overrides(reports), strict=True):
        if report not in fine:
            continue
        counts = [f"{report[key]:,}" for key in ("parameters", "steps", "patches")]
        memory = f"{report['memory'] / 2**20:,.0f} MiB"
        lines.append([report["cell"], settings, *counts, memory, clock(report["seconds"])])
    sums = f"{counted(len(reports), 'cell')}, {clock(sum(report['seconds'] for report in fine))} in all, estimated"
    bad = [report for report in reports if report["status"] != "fine"]
    named = "".join(f"\n  {report['cell']}: {first_error_line(report)}" for report in bad)
    return f"{table(lines)}\n{sums}" + (f"\n{len(bad)} INVALID:{named}" if bad else "")


def relative(path: Path) -> Path:
    """Make a path relative to the working directory if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
