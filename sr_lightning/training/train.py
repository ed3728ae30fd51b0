"""One training run: build what the config describes, fit, score the best checkpoint."""

import contextlib
import copy
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PassThroughProfiler

from sr_lightning.callbacks import BestCheckpoint, LastCheckpoint, Progress, Pruning, ValidationPictures
from sr_lightning.checkpoints.checkpoint import AtomicCheckpointIO, load_network, read_checkpoint, steps_done
from sr_lightning.checkpoints.interop import warm_start
from sr_lightning.data import SRDataModule
from sr_lightning.data.datamodule import WholeImages
from sr_lightning.errors import InputError
from sr_lightning.evaluation.scoring import score_run, sets_of_run
from sr_lightning.inference import computes_in_bfloat16
from sr_lightning.loggers.loggers import MetricsFile, finishing, log_results
from sr_lightning.metrics.measure_names import check_measures
from sr_lightning.metrics.protocol import score
from sr_lightning.modules import SRModule
from sr_lightning.runs.fingerprint import changed_settings
from sr_lightning.runs.result import FINISHED, PRUNED, RESULT, write_result
from sr_lightning.sweeps.processes import is_cell
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.malloc import keep_freed_memory

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Train what the config describes and score the best checkpoint.

    Writes into the run directory: config.yaml (resolved), metrics.csv, checkpoints/best.ckpt and last.ckpt,
    results.csv, pictures, and result.json at the very end.

    Returns:
        Mean PSNR of the best checkpoint on the validation images, in dB.

    Raises:
        InputError: Something in the config or the data that the user can mend.
    """
    quieten_lightning()
    keep_freed_memory()
    if cfg.resume is not None:
        cfg = saved_config(cfg)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    run_dir = Path(cfg.run_dir)

    check_numbers(cfg)
    check_measures(cfg.get("measures"))
    pl.seed_everything(cfg.seed, verbose=False)
    module: SRModule = instantiate(cfg.model, _convert_="all")
    module.save_hyperparameters(config)  # checkpoints describe themselves, and the loggers are told
    if cfg.resume is None and module.warm_start is not None:
        warm_start(module.network, module.warm_start)
    datamodule: SRDataModule = instantiate(cfg.data, _convert_="all")
    preflight(module, datamodule)
    sets = sets_of_run(cfg, datamodule.val)
    if module.optimizer is None:  # nothing to train: the bicubic baseline
        psnr, rows, _ = score_run(cfg, module.network.eval(), sets)
        write_result(run_dir, FINISHED, cfg, psnr=psnr, protocol=rows[0]["protocol"], best_step=0, steps=0, seconds=0.0)
        return psnr

    with replacing(run_dir / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.create(config), temporary)
    (run_dir / RESULT).unlink(missing_ok=True)  # it is to be the last thing written
    loggers = [MetricsFile(run_dir / "metrics.csv")]
    if cfg.get("logger"):
        chosen = [cfg.logger] if "_target_" in cfg.logger else cfg.logger.values()
        loggers += [instantiate(logger, save_dir=str(run_dir)) for logger in chosen]
    with finishing(loggers):
        trainer = build_trainer(cfg, module, loggers)
        last = run_dir / "checkpoints" / "last.ckpt"
        if cfg.resume is None or steps_done(read_checkpoint(last)) < cfg.max_steps:
            trainer.fit(module, datamodule, ckpt_path=last if cfg.resume else None)
        if trainer.is_global_zero:
            best = load_network(run_dir / "checkpoints" / "best.ckpt")
            psnr, rows, shown = score_run(cfg, best.network, sets)
            outcome = what_came_of_it(cfg, read_checkpoint(last), psnr, best.step, rows[0]["protocol"])
            log_results(loggers, rows, shown.pictures, shown.crops, outcome)
            write_result(run_dir, cfg=cfg, **outcome)
            return psnr
        best_score = trainer.checkpoint_callback.best_model_score  # None where the latest is the best
        return module.latest["val/psnr"] if best_score is None else best_score.item()


def what_came_of_it(
    cfg: DictConfig, last: dict[str, Any], psnr: float, best_step: int, protocol: str
) -> dict[str, Any]:
    """What result.json says beyond the config.

    Raises:
        FloatingPointError: The score is no number.
    """
    if math.isnan(psnr):
        raise FloatingPointError(f"the score of {cfg.run_dir} is {psnr}: try a smaller learning rate")
    steps = steps_done(last)
    return {
        "status": FINISHED if steps >= cfg.max_steps else PRUNED,
        "psnr": psnr,
        "protocol": protocol,
        "best_step": best_step,
        "steps": steps,
        "seconds": last["callbacks"].get("Progress", {}).get("seconds"),  # None of runs begun before they were counted
    }


def check_numbers(cfg: DictConfig) -> None:
    """Hydra takes any value for any key; these must be whole numbers.

    Raises:
        InputError: Names those that are not, or are out of range.
    """
    ranges = {"seed": (0, 2**32 - 1)} | dict.fromkeys(("max_steps", "val_every", "save_every", "log_every"), (1, 2**62))
    if cfg.pictures_every is not None:
        ranges["pictures_every"] = (1, 2**62)
    if "report" in cfg:  # not in runs of before
        ranges["report"] = (0, 2**62)
    if cfg.get("prune_after") is not None:
        ranges["prune_after"] = (1, 2**62)
    wrong = [
        f"{key}={cfg[key]} (a whole number from {low} to {high})"
        for key, (low, high) in ranges.items()
        if not isinstance(cfg[key], int) or not low <= cfg[key] <= high
    ]
    if wrong:
        raise InputError(f"out of range: {', '.join(wrong)}")
    if cfg.pictures_every is not None and cfg.pictures_every % cfg.val_every:
        raise InputError(f"pictures_every={cfg.pictures_every}: a multiple of val_every={cfg.val_every}, or null")


def build_trainer(cfg: DictConfig, module: SRModule, loggers: list[Logger]) -> pl.Trainer:
    """The Lightning trainer: the whole training is one epoch of `max_steps` batches, which makes resuming exact."""
    checkpoints = Path(cfg.run_dir) / "checkpoints"
    best = BestCheckpoint(
        checkpoints,
        "best",
        monitor=module.monitor,
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    last = LastCheckpoint(checkpoints / "last.ckpt", cfg.save_every, cfg.max_steps)
    callbacks = [Progress(cfg.max_steps, cfg.data.batch_size), best, last]
    if cfg.pictures_every is not None:
        folder = Path(cfg.run_dir, "pictures", "validation")
        callbacks.append(ValidationPictures(folder, cfg.pictures_every, cfg.num_pictures))
    if is_cell() and cfg.get("prune_after") is not None:
        callbacks.append(Pruning(cfg.run_dir, cfg.prune_after))
    accelerator = cfg.trainer.accelerator
    if accelerator == "auto":  # Apple's GPUs compute no float64, which scores are summed in
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    return instantiate(
        cfg.trainer,
        _convert_="all",
        accelerator=accelerator,
        precision=choose_precision(cfg.trainer.precision, accelerator),
        max_epochs=1,
        val_check_interval=min(cfg.val_every, cfg.max_steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0 if module.warm_start is None else -1,  # -1: what it starts from is validated
        use_distributed_sampler=False,  # the sampler gives each process its part
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=cfg.run_dir,
        **({} if "profiler" in cfg.trainer else {"profiler": Unprofiled()}),
        **({} if module.automatic_optimization else alternating(cfg)),
    )


def alternating(cfg: DictConfig) -> dict[str, Any]:
    """Trainer settings of a module that steps its optimizers itself.

    Raises:
        InputError: A setting that such a module cannot obey.
    """
    if cfg.trainer.get("accumulate_grad_batches", 1) != 1:
        raise InputError(
            "trainer.accumulate_grad_batches: a step is a batch here; model.accumulate=N takes a batch in N parts"
        )
    settings = {"gradient_clip_val": None}  # the module clips, by model.gradient_clip_val
    if cfg.trainer.devices != 1 and cfg.trainer.get("strategy", "auto") in ("auto", "ddp"):
        settings["strategy"] = "ddp_find_unused_parameters_true"  # each backward pass leaves the other network out
    return settings


class Unprofiled(PassThroughProfiler):
    """No profiler, at a tenth less of Lightning's cost per step: its own builds forty generators to measure nothing."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> contextlib.nullcontext:
        return self.nothing


def choose_precision(precision: str, accelerator: str) -> str:
    """What "auto" means: bf16-mixed where the processor computes in bfloat16, 32-true elsewhere."""
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if computes_in_bfloat16("cuda" if on_gpu else "cpu") else "32-true"


def preflight(module: SRModule, datamodule: SRDataModule) -> None:
    """Send a part of the first batch and of a validation image through the whole path, before step 1.

    Raises:
        InputError: Validation images are too small to be scored, or something else the user can mend.
    """
    datamodule.setup()
    scale, store = module.network.scale, datamodule.val_store
    least = 11 + 2 * module.protocol.border_for(scale)  # SSIM's window
    if small := [name for name, size in zip(store.names, store.hr_sizes, strict=True) if min(size) < least]:
        raise InputError(f"validation images need {least} x {least} pixels to be scored; smaller: {', '.join(small)}")
    part = max(64, math.ceil(least / scale))  # LR pixels: enough to find faults, and no minutes of a large network
    image = datamodule.to_float(WholeImages(store)[0])
    module = copy.deepcopy(module)  # batch norm keeps its statistics
    with torch.no_grad():
        sr = module.eval()(image["lr"][..., :part, :part])
        score(sr, image["hr"][..., : part * scale, : part * scale], scale, module.protocol)
        if module.loss is not None:
            batch = datamodule.to_float(datamodule.train_batches(on_device=False)[0])
            module.train().loss_of({name: images[:1] for name, images in batch.items()})


def saved_config(cfg: DictConfig) -> DictConfig:
    """The config of the run to be resumed. Settings given with `resume` must be the run's own.

    Raises:
        InputError: `resume` is no run directory, holds no checkpoint, or other settings are asked for.
    """
    run_dir = Path(cfg.run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise InputError(f"resume={cfg.resume} is not the directory of a run: it has no config.yaml")
    if not (run_dir / "checkpoints" / "last.ckpt").is_file():
        raise InputError(f"resume={cfg.resume}: the run was stopped before its first checkpoint; start it again")
    saved = OmegaConf.load(run_dir / "config.yaml")
    given = [o for o in HydraConfig.get().overrides.task if not o.lstrip("+").startswith("resume=")]
    if not given:
        saved.run_dir, saved.resume = cfg.run_dir, cfg.resume
        return saved
    if changed := changed_settings(saved, cfg):
        lines = "".join(f"\n  {line}" for line in changed)
        raise InputError(
            f"resume={cfg.resume} goes on with the run's own settings; these differ:{lines}\n"
            "Give resume alone, or all the words of the run's own command, or start a new run"
        )
    return cfg  # the same settings, with data or cache in another place perhaps


def quieten_lightning() -> None:
    """Lightning's hints that do not apply: data is in memory, a run's folder may hold its earlier part."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*",
        ".*LeafSpec.*",
        ".*logging interval.*",
    ):
        warnings.filterwarnings("ignore", message)
