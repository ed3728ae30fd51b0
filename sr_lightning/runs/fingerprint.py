"""Fingerprint of a run: a hash of all settings that affect its result. Cells of a sweep are named by it."""

import hashlib
import json
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

# Settings of paths, output and devices, which do not affect the result. A cell keeps its name when they change.
# docs/sweeps.md lists them.
IRRELEVANT_SETTINGS = (
    *("run_dir", "resume", "choices", "chosen", "teacher_file", "sweep", "sweep_wait", "dry_run", "prune_after"),
    *("extend", "allow"),
    *("data_root", "cache_dir", "data.cache_dir", "data.residence", "data.num_workers"),
    *("logger", "log_every", "model.log_every", "save_every", "save_top_k", "comparisons_every"),
    *("num_comparisons", "report_images", "benchmarks", "measures"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.profiler"),
    "trainer.timeout",
)


# Earlier names of keys, in saved configs, in recipes of users and on the command line.
RENAMED_KEYS = {"num_pictures": "num_comparisons", "pictures_every": "comparisons_every", "report": "report_images"}


def result_settings(config: DictConfig) -> dict[str, Any]:
    """Select the settings that affect a run's result, {"model.optimizer.lr": 0.003, ...}.

    Paths under data_root are made relative to it, so that data can be moved. Settings that are null or empty are left
    out: a setting that a later version adds, off by default, changes nothing.

    Args:
        config: A run's config, composed by Hydra or read from its config.yaml.
    """

    def relative_to_root(value: Any) -> Any:
        if isinstance(value, list):
            return [relative_to_root(item) for item in value]
        inside = isinstance(value, str) and (value == root or value.startswith(f"{root}/"))
        return f"<data_root>{value.removeprefix(root)}" if inside else value

    root = str(config.data_root)
    plain = {}
    for key in config:  # one by one: some cannot be resolved before a sweep's directory is known
        if key != "hydra" and key not in IRRELEVANT_SETTINGS:
            value = config[key]
            is_node = isinstance(value, DictConfig | ListConfig)
            plain[key] = OmegaConf.to_container(value, resolve=True) if is_node else value
    settings = {key: relative_to_root(value) for key, value in flatten(plain).items() if value not in (None, [])}
    return {key: value for key, value in settings.items() if not _is_irrelevant(key)}


def _is_irrelevant(key: str) -> bool:
    return any(key == setting or key.startswith(f"{setting}.") for setting in (*IRRELEVANT_SETTINGS, *RENAMED_KEYS))


def changed_settings(was: DictConfig, requested: DictConfig) -> list[str]:
    """List the settings that affect the result and differ between two configs, as "key: was 1, requested 2"."""
    old, new = result_settings(was), result_settings(requested)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: was {old.get(key)}, requested {new.get(key)}" for key in keys]


def fingerprint(config: DictConfig) -> str:
    """Hash all settings that affect the result to eight hexadecimal digits."""
    text = json.dumps(result_settings(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def cell_name(config: DictConfig) -> str:
    """Name a cell's directory after its settings, such as espcn_t91_x3_seed0_1f3a9c0b."""
    name = f"{config.name}_{config.choices.data}_x{config.scale}_seed{config.seed}"
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', name)[:80]}_{fingerprint(config)}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten {"a": {"b": 1}} to {"a.b": 1}; lists stay values."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for key, value in config.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}
