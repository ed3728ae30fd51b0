"""Runs below a folder, and groups of runs that differ only in the seed."""

import functools
import json
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import result_settings
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.metrics_csv import last_step
from sr_lightning.runs.result import FINISHED, read_result
from sr_lightning.runs.saved_config import read_config
from sr_lightning.sweeps.cells import Cell, read_cell
from sr_lightning.sweeps.invocation import relative

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run's directory.

    Attributes:
        directory: The path.
        status: As in result.json; "unfinished" without one, "unreadable" if it or config.yaml is damaged.
        reason: Reason why the run cannot be scored; empty if it can.
        result: Contents of result.json; empty without one.
        config: The run's config; None if it is missing or unreadable.
    """

    directory: Path
    status: str
    reason: str
    result: dict[str, Any]
    config: DictConfig | None

    @classmethod
    def read(cls, directory: Path) -> "Run":
        """Read a run's directory; any problem becomes its `reason`."""
        try:
            result = read_result(directory) or {}
            status = result["status"] if result else "unfinished"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return cls(directory, "unreadable", f"result.json: {_first_line(error)}", {}, None)
        config, problem = None, ""
        path = RunFolder(directory).config
        if path.is_file():
            try:
                config = read_config(path)
                result_settings(config), config.name, config.scale, config.seed, config.model.network._target_
            except (InputError, OmegaConfBaseException, AttributeError, TypeError) as error:
                config, problem = None, f"config.yaml: {_first_line(error)}"
        reason = result.get("error", "").split("\n")[0]
        if status == "unfinished":
            reason = _progress(directory, config and config.max_steps)
        elif status == FINISHED and config is None:
            status, reason = ("unreadable", problem) if problem else (status, "there is no config.yaml")
        elif status == FINISHED and not RunFolder(directory).best.is_file():
            reason = "there is no checkpoints/best.ckpt"
        elif status == FINISHED and config.get("debug"):
            reason = f"it is a trial, debug={config.debug}"
        return cls(directory, status, reason, result, config)

    @property
    def is_scorable(self) -> bool:
        return self.status == FINISHED and not self.reason

    @property
    def files(self) -> RunFolder:
        return RunFolder(self.directory)

    @property
    def checkpoint(self) -> Path:
        return self.files.best

    @property
    def data(self) -> str:
        """Option of `data=`; empty for runs of versions that did not record it."""
        return (OmegaConf.select(self.config, "choices.data") or "") if self.config else ""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that affect the result, without the seed, which several of them repeat."""
        settings, seed = result_settings(self.config), self.config.seed
        return {k: value for k, value in settings.items() if k.rpartition(".")[2] != "seed" or value != seed}

    @functools.cached_property
    def network(self) -> dict[str, Any]:
        """The config's network, in plain containers."""
        return OmegaConf.to_container(self.config.model.network, resolve=True)

    @functools.cached_property
    def cell(self) -> Cell:
        """State of the training, with its validation curve; lines of metrics.csv that are damaged are left out."""
        return read_cell(self.directory, {})


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _progress(directory: Path, max_steps: int | None) -> str:
    step = last_step(RunFolder(directory).metrics) if max_steps else 0
    return f"{step:,} of {max_steps:,} steps trained" if step else "before its first step"


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """List all runs in and below folders, each once, by path.

    Raises:
        InputError: Names all folders that do not exist or contain no run.
    """
    found: dict[Path, Path] = {}  # resolved path -> path as found
    problems = []
    for folder in map(Path, folders):
        below = list(_directories(folder.expanduser())) if folder.expanduser().is_dir() else []
        if not folder.expanduser().is_dir():
            problems.append(f"there is no folder {folder}")
        elif not below:
            problems.append(
                f"there is no run in {folder} (a run's directory has result.json, config.yaml or checkpoints)"
            )
        for directory in below:
            found.setdefault(directory.resolve(), directory)
    if problems:
        raise InputError(f"runs: {'; '.join(problems)}")
    return [Run.read(directory) for directory in found.values()]


def _directories(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the runs' directories in and below a folder; runs do not contain runs."""
    if RunFolder(folder).exists():
        yield folder
        return
    seen |= {folder.resolve()}
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        log.warning("%s cannot be searched for runs: %s", folder, error.strerror)
        return
    for name in names:
        if (folder / name).resolve() not in seen:  # a link back up
            yield from _directories(folder / name, seen)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        label: Their name, and the settings that distinguish them from others of this name and scale.
        runs: At least one, the lowest seed first, each seed once.
    """

    label: str
    runs: list[Run]

    def name_of(self, run: Run) -> str:
        """Return the label, with the seed if there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} seed {run.config.seed}"


def group(runs: Sequence[Run]) -> tuple[list[Group], dict[Path, str]]:
    """Group runs that differ only in the seed, and give each group a distinct label.

    Args:
        runs: Runs that have a config.

    Returns:
        Groups; and directory -> reason of the runs left out because another has the same settings and seed. Of such
        runs one that can be scored is preferred.
    """
    together: dict[tuple[int, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.is_scorable):
        key = (run.config.scale, json.dumps(run.settings, sort_keys=True, default=str))
        together.setdefault(key, []).append(run)
    groups, repeated = [], {}
    for same in together.values():
        by_seed: dict[int, Run] = {}
        for run in same:
            first = by_seed.setdefault(run.config.seed, run)
            if first is not run:
                repeated[run.directory] = f"the settings and seed of {relative(first.directory)}"
        groups.append([by_seed[seed] for seed in sorted(by_seed)])
    return [Group(label, runs) for label, runs in zip(labels(groups), groups, strict=True)], repeated


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Make a distinct label for each group of runs: its name, and what distinguishes it at its scale.

    That is the data set if it differs, then up to three settings, such as "espcn t91 optimizer.lr=0.003"; the name of
    the first run's directory if that is not enough.
    """
    firsts = [runs[0] for runs in groups]
    result = [run.config.name for run in firsts]
    for extend in (_by_data, _by_settings, lambda runs: [run.directory.name for run in runs], _by_path):
        buckets: dict[tuple[int, str], list[int]] = {}
        for i, run in enumerate(firsts):
            buckets.setdefault((run.config.scale, result[i]), []).append(i)
        for (_, label), members in buckets.items():
            if len(members) > 1 or label == "bicubic":  # the baseline's
                for i, suffix in zip(members, extend([firsts[i] for i in members]), strict=True):
                    result[i] = f"{label} {suffix}".strip()
    return result


def _by_data(runs: Sequence[Run]) -> list[str]:
    return [run.data for run in runs] if len({run.data for run in runs}) > 1 else [""] * len(runs)


def _by_path(runs: Sequence[Run]) -> list[str]:
    return [f"({run.directory.resolve()})" for run in runs]


def _by_settings(runs: Sequence[Run]) -> list[str]:
    """Join the settings in which runs differ, one for each set that varies together; empty if more than three."""
    keys = sorted({key for run in runs for key in run.settings}, key=lambda key: (key.count("."), len(key)))
    differing: dict[str, str] = {}  # values over all runs -> first key with these values
    for key in keys:
        values = json.dumps([run.settings.get(key) for run in runs], default=str)
        if len({json.dumps(run.settings.get(key), default=str) for run in runs}) > 1:
            differing.setdefault(values, key)
    if len(differing) > 3:
        return [""] * len(runs)
    return [" ".join(_short_setting(key, run.settings.get(key), keys) for key in differing.values()) for run in runs]


def _short_setting(key: str, value: Any, keys: Sequence[str]) -> str:
    """Format a setting with the shortest unique end of its key, such as optimizer.lr=0.003; a class by its name."""
    if key.endswith("._target_"):
        key, value = key.removesuffix("._target_"), str(value).rpartition(".")[2]
    parts = key.split(".")
    ends = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    short = next((end for end in ends if sum(k == end or k.endswith(f".{end}") for k in keys) <= 1), key)
    return f"{short}={value}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and the sample standard deviation; None for a single value."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
