"""Construction of the Lightning trainer of a run."""

import contextlib
import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy

from sr_lightning.callbacks import BestCheckpoint, LastCheckpoint
from sr_lightning.errors import InputError
from sr_lightning.modules import SRModule
from sr_lightning.runs.folder import RunFolder
from sr_lightning.training.epoch_loop import GroupedEpochLoop
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.devices import best_device


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that writes beside the target and renames: a kill leaves the old or the new file, never a part.

    Lightning's own writes to the system's temporary folder first, and from there a rename may be a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class NoProfiler(PassThroughProfiler):
    """Profiler that does nothing; Lightning's default creates forty generators per step, a tenth of its overhead."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> contextlib.nullcontext:
        return self.nothing


class FirstSteps(PyTorchProfiler):
    """Profiler of torch's operations in training steps 3 to 5; with validations it records all steps between them."""

    STEP_FUNCTIONS = {"training_step"}  # noqa: RUF012  as in Lightning


PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": FirstSteps}


def build_trainer(
    settings: DictConfig,
    module: SRModule,
    loggers: Sequence[Logger],
    callbacks: Sequence[pl.Callback],
    *,
    run_dir: str | Path,
    max_steps: int,
    val_every: int,
    save_every: int,
) -> pl.Trainer:
    """Build the Lightning trainer. The training is one epoch of `max_steps` batches, which makes resuming exact.

    Args:
        settings: `cfg.trainer`, with the chosen precision instead of "auto"; its `callbacks` are called first.
        module: Decides which metric is monitored and whether Lightning steps the optimizers.
        loggers: Receive every logged value.
        callbacks: Called in this order; Lightning calls those that write checkpoints last.
        run_dir: Contains checkpoints/.
        max_steps: Batches of the whole training.
        val_every: Batches between two validations.
        save_every: Batches between two saves of last.ckpt.

    Raises:
        InputError: The module does not support a setting.
    """
    run = RunFolder(run_dir)
    best = BestCheckpoint(
        run.checkpoints,
        "best",
        monitor=module.monitor,
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    last = LastCheckpoint(run.last, save_every, max_steps)
    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if best_device().type == "cuda" else "cpu"
    arguments = dict(
        accelerator=accelerator,
        max_epochs=1,
        val_check_interval=min(val_every, max_steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0 if module.warm_start is None else -1,  # -1: validate the initial weights
        use_distributed_sampler=False,  # the samplers split the data over processes
        logger=list(loggers),
        callbacks=[*instantiate(settings.get("callbacks") or []), *callbacks, best, last],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
        **profiler_of(settings.get("profiler"), run),
        **({} if module.automatic_optimization else gan_trainer_settings(settings)),
    )
    try:
        known = {key: value for key, value in settings.items() if key != "timeout"}
        trainer = instantiate(known, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | ValueError | TypeError):
            raise InputError(f"trainer: {error.__cause__}") from error
        raise
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # noqa: SLF001  it broadcasts amid a step
    if settings.get("timeout") is not None:
        trainer.strategy._timeout = timedelta(seconds=settings.timeout)  # noqa: SLF001  whatever strategy was chosen
    if module.record is not None and isinstance(trainer.strategy, DDPStrategy):
        # A recorded step averages gradients itself; DistributedDataParallel would wait for a backward pass of its own
        trainer.strategy.configure_ddp = partial(_sync_module_states, module)  # and nothing more
    GroupedEpochLoop.install(trainer, module.log_every, val_every, save_every)
    return trainer


def profiler_of(setting: str | DictConfig | None, run: RunFolder) -> dict[str, Any]:
    """Return the trainer's argument `profiler`, which writes into the run's directory; none for a profiler by class."""
    if isinstance(setting, DictConfig):
        return {}
    return {"profiler": PROFILERS[setting](run.path, "profile") if setting else NoProfiler()}


def gan_trainer_settings(settings: DictConfig) -> dict[str, Any]:
    """Return the trainer settings of a module that steps its optimizers itself.

    Raises:
        InputError: Such a module does not support a setting.
    """
    if settings.get("accumulate_grad_batches", 1) != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches={settings.accumulate_grad_batches} does not work with a GAN: leave it "
            "out, and set model.accumulate=N to split each batch into N parts"
        )
    gan_settings = {"gradient_clip_val": None}  # the module clips, by model.gradient_clip_val
    if settings.devices != 1 and settings.get("strategy", "auto") in ("auto", "ddp"):
        gan_settings["strategy"] = "ddp_find_unused_parameters_true"  # each backward pass leaves the other network out
    return gan_settings


def silence_lightning() -> None:
    """Silence hints of Lightning that do not apply: data is in memory, a resumed run's folder is not empty."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*",
        ".*LeafSpec.*",
        ".*logging interval.*",
    ):
        warnings.filterwarnings("ignore", message)
