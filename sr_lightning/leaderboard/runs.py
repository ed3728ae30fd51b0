"""The runs below a folder, and those among them that differ only in the seed."""

import csv
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
from yaml import YAMLError

from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import result_settings
from sr_lightning.runs.result import FINISHED, RESULT, read_result
from sr_lightning.sweeps.invocation import relative

log = logging.getLogger(__name__)

SIGNS = (RESULT, "config.yaml", "checkpoints", "train.log")  # a run's directory has at least one of them


@dataclass(frozen=True)
class Run:
    """A run's directory.

    Attributes:
        directory: Where it lies.
        status: As in result.json; "unfinished" without one, "unreadable" where it or config.yaml is none.
        reason: What is to be said of a run that cannot be scored; empty of one that can.
        result: The content of result.json; empty without one.
        config: The run's; None where there is none, or none that can be read.
    """

    directory: Path
    status: str
    reason: str
    result: dict[str, Any]
    config: DictConfig | None

    @classmethod
    def read(cls, directory: Path) -> "Run":
        """Look at a run's directory; whatever is wrong with it becomes its `reason`."""
        try:
            result = read_result(directory) or {}
            status = result["status"] if result else "unfinished"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return cls(directory, "unreadable", f"{RESULT}: {_in_words(error)}", {}, None)
        config, problem = None, ""
        path = directory / "config.yaml"
        if path.is_file():
            try:
                config = OmegaConf.load(path)
                result_settings(config), config.name, config.scale, config.seed, config.model.network._target_
            except (OSError, YAMLError, OmegaConfBaseException, AttributeError, TypeError) as error:
                config, problem = None, f"config.yaml: {_in_words(error)}"
        reason = result.get("error", "").split("\n")[0]
        if status == "unfinished":
            reason = _progress(directory, config)
        elif status == FINISHED and config is None:
            status, reason = ("unreadable", problem) if problem else (status, "there is no config.yaml")
        elif status == FINISHED and not (directory / "checkpoints" / "best.ckpt").is_file():
            reason = "there is no checkpoints/best.ckpt"
        return cls(directory, status, reason, result, config)

    @property
    def is_scorable(self) -> bool:
        return self.status == FINISHED and not self.reason

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "best.ckpt"

    @property
    def data(self) -> str:
        """The choice of data; empty of runs from before it was written down."""
        return (OmegaConf.select(self.config, "choices.data") or "") if self.config else ""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All settings with a bearing on the result but the seed, wherever it is handed on to."""
        settings, seed = result_settings(self.config), self.config.seed
        return {k: value for k, value in settings.items() if k.rpartition(".")[2] != "seed" or value != seed}

    @functools.cached_property
    def network(self) -> dict[str, Any]:
        """How the config describes the network, in plain containers."""
        return OmegaConf.to_container(self.config.model.network, resolve=True)

    def validation(self) -> list[tuple[int, float]]:
        """(step, PSNR on the validation images) of metrics.csv."""
        path = self.directory / "metrics.csv"
        if not path.is_file():
            return []
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        return [(int(row["step"]), float(row["val/psnr"])) for row in rows if row.get("val/psnr")]


def _in_words(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _progress(directory: Path, config: DictConfig | None) -> str:
    path = directory / "metrics.csv"
    if config is None or not path.is_file():
        return "before its first step"
    with open(path, newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    return f"{int(steps[-1]):,} of {config.max_steps:,} steps trained" if steps else "before its first step"


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """All runs in and below folders, each once, by path.

    Raises:
        InputError: Folders that are not there, or in which there is no run; names all.
    """
    found: dict[Path, Path] = {}  # where it really lies -> how it was found
    problems = []
    for folder in map(Path, folders):
        below = list(_directories(folder.expanduser())) if folder.expanduser().is_dir() else []
        if not folder.expanduser().is_dir():
            problems.append(f"there is no folder {folder}")
        elif not below:
            problems.append(f"there is no run in {folder} (a run's directory has {', '.join(SIGNS[:-1])})")
        for directory in below:
            found.setdefault(directory.resolve(), directory)
    if problems:
        raise InputError(f"runs: {'; '.join(problems)}")
    return [Run.read(directory) for directory in found.values()]


def _directories(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The runs' directories at and below a folder; there is no run inside a run."""
    if any((folder / sign).exists() for sign in SIGNS):
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
        label: Their name, and what tells them apart from others of this name and scale.
        runs: At least one, the lowest seed first, each seed once.
    """

    label: str
    runs: list[Run]

    def name_of(self, run: Run) -> str:
        """The label, with the seed where there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} seed {run.config.seed}"


def group(runs: Sequence[Run]) -> tuple[list[Group], dict[Path, str]]:
    """Put runs that differ only in the seed together, and give each group a label of its own.

    Args:
        runs: With a config.

    Returns:
        Groups; and the runs left out because another has the same settings and seed, directory -> why: where one of
        them can be scored, it is not left out.
    """
    together: dict[tuple[int, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.is_scorable):
        key = (run.config.scale, json.dumps(run.settings, sort_keys=True, default=str))
        together.setdefault(key, []).append(run)
    groups, repeated = [], {}
    for same in together.values():
        by_seed: dict[int, Run] = {}
        for run in same:
            kept = by_seed.setdefault(run.config.seed, run)
            if kept is not run:
                repeated[run.directory] = f"the settings and seed of {relative(kept.directory)}"
        groups.append([by_seed[seed] for seed in sorted(by_seed)])
    return [Group(label, runs) for label, runs in zip(labels(groups), groups, strict=True)], repeated


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A label for each group of runs: its name, and what tells it apart at its scale.

    That is the data set where it differs, then up to three settings, such as "espcn t91 optimizer.lr=0.003"; the name
    of the first run's directory where that is not enough.
    """
    firsts = [runs[0] for runs in groups]
    result = [run.config.name for run in firsts]
    for extend in (_by_data, _by_settings, lambda runs: [run.directory.name for run in runs], _by_path):
        buckets: dict[tuple[int, str], list[int]] = {}
        for i, run in enumerate(firsts):
            buckets.setdefault((run.config.scale, result[i]), []).append(i)
        for (_, label), members in buckets.items():
            if len(members) > 1 or label == "bicubic":  # the baseline's
                for i, words in zip(members, extend([firsts[i] for i in members]), strict=True):
                    result[i] = f"{label} {words}".strip()
    return result


def _by_data(runs: Sequence[Run]) -> list[str]:
    return [run.data for run in runs] if len({run.data for run in runs}) > 1 else [""] * len(runs)


def _by_path(runs: Sequence[Run]) -> list[str]:
    return [f"({run.directory.resolve()})" for run in runs]


def _by_settings(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, one for each that vary together; nothing where there are more than three."""
    keys = sorted({key for run in runs for key in run.settings}, key=lambda key: (key.count("."), len(key)))
    differing: dict[str, str] = {}  # the values over all runs -> the first key that has them
    for key in keys:
        values = json.dumps([run.settings.get(key) for run in runs], default=str)
        if len({json.dumps(run.settings.get(key), default=str) for run in runs}) > 1:
            differing.setdefault(values, key)
    if len(differing) > 3:
        return [""] * len(runs)
    return [" ".join(_word(key, run.settings.get(key), keys) for key in differing.values()) for run in runs]


def _word(key: str, value: Any, keys: Sequence[str]) -> str:
    """optimizer.lr=0.003: a setting by the shortest end of its key that no other has; a class by its name."""
    if key.endswith("._target_"):
        key, value = key.removesuffix("._target_"), str(value).rpartition(".")[2]
    parts = key.split(".")
    ends = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    short = next((end for end in ends if sum(k == end or k.endswith(f".{end}") for k in keys) <= 1), key)
    return f"{short}={value}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample's standard deviation from two values on."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
