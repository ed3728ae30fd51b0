"""Checks of what train.py is asked to do, before torch is imported."""

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sr_lightning.data.sources import folder_pairs
from sr_lightning.errors import InputError, find_input_error
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.runs.saved_config import config_to_resume

INTEGER_RANGES = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("max_steps", "val_every", "save_every", "log_every"), (1, 2**62)),
    **dict.fromkeys(("comparisons_every", "prune_after", "data.batch_size", "data.patch_size"), (1, 2**62)),
    **dict.fromkeys(("num_comparisons", "report_images", "data.num_workers"), (0, 2**62)),
}


def checked(cfg: DictConfig) -> DictConfig:
    """The config to train with: of the run to resume, or the given one; its numbers, names and paths are checked.

    Raises:
        InputError: Names everything that is wrong.
    """
    if cfg.resume is not None:
        cfg = config_to_resume(cfg, HydraConfig.get().overrides.task)
    problems = []
    path = None if cfg.resume is not None else OmegaConf.select(cfg, "model.warm_start")
    for check, value in (
        (check_numbers, cfg),
        (check_measures, cfg.measures),
        (check_warm_start, path),
        (check_data, cfg.data),
    ):
        try:
            check(value)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return cfg


def check_numbers(cfg: DictConfig) -> None:
    """Check whole numbers and their ranges: Hydra takes any value for any key.

    Raises:
        InputError: Names those that are out of range.
    """
    wrong = []
    for key, (low, high) in INTEGER_RANGES.items():
        value = OmegaConf.select(cfg, key)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_integer and low <= value <= high):
            wrong.append(f"{key}={value} (a whole number from {low} to {high})")
    if wrong:
        raise InputError(f"out of range: {', '.join(wrong)}")
    if cfg.comparisons_every is not None and cfg.comparisons_every % cfg.val_every:
        raise InputError(f"comparisons_every={cfg.comparisons_every}: a multiple of val_every={cfg.val_every}, or null")


def check_warm_start(path: str | None) -> None:
    """Check that the file or run of `model.warm_start` exists.

    Raises:
        InputError: There is no such file, or the folder has no checkpoint.
    """
    if path is not None:
        try:
            find_checkpoint(path)
        except InputError as error:
            raise InputError(f"model.warm_start={path}: {error}") from None


def check_data(data: DictConfig) -> None:
    """List the images of the data set, unless the run downloads them.

    Raises:
        InputError: Missing folders, no images, HR and LR files that do not pair.
    """
    if downloads(data):
        return
    try:
        if "hr" in data:  # FolderDataModule
            folder_pairs(data.hr, data.lr, data.val_hr, data.val_lr, data.val_fraction, data.scale)
        else:
            instantiate(data.train), instantiate(data.val)
    except Exception as error:
        if (wrong := find_input_error(error)) is None:
            raise
        raise wrong from None


def downloads(data: DictConfig) -> bool:
    """True if a run with this data config downloads images that are missing."""
    return "download: true" in OmegaConf.to_yaml(data, resolve=True)
