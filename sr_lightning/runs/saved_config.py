"""Saved configs of runs, including those of earlier versions."""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import RENAMED_KEYS, changed_settings, flatten
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.targets import allowed, check_targets
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.messages import reason
from sr_lightning.utils.tensor_archive import check_archive, describes_network

log = logging.getLogger(__name__)

# Keys added after the first version, with the value that reproduces the behaviour of earlier versions.
ADDED_KEYS = {
    "choices": {"model": None, "data": None, "experiment": None},
    "sweep": None,
    "measures": [],
    "report_images": 0,
    "dry_run": False,
    "prune_after": None,
    "compile": None,
    "graph": None,
    "allow": None,
    "save_top_k": 1,
}
# Settings that may be given with `resume` alone: on which processes the run goes on.
PLACEMENT = {f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "timeout")}
MAX_SIZE = 2**20  # bytes of a config.yaml; a run's has about 3,000


def read_config(path: str | Path) -> DictConfig:
    """Read the config of a run from its config.yaml, which train.py writes resolved.

    Raises:
        InputError: The file is unreadable, holds no settings, or has references: a file cannot read the environment, or
            repeat a part of itself until memory is full.
    """
    try:
        if Path(path).stat().st_size > MAX_SIZE:
            raise ValueError(f"it has more than {MAX_SIZE} bytes")
        text = Path(path).read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has YAML aliases")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig) or not config:
            raise ValueError("it holds no settings")
        if references := list(_references(OmegaConf.to_container(config))):
            raise ValueError(f"it has references: {', '.join(references)}")
        return upgrade(config)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path} cannot be read as the config of a run: {reason(error)}") from error


def _references(config: Any, key: str = "") -> Iterator[str]:
    """Yield the keys whose values OmegaConf would resolve."""
    if isinstance(config, dict | list):
        for name, value in config.items() if isinstance(config, dict) else enumerate(config):
            yield from _references(value, f"{key}.{name}".lstrip("."))
    elif isinstance(config, str) and ("${" in config or config == "???"):
        yield key


def upgrade(config: Any) -> Any:
    """Give a config written for an earlier version the key names of this version, and the keys added since."""
    if isinstance(config, DictConfig):
        rename_keys(config)
        for key, value in ADDED_KEYS.items():
            if key not in config:
                config[key] = value
    return config


def rename_keys(config: DictConfig) -> None:
    """Replace earlier names of keys in a config, such as those that a user's own recipe sets."""
    with open_dict(config):
        for old, new in RENAMED_KEYS.items():
            if old in config:
                config[new] = config.pop(old)


def upgrade_overrides(overrides: list[str]) -> list[str]:
    """Replace earlier names of keys in arguments of a command line, as in scripts written for an earlier version.

    A scale is accepted as a number.

    >>> upgrade_overrides(["-m", "num_pictures=0", "++report=3", "scale=2,3"])
    ['-m', 'num_comparisons=0', '++report_images=3', 'scale=x2,x3']
    """
    names = "|".join(RENAMED_KEYS)
    overrides = [re.sub(r"(?<=[=,])(?=\d)", "x", o) if re.fullmatch(r"scale=[\dx,]+", o) else o for o in overrides]
    return [re.sub(rf"^(\+*)({names})(?==)", lambda m: m[1] + RENAMED_KEYS[m[2]], override) for override in overrides]


def config_to_resume(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Return the config of the run to resume. Settings given beside `resume` and `allow` must equal the run's.

    `max_steps` alone may be larger: the run is then extended, a cell of a sweep in a directory of its own. `PLACEMENT`
    may differ.

    Args:
        cfg: With `resume`, `run_dir`, `allow`, `max_steps` and `extend`.
        overrides: Of the command line, "key=value".

    Raises:
        InputError: `resume` is not a run's directory; its config is unreadable or names classes that are not allowed;
            other settings are given; or its last checkpoint is missing or damaged.
    """
    run = RunFolder(cfg.run_dir)
    if not run.config.is_file():
        raise InputError(f"resume={cfg.resume} is not the directory of a run: it has no config.yaml")
    if not run.last.is_file():
        raise InputError(f"resume={cfg.resume}: the run was stopped before its first checkpoint; start it again")
    trained_with = check_last_checkpoint(run)
    try:
        saved = read_config(run.config)
        if wrong := list(misfits(OmegaConf.to_container(saved), trained_with)):
            raise InputError(f"{run.config} is damaged, it differs from the config in {run.last}: {'; '.join(wrong)}")
    except InputError as error:
        raise InputError(f"resume={cfg.resume}: {error}; start the run again") from error
    keys = keys_of(overrides) - PLACEMENT
    alone = keys <= {"resume", "allow"}
    if "max_steps" in keys and keys <= {"resume", "allow", "max_steps", "extend"}:
        alone = True
        if not is_extended(saved, cfg):
            extend(saved, cfg, max(steps_in(path) for path in (run.last, run.best) if path.is_file()))
            if (run.path.parent / ".sweep").is_dir():
                cfg.run_dir = cfg.resume = str(copy_for_extension(run, cfg.max_steps))
            use_best_if_later(RunFolder(cfg.run_dir))
    if alone:
        check_targets(OmegaConf.to_container(saved), run.config, allowed(cfg))
    elif changed := changed_settings(saved, cfg):
        lines = "".join(f"\n  {line}" for line in changed)
        raise InputError(
            f"resume={cfg.resume} continues the run with its own settings; these differ:{lines}\n"
            "Give resume alone or with the settings of the run's own command, or start a new run"
        )
    with open_dict(cfg), open_dict(saved):
        if alone:
            saved.run_dir, saved.resume, saved.allow = cfg.run_dir, cfg.resume, cfg.allow
            saved.trainer = placed(saved.trainer, cfg.trainer, overrides)
            return saved
        cfg.chosen = saved.get("chosen")
        if "teacher_file" in saved:
            cfg.teacher_file = saved.teacher_file
        return cfg  # same result, but paths of data and cache may differ


def keys_of(overrides: Sequence[str]) -> set[str]:
    """Return the keys of overrides, "key=value"."""
    return {override.lstrip("+").partition("=")[0] for override in overrides}


def placed(saved: DictConfig, given: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the trainer's settings of a run, those of `PLACEMENT` replaced by what the command gives."""
    keys = [key.removeprefix("trainer.") for key in keys_of(overrides) & PLACEMENT]
    return OmegaConf.merge(OmegaConf.create(saved), {key: given[key] for key in keys})


def trainer_to_resume(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the trainer's settings with which `config_to_resume` resumes a run, before its files are checked.

    Args:
        cfg: With `run_dir` and `trainer`.
        overrides: Of the command line, "key=value".

    Raises:
        InputError: The run's config is missing or damaged.
    """
    alone = keys_of(overrides) <= {"resume", "allow", "max_steps", "extend"} | PLACEMENT
    return placed(read_config(RunFolder(cfg.run_dir).config).trainer, cfg.trainer, overrides) if alone else cfg.trainer


def is_extended(saved: DictConfig, cfg: DictConfig) -> bool:
    """Return True if `max_steps` and `extend` repeat the last extension of a run, which was interrupted."""
    *_, last = saved.get("extended") or [{}]
    return last.get("max_steps") == cfg.max_steps and cfg.extend in (None, last.get("schedule"))


def extend(saved: DictConfig, cfg: DictConfig, done: int) -> None:
    """Change the config of a run so that it trains more steps; a list `extended` records what was done.

    With begin = 0 or the step of an earlier restart, a schedule of `total_steps` becomes, for `extend=stretch`, one of
    max_steps - begin steps, which applies from the present step on; for `extend=restart`, one of the remaining steps
    that begins at the present step. `step_decay` and schedules without `total_steps` go on unless `extend` is given.

    Args:
        saved: Config of the run; changed in place.
        cfg: `max_steps` and `extend` of the command line.
        done: Steps of the last checkpoint.

    Raises:
        InputError: `max_steps` is not larger, or `extend` is missing or another word.
    """
    steps, how, command = cfg.max_steps, cfg.extend, f"resume={cfg.resume} max_steps={cfg.max_steps}"
    if not isinstance(steps, int) or steps <= saved.max_steps:
        raise InputError(f"{command}: the run has max_steps={saved.max_steps}; give more to extend it, or leave it out")
    if how not in (None, "stretch", "restart"):
        raise InputError(f"extend={how}: choose stretch or restart")
    schedules = [OmegaConf.select(saved, f"model.{name}") for name in ("scheduler", "discriminator_scheduler")]
    schedules = [schedule for schedule in schedules if schedule is not None and "total_steps" in schedule]
    if how is None and any(not schedule._target_.endswith(".step_decay") for schedule in schedules):
        raise InputError(
            f"{command}: the learning rate depends on the length of the run. Add extend=stretch for the schedule of "
            f"{steps} steps from step {done} on, or extend=restart for a new one, with its warm-up, of the remaining "
            f"{steps - done} steps"
        )
    with open_dict(saved):
        for schedule in schedules if how else []:
            if how == "restart":
                schedule.begin = done
            schedule.total_steps = steps - schedule.get("begin", 0)
        saved.extended = [*saved.get("extended", []), {"step": done, "max_steps": steps, "schedule": how}]
        saved.max_steps = saved.data.max_steps = steps


def use_best_if_later(run: RunFolder) -> None:
    """Replace the last checkpoint by the best one if a kill between the two has left that of a later step.

    Other learning rates would train other weights up to that step, and leave a best checkpoint that is not of the run.
    """
    if run.best.is_file() and steps_in(run.best) > steps_in(run.last):
        with replacing(run.last) as temporary:
            shutil.copyfile(run.best, temporary)


def copy_for_extension(cell: RunFolder, max_steps: int) -> Path:
    """Copy what a run resumes from, so that a sweep keeps its cell; return the new directory.

    Raises:
        InputError: The directory exists.
    """
    folder = Path("outputs", f"{cell.path.absolute().name}_to_{max_steps}")
    copy = RunFolder(folder)
    if copy.config.exists():
        raise InputError(f"{folder} exists: the cell was extended before. resume={folder} goes on with it")
    shutil.copytree(cell.checkpoints, copy.checkpoints, dirs_exist_ok=True)
    if cell.metrics.exists():
        shutil.copy(cell.metrics, copy.metrics)
    with replacing(copy.config) as temporary:  # last: a copy that a kill has interrupted has none, and is made again
        shutil.copyfile(cell.config, temporary)
    log.info("the sweep keeps its cell %s: the run is extended in %s", cell.path, folder)
    return folder


def steps_in(checkpoint: Path) -> int:
    """Return the number of batches trained when a checkpoint was written, without importing torch."""
    return _content_of(checkpoint)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


def misfits(saved: dict[str, Any], trained_with: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of a checkpoint's config that a saved config lacks, or that have another kind of value there.

    Values may differ, such as paths of data that was moved.
    """
    found = flatten(saved)
    for key, value in flatten(trained_with).items():
        if key not in found:
            yield f"it has no {key}"
        elif not _same_kind(found[key], value):
            yield f"{key} is {found[key]!r}, there {value!r}"


def _same_kind(value: Any, other: Any) -> bool:
    """Return True if two values, or all items of two lists, are of one type; null, no items and whole numbers fit."""
    if value is None or other is None:
        return True
    if isinstance(value, list) and isinstance(other, list):
        return not other or all(_same_kind(item, other[0]) for item in value)
    return type(value) is type(other) or {type(value), type(other)} == {int, float}


def check_last_checkpoint(run: RunFolder) -> dict[str, Any]:
    """Check the checkpoint from which a run resumes, before torch is imported, and return the config in it.

    Raises:
        InputError: It is damaged; the message says whether the best checkpoint can take its place.
    """
    try:
        return _config_in(run.last)
    except InputError as error:
        try:
            _config_in(run.best)
            way_out = f"{run.best} is whole: copy it to {run.last} and resume again, which repeats the steps since then"
        except InputError:
            way_out = "there is no other whole checkpoint: start the run again"
        raise InputError(f"{error}\n{way_out}") from None


def _content_of(checkpoint: Path) -> dict[str, Any]:
    content = check_archive(checkpoint)
    if not describes_network(content):  # None of an empty file
        raise InputError(f"{checkpoint} is not a checkpoint of this project's train.py")
    return content


def _config_in(checkpoint: Path) -> dict[str, Any]:
    content = _content_of(checkpoint)
    try:
        return OmegaConf.to_container(upgrade(OmegaConf.create(content["hyper_parameters"])))
    except Exception as error:  # such as UnsupportedValueType
        raise InputError(f"{checkpoint} does not hold a config: {reason(error)}") from error
