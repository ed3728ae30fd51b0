"""State of a sweep's cells, read from their files; nothing is written, so that any process can look at any sweep."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.metrics_csv import read_metrics
from sr_lightning.runs.result import FAILED, read_result
from sr_lightning.sweeps.cell_lines import seconds_left
from sr_lightning.sweeps.invocation import first_error_line
from sr_lightning.sweeps.slurm_queue import queued_cells
from sr_lightning.utils.held_folder import holder, is_locked

STOPPED_EARLY = "stopped early"
RECENT = 20  # logged steps of which the speed is the mean


@dataclass(frozen=True)
class Cell:
    """State of a cell.

    Attributes:
        name: Of its directory.
        status: running, waiting, finished, stopped early (and finished), failed, pruned or interrupted.
        step: Steps trained, up to the last logged one.
        max_steps: Steps of the whole training; None if unknown.
        psnr: The best on the validation images so far, in dB; of an ended cell, its result.
        bicubic: PSNR of bicubic on the same images; None if unknown.
        speed: Steps in a second.
        curve: Step and val/psnr of each validation.
        times: Seconds of training until each validation; None in runs of earlier versions.
        error: First line of the error of a failed cell.
        task: What cells must have in common for their scores to be compared; None if unknown.
    """

    name: str
    status: str
    step: int = 0
    max_steps: int | None = None
    psnr: float | None = None
    bicubic: float | None = None
    speed: float | None = None
    curve: Sequence[tuple[int, float]] = field(default_factory=list)
    times: Sequence[float | None] = field(default_factory=list)
    error: str = ""
    task: str | None = None

    @property
    def seconds_left(self) -> float | None:
        """Estimate the seconds until a running cell has trained; None if unknown."""
        known = self.status == "running" and self.speed and self.max_steps
        return max(0, self.max_steps - self.step) / self.speed if known else None


@dataclass(frozen=True)
class SweepState:
    """State of a sweep.

    Attributes:
        cells: In the order in which they began.
        not_begun: Number of further cells, of which nothing else is known.
        seconds_left: Estimate for the whole sweep; None if nothing runs, or before the first cell has ended.
    """

    cells: list[Cell]
    not_begun: int
    seconds_left: float | None


def read_sweep(folder: Path) -> SweepState:
    """Read the state of a sweep, which may be running, also on another machine, or of an earlier version.

    Raises:
        InputError: The folder is missing, or is not that of a sweep.
    """
    check_sweep(folder)
    reports: dict[str, dict[str, Any]] = {}
    facts, latest, alive, queued = {}, [], False, jobs_in_queue(folder)
    for call in sorted(folder.glob(".sweep/*/call.json")):
        facts = read_json(call)
        alive = is_locked(call.with_name("alive.lock"))
        by_scheduler = "devices" in facts and facts["devices"] is None  # its jobs outlive the command
        latest = [
            report
            for path in sorted(call.parent.glob("[0-9]*.json"))
            if {"cell", "status"} <= (report := read_json(path)).keys()
        ]
        for report in latest:
            gone = "job" in report and queued is not None and report["cell"] not in queued
            reports[report["cell"]] = report | {"alive": alive or (by_scheduler and not gone)}
    for cell, path in (queued or {}).items():  # a job reports to the invocation that has submitted it
        reports[cell] = read_json(path) | {"alive": True}
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir() and RunFolder(path).exists())
    cells = [read_cell(folder / name, reports.get(name, {})) for name in dict.fromkeys([*reports, *runs])]
    begun = (facts.get("done") or 0) + len(latest)
    number = max(facts.get("cells") or 0, begun)
    running = sum(cell.status == "running" for cell in cells)
    left = seconds_left(latest, number - (facts.get("done") or 0), running) if alive and running else None
    return SweepState(with_bicubic(cells), number - begun, left)


def jobs_in_queue(folder: Path) -> dict[str, Path] | None:
    """Return the cells with jobs in SLURM's queue, and their reports; None on a machine that cannot ask SLURM."""
    try:
        return queued_cells(folder)
    except InputError:
        return None


def check_sweep(folder: Path) -> None:
    """Raise InputError if a folder is not that of a sweep, with the sweeps that are near."""
    if not folder.is_dir():
        near = sweeps_in(folder.parent) or sweeps_in(Path("multirun"))
        hint = (
            f"the sweeps here: {', '.join(near)}"
            if near
            else "sweeps lie in multirun/ of the folder they were started in"
        )
        raise InputError(f"there is no folder {folder}; {hint}")
    if RunFolder(folder).exists():
        raise InputError(f"{folder} is a single run; the folder of its sweep is {folder.absolute().parent}")
    if not is_sweep(folder):
        near = sweeps_in(folder)
        hint = f"; name one of its sweeps: {', '.join(near)}" if near else ", nor are its subfolders"
        raise InputError(f"{folder} is not the folder of a sweep{hint}")


def is_sweep(folder: Path) -> bool:
    """Return True if a folder has a sweep's record, or runs directly below."""
    return (folder / ".sweep").is_dir() or any(p.is_dir() and RunFolder(p).exists() for p in folder.iterdir())


def sweeps_in(folder: Path) -> list[str]:
    """List the sweeps directly below a folder, the latest first."""
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and is_sweep(path)]
    except OSError:
        return []
    return [str(path) for path in sorted(found, key=lambda path: -path.stat().st_mtime)[:10]]


def read_cell(path: Path, report: dict[str, Any]) -> Cell:
    """Read a cell from its directory, which may not exist yet, and the latest report of its job, empty without one."""
    run = RunFolder(path)
    try:
        result = read_result(path) or {}
    except InputError:
        result = {}  # of a full disk, or an earlier version; the sweep's command writes it again
    config = read_config_quickly(run.config)
    rows = [row for row in read_metrics(run.metrics) if (row.get("step") or "").isdecimal()]
    validated = [row for row in rows if number_in(row, "val/psnr") is not None]
    curve = [(int(row["step"]), float(row["val/psnr"])) for row in validated]
    status = status_of(run, report, result)
    ended = result if status in (result.get("status"), STOPPED_EARLY) else {}
    error = first_error_line(ended or report) if status == FAILED else ""
    return Cell(
        path.name,
        status,
        step=ended.get("steps") or (int(rows[-1]["step"]) if rows else 0),
        max_steps=config.get("max_steps") or result.get("max_steps"),
        psnr=ended.get("psnr") or max((psnr for _, psnr in curve), default=None),
        bicubic=result.get("bicubic") or bicubic_in(run.results),
        speed=speed_of(rows[-RECENT:] if status == "running" else rows),
        curve=curve,
        times=[number_in(row, "seconds") for row in validated],
        error=error,
        task=task_of(config),
    )


def status_of(run: RunFolder, report: dict[str, Any], result: dict[str, Any]) -> str:
    """Judge the status of a cell: by its holder, the jobs of a live invocation, its result, its other files."""
    if holder(run.path):
        return "running"
    if report.get("alive") and report["status"] in ("waiting", "running"):
        return report["status"]
    if result:
        return STOPPED_EARLY if "stopped_early" in result else result["status"]
    if report.get("status") == FAILED:
        return FAILED
    return "interrupted"


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def read_config_quickly(path: Path) -> dict[str, Any]:
    """Read config.yaml as plain containers, in a few milliseconds; empty if it is missing or damaged."""
    try:
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def number_in(row: dict[str, str], key: str) -> float | None:
    """Return a finite value of a row; None without one."""
    try:
        value = float(row.get(key) or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def speed_of(rows: Sequence[dict[str, str]]) -> float | None:
    """Return steps per second between the first and the last of the rows that have a time; None if there are no two."""
    times = [(int(row["step"]), seconds) for row in rows if (seconds := number_in(row, "seconds")) is not None]
    if not times or times[-1][1] <= times[0][1]:
        return None
    return (times[-1][0] - times[0][0]) / (times[-1][1] - times[0][1])


def bicubic_in(results: Path) -> float | None:
    """Return the PSNR of bicubic on the validation images in results.csv, for a result.json that lacks it."""
    try:
        with results.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if (row.get("model"), row.get("dataset"), row.get("image")) == ("bicubic", "held-out", "mean"):
                    return number_in(row, next(key for key in row if key and key.startswith("psnr")))
    except (OSError, ValueError, csv.Error, StopIteration):
        pass
    return None


def task_of(config: dict[str, Any]) -> str | None:
    """Describe the validation images and the protocol of a run: runs of one task have the same score of bicubic."""
    data = config.get("data")
    if not isinstance(data, dict):
        return None
    images = {
        key: value for key, value in data.items() if key in ("_target_", "val", "hr", "lr", "val_fraction", "scale")
    }
    return json.dumps([images, config.get("degradation"), config.get("protocol")], sort_keys=True, default=str)


def with_bicubic(cells: Iterable[Cell]) -> list[Cell]:
    """Give cells that have not ended the score of bicubic from cells of the same task."""
    cells = list(cells)
    known = {cell.task: cell.bicubic for cell in cells if cell.task and cell.bicubic is not None}
    return [replace(cell, bicubic=known.get(cell.task)) if cell.bicubic is None else cell for cell in cells]
