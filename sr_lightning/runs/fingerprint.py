"""Cells: which settings make one, and what its directory is called."""

import hashlib
import json
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

# Settings that say where things lie, what is shown or kept, and on which devices, but not what comes out. A cell that
# is found again with others of these is the same cell.
NO_BEARING = (
    *("run_dir", "resume", "choices", "sweep", "dry_run", "prune_after"),
    *("data_root", "cache_dir", "data.cache_dir", "data.residence", "data.num_workers"),
    *("logger", "log_every", "model.log_every", "save_every", "pictures_every"),
    *("num_pictures", "report", "benchmarks", "measures"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
)


def bearing_settings(config: DictConfig) -> dict[str, Any]:
    """The settings on which a run's result depends, {"model.optimizer.lr": 0.003, ...}.

    Files under data_root are named relative to it, so that data may be moved. What is null or empty is left out: a
    setting that a later version adds, off by default, changes nothing.

    Args:
        config: Of a run, composed by Hydra or read from its config.yaml.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        inside = isinstance(value, str) and (value == root or value.startswith(f"{root}/"))
        return f"<data_root>{value.removeprefix(root)}" if inside else value

    root = str(config.data_root)
    plain = {}
    for key in config:  # one by one, as not all can be resolved before a sweep's directory is known
        if key != "hydra" and key not in NO_BEARING:
            value = config[key]
            is_node = isinstance(value, DictConfig | ListConfig)
            plain[key] = OmegaConf.to_container(value, resolve=True) if is_node else value
    settings = {key: moved(value) for key, value in flatten(plain).items() if value not in (None, [])}
    return {key: value for key, value in settings.items() if not _listed(key)}


def _listed(key: str) -> bool:
    return any(key == listed or key.startswith(f"{listed}.") for listed in NO_BEARING)


def changed_settings(was: DictConfig, asked: DictConfig) -> list[str]:
    """The settings with a bearing on the result in which two configs differ, each "key: was 1, asked 2"."""
    old, new = bearing_settings(was), bearing_settings(asked)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: was {old.get(key)}, asked {new.get(key)}" for key in keys]


def fingerprint(config: DictConfig) -> str:
    """Eight hexadecimal digits that stand for all settings with a bearing on the result."""
    text = json.dumps(bearing_settings(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def cell_name(config: DictConfig) -> str:
    """A directory's name that says what a cell is, such as espcn_t91_x3_seed0_1f3a9c0b."""
    words = f"{config.name}_{config.choices.data}_x{config.scale}_seed{config.seed}"
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', words)[:80]}_{fingerprint(config)}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for key, value in config.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}
