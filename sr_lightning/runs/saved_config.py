"""Saved configs of runs, including those of earlier versions."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import RENAMED_KEYS, changed_settings, result_settings
from sr_lightning.runs.folder import RunFolder

# Keys added after the first version, with the value that reproduces the behaviour of earlier versions.
ADDED_KEYS = {
    "choices": {"model": None, "data": None, "experiment": None},
    "sweep": None,
    "measures": [],
    "report_images": 0,
    "dry_run": False,
    "prune_after": None,
    "compile": None,
}


def read_config(path: str | Path) -> DictConfig:
    """Read the config of a run from its config.yaml.

    Raises:
        OSError, yaml.YAMLError, omegaconf.errors.OmegaConfBaseException: The file is unreadable.
    """
    return upgrade(OmegaConf.load(path))


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

    >>> upgrade_overrides(["-m", "num_pictures=0", "++report=3", "scale=x2"])
    ['-m', 'num_comparisons=0', '++report_images=3', 'scale=x2']
    """
    names = "|".join(RENAMED_KEYS)
    return [re.sub(rf"^(\+*)({names})(?==)", lambda m: m[1] + RENAMED_KEYS[m[2]], override) for override in overrides]


def config_to_resume(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Return the config of the run to resume. Settings given beside `resume` must equal the run's.

    Args:
        cfg: With `resume` and `run_dir`.
        overrides: Of the command line, "key=value".

    Raises:
        InputError: `resume` is not a run's directory or has no checkpoint, or other settings are given.
    """
    run = RunFolder(cfg.run_dir)
    if not run.config.is_file():
        raise InputError(f"resume={cfg.resume} is not the directory of a run: it has no config.yaml")
    if not run.last.is_file():
        raise InputError(f"resume={cfg.resume}: the run was stopped before its first checkpoint; start it again")
    try:
        saved = read_config(run.config)
        result_settings(saved)
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError, TypeError) as error:
        raise InputError(f"{run.config} cannot be read as the config of a run: {error}; start the run again") from error
    if not [override for override in overrides if not override.lstrip("+").startswith("resume=")]:
        saved.run_dir, saved.resume = cfg.run_dir, cfg.resume
        return saved
    if changed := changed_settings(saved, cfg):
        lines = "".join(f"\n  {line}" for line in changed)
        raise InputError(
            f"resume={cfg.resume} continues the run with its own settings; these differ:{lines}\n"
            "Give resume alone or with the settings of the run's own command, or start a new run"
        )
    with open_dict(cfg):
        cfg.chosen = saved.get("chosen")
    return cfg  # same result, but paths of data and cache may differ
