"""Checks of a training config, before torch is imported."""

import difflib
import hashlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from sr_lightning.cli import resume_override
from sr_lightning.configs import command
from sr_lightning.data.sources import benchmark_folder, check_benchmarks, folder_pairs
from sr_lightning.errors import InputError, find_input_error, raise_all
from sr_lightning.images.formats import max_pixels
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.runs.folder import RunFolder, find_checkpoint
from sr_lightning.runs.result import FINISHED, read_result
from sr_lightning.runs.saved_config import config_to_resume, read_config
from sr_lightning.runs.targets import allowed, missing_part, targets
from sr_lightning.runs.wandb_record import agent_run_id, wandb_mode
from sr_lightning.sweeps.processes import is_cell
from sr_lightning.utils.devices import lacks_gpu

log = logging.getLogger(__name__)

NO_LIMIT = 2**62
SCORED = ("benchmarks", "measures", "num_comparisons", "report_images", "data_root")  # settings of the final scoring
OPTIONAL_NUMBERS = ("comparisons_every", "prune_after")  # may be null
PATHS = ("cache_dir", "data.cache_dir", "data_root")  # Hydra reads 2024 as a number
STOPPING_SCORES = ("val/psnr", "val/ssim")
NUMBERS_OR_NULL = (
    *("data.limit", "data.cutblur", "data.mixup", "data.channel_shuffle", "data.sharpen_hr"),
    *("model.ema", "model.gradient_clip_val", "trainer.gradient_clip_val", "trainer.timeout"),
)
WRONG_KINDS = {  # what cannot stand in place of a value; many settings accept, say, a number or a list
    "true or false": ("a number", "a text", "a list", "a group of settings"),
    "a number": ("true or false", "a text", "a group of settings"),
    "a list": ("true or false", "a text"),
    "a group of settings": ("true or false", "a number", "a text", "a list"),
}
PRECISIONS = (
    *("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true", "32", "64", "16", "bf16"),
    *("transformer-engine", "transformer-engine-float16"),
)
LOGGER_PACKAGES = {  # by class: modules that are imported, and what pip installs (pyproject.toml)
    "sr_lightning.loggers.TensorBoard": (("tensorboard",), '"tensorboard>=2.20,<3"'),
    "sr_lightning.loggers.WandbRun": (("wandb",), '"wandb>=0.31,<0.32"'),
    "sr_lightning.loggers.MLflowRun": (
        ("mlflow", "sqlalchemy", "alembic"),
        '"mlflow-skinny>=3.4,<4" "sqlalchemy>=1.4.42,<2" "alembic>=1.13,<1.14"',
    ),
}
PROFILERS = ("simple", "advanced", "pytorch")
OF_TRAIN = {  # settings of Lightning's trainer that train.py makes from its own, by these
    **dict.fromkeys(("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time"), "max_steps"),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"), "val_every"),
    **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), "logger"),
    **dict.fromkeys(("default_root_dir", "enable_checkpointing", "plugins"), "run_dir and save_every"),
    "use_distributed_sampler": "trainer.devices",
    "log_every_n_steps": "log_every",
    **dict.fromkeys(("limit_train_batches", "limit_val_batches"), "max_steps, or debug=limit"),
    "fast_dev_run": "debug=short",
    "overfit_batches": "debug=overfit",
}
INTEGER_RANGES = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("max_steps", "val_every", "save_every", "save_top_k", "log_every"), (1, NO_LIMIT)),
    "early_stopping.patience": (1, NO_LIMIT),
    **dict.fromkeys(("comparisons_every", "prune_after", "data.batch_size", "data.patch_size"), (1, NO_LIMIT)),
    **dict.fromkeys(("trainer.num_nodes", "trainer.accumulate_grad_batches"), (1, NO_LIMIT)),
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
    check_directory(cfg)
    return cfg


def check_directory(cfg: DictConfig) -> None:
    """Check that a new run, also a trial (`debug=`), does not overwrite another.

    Raises:
        InputError: Its directory has the files of a run.
    """
    run = RunFolder(cfg.run_dir)
    if cfg.resume is not None or is_cell():  # a sweep decides itself which cells begin again
        return
    if cfg.get("debug") and run.config.is_file() and not read_config(run.config).get("debug"):
        raise InputError(f"debug={cfg.debug}: {cfg.run_dir} is the directory of a run; leave hydra.run.dir out")
    if not cfg.get("debug") and (run.last.is_file() or run.best.is_file()):
        go_on = f"{command('train.py')} {resume_override(cfg)}"
        raise InputError(f"{cfg.run_dir} has the checkpoints of a run: go on with {go_on}, or name another directory")


def finished_score(cfg: DictConfig) -> float | None:
    """Return the PSNR in dB of a resumed run that has nothing left to train or to score, with a line in the log.

    None for a run that an agent of W&B starts again: it was killed before W&B had the scores, which are sent now.

    Args:
        cfg: As returned by `checked`.
    """
    run = RunFolder(cfg.run_dir)
    if cfg.resume is None or agent_run_id() is not None or not (run.best.is_file() and run.results.is_file()):
        return None
    try:
        result = read_result(run.path) or {}
    except InputError:  # a damaged result is written again
        return None
    saved = read_config(run.config)
    early = result.get("stopped_early") if result.get("max_steps") == cfg.max_steps else None
    if result.get("status") != FINISHED or (result["steps"] < cfg.max_steps and not early):
        return None
    if any(saved.get(key) != cfg.get(key) for key in SCORED):
        return None
    steps = f"{result['steps']:,}"
    done = f"the run stopped early at step {steps} ({early})" if early else f"all {steps} steps are done"
    log.info(
        "nothing is left to train: %s, best %.2f dB at step %s. To train longer: %s %s max_steps=%d extend=stretch",
        *(done, result["psnr"], result.get("best_step"), command("train.py"), resume_override(cfg)),
        2 * cfg.max_steps,
    )
    return result["psnr"]


def check_settings(cfg: DictConfig) -> None:
    """Check the numbers, names and paths of a config.

    Raises:
        InputError: Names everything that is wrong.
    """
    check_options(cfg)
    given = {o.key_or_group: o for o in overrides_of_command()}
    path = None if cfg.resume is not None else OmegaConf.select(cfg, "model.warm_start")
    raise_all(
        partial(check_kinds, cfg, given.values()),
        partial(check_numbers, cfg),
        partial(check_choices, cfg),
        partial(check_loggers, cfg.get("logger")),
        partial(check_early_stopping, cfg.get("early_stopping")),
        partial(check_device, cfg.trainer),
        max_pixels,
        partial(check_classes, cfg),
        partial(check_measures, cfg.measures),
        partial(check_benchmarks, cfg.benchmarks),
        *(partial(benchmark_folder, cfg.data_root, name) for name in named_benchmarks(cfg, given)),
        partial(check_weights, "model.warm_start", path),
        partial(record_teacher, cfg),
        partial(check_data, cfg.data),
    )


def overrides_of_command() -> list[Override]:
    """Parse the overrides of Hydra's running job; none outside a job."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return OverridesParser.create().parse_overrides(list(overrides))


def named_benchmarks(cfg: DictConfig, given: Mapping[str, Override]) -> list[str]:
    """Return the benchmarks that the command line names; those of conf/ and recipes are scored if they exist."""
    is_list = isinstance(cfg.benchmarks, ListConfig)
    return [str(name) for name in cfg.benchmarks] if is_list and "benchmarks" in given else []


def check_options(cfg: DictConfig) -> None:
    """Check that the chosen options are whole, not parts that other options share.

    Raises:
        InputError: Names an option that is a part.
    """
    for group in ("model", "data"):
        if "_target_" not in cfg[group]:
            raise InputError(
                f"{group}={cfg.choices[group]} is a part that other options share: choose an option of --help"
            )


def check_kinds(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Check that a value of the command line is of the same kind as the one it replaces; Hydra accepts any.

    Raises:
        InputError: Names the values of another kind, and new keys that nothing reads.
    """
    overrides = list(overrides)
    groups = HydraConfig.get().runtime.choices if overrides else ()
    options = [o for o in overrides if o.key_or_group in groups or o.is_delete()]
    values = [o for o in overrides if o not in options and not o.key_or_group.startswith("hydra.")]
    if not values:  # composing takes a tenth of a second
        return
    loader, lines = GlobalHydra.instance().config_loader(), [o.input_line for o in options]
    usual = loader.load_configuration(HydraConfig.get().job.config_name, lines, RunMode.RUN)
    wrong = []
    for override in values:
        key = override.key_or_group
        if "." not in key and key not in usual:
            likely = difflib.get_close_matches(key, [*usual, *(g for g in groups if not g.startswith("hydra/"))], 1)
            wrong.append(f"{key}: there is no such setting{f'; did you mean {likely[0]}?' if likely else ''}")
            continue
        was, value = (OmegaConf.select(each, key, throw_on_missing=False) for each in (usual, cfg))
        is_number = key in PATHS and kind(value) == "a number"
        is_wrong = (
            kind(value) in WRONG_KINDS.get(kind(was), ()) and key != "trainer.devices"
        )  # a number, a list, "auto"
        if is_number or is_wrong:
            wrong.append(f"{key}={override.get_value_element_as_str()}: give {kind(was)}, such as {was}")
        elif value is None and was is not None and not may_be_null(cfg, key):
            wrong.append(f"{key}=null: give {kind(was)}, such as {was}")
    if wrong:
        raise InputError("\n".join(wrong))


def may_be_null(cfg: DictConfig, key: str) -> bool:
    """Return True if the setting of a key may be null, by the signature of the class that it belongs to."""
    parent, _, name = key.rpartition(".")
    if not parent:
        return key in OPTIONAL_NUMBERS
    settings = OmegaConf.select(cfg, parent)
    if not OmegaConf.is_dict(settings) or "_target_" not in settings:
        return True
    parameter = inspect.signature(get_object(settings._target_)).parameters.get(name)
    if parameter is None or parameter.annotation in (parameter.empty, bool) or parameter.default is None:
        return True
    return any(word in str(parameter.annotation) for word in ("None", "Optional", "Any"))


def kind(value: object) -> str:
    """Name the kind of a value of a config; null has none."""
    if value is None:
        return ""
    kinds = {bool: "true or false", int | float: "a number", DictConfig: "a group of settings", ListConfig: "a list"}
    return next((name for type_, name in kinds.items() if isinstance(value, type_)), "a text")


def check_device(trainer: DictConfig) -> None:
    """Check that the devices exist, as far as that is known without torch.

    Raises:
        InputError: A GPU is requested and there is none.
    """
    accelerator, devices = trainer.get("accelerator"), trainer.get("devices")
    if accelerator in ("gpu", "cuda") and lacks_gpu():
        raise InputError(
            f"trainer.accelerator={accelerator}: this machine has no GPU; choose trainer=auto or trainer=cpu"
        )
    if devices in (-1, "-1") and (accelerator == "cpu" or (accelerator == "auto" and lacks_gpu())):
        raise InputError(
            "trainer.devices=-1 means all GPUs, and the run is on the CPU: set trainer.devices=2 and "
            "trainer.accelerator=cpu for two processes on the CPU, or choose trainer=auto"
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
    for key in NUMBERS_OR_NULL:
        value = OmegaConf.select(cfg, key)
        if value is not None and kind(value) != "a number":
            wrong.append(f"{key}={value} (must be a number, or null)")
        elif value is not None and key.endswith("gradient_clip_val") and not value >= 0:  # nor NaN; below 0 it climbs
            wrong.append(f"{key}={value} (must be a number of at least 0, or null)")
    if kind(timeout := cfg.trainer.get("timeout")) == "a number" and not 0 < timeout < NO_LIMIT:
        wrong.append(f"trainer.timeout={timeout} (must be a number of seconds above 0, or null)")
    if wrong:
        raise InputError(f"invalid numbers: {', '.join(wrong)}")


def check_choices(cfg: DictConfig) -> None:
    """Check the settings that have few values.

    Raises:
        InputError: Names those that are none of them.
    """
    wrong = []
    if cfg.graph not in (None, True, False):
        wrong.append(f"graph={cfg.graph}: choose true, false, or null for false")
    if cfg.compile not in (None, True, False):
        wrong.append(f"compile={cfg.compile}: choose true, false, or null to compile if it saves time")
    if str(cfg.trainer.precision) not in PRECISIONS:
        wrong.append(f"trainer.precision={cfg.trainer.precision}: choose auto, or one of {', '.join(PRECISIONS[1:])}")
    profiler = cfg.trainer.get("profiler")
    if cfg.resume is None:  # earlier runs may have them
        given = [key for key in cfg.trainer if key in OF_TRAIN]
        wrong += [f"trainer.{key}: train.py sets it by {OF_TRAIN[key]}; leave it out" for key in given]
    callbacks = cfg.trainer.get("callbacks") or ListConfig([])
    if not (OmegaConf.is_list(callbacks) and all(OmegaConf.is_dict(c) and "_target_" in c for c in callbacks)):
        wrong.append(
            f"trainer.callbacks={callbacks}: give a list of classes, such as [{{_target_: mypackage.Callback}}]"
        )
    if profiler is not None and profiler not in PROFILERS and not OmegaConf.is_dict(profiler):
        wrong.append(f"trainer.profiler={profiler}: choose null, or one of {', '.join(PROFILERS)}")
    if wrong:
        raise InputError("\n".join(wrong))


def check_classes(cfg: DictConfig) -> None:
    """Check that the classes of the config exist, as far as their sources show.

    Raises:
        InputError: Names those that do not.
    """
    named = [(key, target) for key, target in targets(OmegaConf.to_container(cfg)) if isinstance(target, str)]
    if wrong := [f"{key}={target}: {missing}" for key, target in named if (missing := missing_part(target))]:
        raise InputError("\n".join(wrong))


def check_loggers(loggers: DictConfig | None) -> None:
    """Check that loggers are chosen, their packages installed, and WANDB_MODE is one of W&B's modes.

    Raises:
        InputError: Names those that are not, with the way to choose or install them.
    """
    if not loggers:
        return
    if not OmegaConf.is_dict(loggers):
        raise InputError(f"logger={loggers}: choose one of conf/logger, such as logger=wandb, or null")
    plain, wrong = OmegaConf.to_container(loggers), []
    for key, each in [("", plain)] if "_target_" in plain else plain.items():
        if not isinstance(each, dict) or "_target_" not in each:
            wrong.append(f"logger.{key}={each}: choose its logger first, such as logger=wandb")
            continue
        modules, packages = LOGGER_PACKAGES.get(each["_target_"], ((), ""))
        if missing := [module for module in modules if find_spec(module) is None]:
            wrong.append(f"{each['_target_']} needs {', '.join(missing)}: pip install {packages}")
        elif "wandb" in modules:
            wandb_mode()
    if wrong:
        raise InputError("\n".join(wrong))


def check_early_stopping(settings: DictConfig | None) -> None:
    """Check the settings of early stopping but its patience, which is among the numbers.

    Raises:
        InputError: Names those that are wrong.
    """
    if not settings:
        return
    if not OmegaConf.is_dict(settings) or not {"_target_", "monitor", "patience", "min_delta"} <= settings.keys():
        raise InputError(f"early_stopping={settings}: choose early_stopping=psnr first, then change its settings")
    wrong = []
    if settings.monitor not in STOPPING_SCORES:
        wrong.append(f"early_stopping.monitor={settings.monitor}: choose {' or '.join(STOPPING_SCORES)}")
    if kind(settings.min_delta) != "a number" or not 0 <= settings.min_delta < float("inf"):
        wrong.append(f"early_stopping.min_delta={settings.min_delta}: give a number of at least 0, such as 0.01")
    if wrong:
        raise InputError("\n".join(wrong))


def check_weights(key: str, path: object) -> Path | None:
    """Return the file of weights that the value of a key names; None for null.

    Raises:
        InputError: The file does not exist, or the folder has no checkpoint.
    """
    if path is None:
        return None
    try:
        return find_checkpoint(str(path))
    except InputError as error:
        raise InputError(f"{key}={path}: {error}") from None


def record_teacher(cfg: DictConfig) -> None:
    """Record the file of the teacher in the config, absolute path and digest: a resumed run needs the same.

    `model.teacher` remains as it was given, and with it the name of a cell.

    Raises:
        InputError: There is no such file; or it is not the one with which the run began.
    """
    given, recorded = OmegaConf.select(cfg, "model.teacher"), cfg.get("teacher_file")
    if recorded is not None and not (OmegaConf.is_dict(recorded) and recorded.keys() == {"path", "sha256"}):
        raise InputError(f"{RunFolder(cfg.run_dir).config}: teacher_file is not as train.py wrote it: {recorded}")
    moved = recorded is None or not Path(recorded.path).is_file()
    file = check_weights("model.teacher", given if moved else recorded.path)
    if file is None:
        return
    digest = digest_of(file)
    if recorded is not None and digest != recorded.sha256:
        raise InputError(
            f"model.teacher={given}: {file} has changed since the run began, so it cannot be resumed to the same bits: "
            "put the file of then back, or start a new run"
        )
    with open_dict(cfg):
        cfg.teacher_file = {"path": str(file.absolute()), "sha256": digest}


def digest_of(weights: Path) -> str:
    """Return the SHA-256 of a file of weights, of ncnn's .param and .bin together."""
    pair = {weights.with_suffix(suffix) for suffix in (".param", ".bin") if weights.suffix in (".param", ".bin")}
    digest = hashlib.sha256()
    for part in sorted({weights, *filter(Path.is_file, pair)}):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def teacher_options(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments of the module that are not in `cfg.model`: the recorded teacher, and what it may name."""
    recorded = cfg.get("teacher_file")
    return {} if recorded is None else {"teacher": recorded.path, "teacher_allow": allowed(cfg)}


def check_data(data: DictConfig) -> None:
    """Check that the images of all sets exist and pair, unless the run downloads them.

    Raises:
        InputError: Folders or images are missing, or HR and LR files do not pair.
    """
    if data._target_ == "sr_lightning.data.FolderDataModule":
        if OmegaConf.is_missing(data, "hr") or data.hr is None:
            raise InputError("data=folder needs data.hr=DIR, the folder of the HR images")
        folder_pairs(data.hr, data.lr, data.val_hr, data.val_lr, data.val_fraction, data.scale)
    for part in ("train", "val"):
        if data.get(part) is not None:
            raise_all(*(partial(list_images, each) for each in joined_sets(data[part]) if not downloads(each)))


def joined_sets(images: DictConfig) -> list[DictConfig]:
    """List the configs of the sets that are joined, or the one config of images."""
    sets = [each for each in images.values() if OmegaConf.is_dict(each) and "_target_" in each]
    return sets or [images]


def list_images(images: DictConfig) -> None:
    """List the images of a config.

    Raises:
        InputError: Folders or images are missing, or HR and LR files do not pair.
    """
    try:
        instantiate(images)
    except Exception as error:
        if (wrong := find_input_error(error)) is None:
            raise
        raise wrong from None


def downloads(data: DictConfig) -> bool:
    """True if a run with this data config downloads images that are missing."""
    return "download: true" in OmegaConf.to_yaml(data, resolve=True)
