"""Checks of a training config, before torch is imported."""

from functools import partial

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sr_lightning.data.sources import check_benchmarks, folder_pairs
from sr_lightning.errors import InputError, find_input_error, raise_all
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.runs.saved_config import config_to_resume

NO_LIMIT = 2**62
OPTIONAL_NUMBERS = ("comparisons_every", "prune_after")  # may be null
PRECISIONS = (
    *("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true", "32", "64", "16", "bf16"),
    *("transformer-engine", "transformer-engine-float16"),
)
INTEGER_RANGES = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("max_steps", "val_every", "save_every", "log_every"), (1, NO_LIMIT)),
    **dict.fromkeys(("comparisons_every", "prune_after", "data.batch_size", "data.patch_size"), (1, NO_LIMIT)),
    **dict.fromkeys(("num_comparisons", "report_images", "data.num_workers"), (0, NO_LIMIT)),
}


def checked(cfg: DictConfig) -> DictConfig:
    """Return the config to train with, checked: that of the run to resume, or the given one.

    Raises:
        InputError: Names everything that is wrong.
    """
    if cfg.resume is not None:
        cfg = config_to_resume(cfg, HydraConfig.get().overrides.task)
    check_settings(cfg)
    return cfg


def check_settings(cfg: DictConfig) -> None:
    """Check the numbers, names and paths of a config.

    Raises:
        InputError: Names everything that is wrong.
    """
    path = None if cfg.resume is not None else OmegaConf.select(cfg, "model.warm_start")
    raise_all(
        partial(check_numbers, cfg),
        partial(check_choices, cfg),
        partial(check_measures, cfg.measures),
        partial(check_benchmarks, cfg.benchmarks),
        partial(check_warm_start, path),
        partial(check_data, cfg.data),
    )


def check_numbers(cfg: DictConfig) -> None:
    """Check that whole numbers are within their ranges; Hydra accepts any value for any key.

    Raises:
        InputError: Names those that are not.
    """
    wrong = []
    for key, (low, high) in INTEGER_RANGES.items():
        value = OmegaConf.select(cfg, key, default=low)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        is_null = value is None and key in OPTIONAL_NUMBERS
        if not is_null and not (is_integer and low <= value <= high):
            allowed = f"of at least {low}" if high == NO_LIMIT else f"from {low} to {high}"
            wrong.append(f"{key}={'null' if value is None else value} (must be a whole number {allowed})")
    every, val_every = cfg.comparisons_every, cfg.val_every
    if isinstance(every, int) and isinstance(val_every, int) and val_every > 0 and every % val_every:
        wrong.append(f"comparisons_every={every} (must be a multiple of val_every={val_every}, or null)")
    if wrong:
        raise InputError(f"invalid numbers: {', '.join(wrong)}")


def check_choices(cfg: DictConfig) -> None:
    """Check the settings that have few values.

    Raises:
        InputError: Names those that are none of them.
    """
    wrong = []
    if cfg.compile not in (None, True, False):
        wrong.append(f"compile={cfg.compile}: choose true, false, or null to compile if it saves time")
    if str(cfg.trainer.precision) not in PRECISIONS:
        wrong.append(f"trainer.precision={cfg.trainer.precision}: choose auto, or one of {', '.join(PRECISIONS[1:])}")
    if wrong:
        raise InputError("\n".join(wrong))


def check_warm_start(path: object) -> None:
    """Check that the file or run of `model.warm_start` exists.

    Raises:
        InputError: The file does not exist, or the folder has no checkpoint.
    """
    if path is not None:
        try:
            find_checkpoint(str(path))
        except InputError as error:
            raise InputError(f"model.warm_start={path}: {error}") from None


def check_data(data: DictConfig) -> None:
    """Check that the images of the data set exist and pair, unless the run downloads them.

    Raises:
        InputError: Folders or images are missing, or HR and LR files do not pair.
    """
    if downloads(data):
        return
    try:
        if data._target_ == "sr_lightning.data.FolderDataModule":
            if OmegaConf.is_missing(data, "hr") or data.hr is None:
                raise InputError("data=folder needs data.hr=DIR, the folder of the HR images")
            folder_pairs(data.hr, data.lr, data.val_hr, data.val_lr, data.val_fraction, data.scale)
        for part in ("train", "val"):
            if data.get(part) is not None:
                instantiate(data[part])
    except Exception as error:
        if (wrong := find_input_error(error)) is None:
            raise
        raise wrong from None


def downloads(data: DictConfig) -> bool:
    """True if a run with this data config downloads images that are missing."""
    return "download: true" in OmegaConf.to_yaml(data, resolve=True)
