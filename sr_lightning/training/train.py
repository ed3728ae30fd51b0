"""One training run: build its parts from the config, fit, score the best checkpoint."""

import copy
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.callbacks import Overfit, Progress, Pruning, TopCheckpoints, ValidationPictures
from sr_lightning.callbacks.early_stopping import condition, stopped_early
from sr_lightning.checkpoints.checkpoint import is_trained, load_network, read_checkpoint, steps_done
from sr_lightning.checkpoints.interop import warm_start
from sr_lightning.data import SRDataModule
from sr_lightning.data.datamodule import WholeImages
from sr_lightning.errors import InputError
from sr_lightning.evaluation.evaluate import score_run, sets_of_run
from sr_lightning.evaluation.images import EvaluationImages
from sr_lightning.evaluation.scoring import ScoredModel, Scorer
from sr_lightning.leaderboard.scores import cache_scores
from sr_lightning.loggers import MetricsCSV, Outcome, closing
from sr_lightning.loggers.base import RunLogger, run_loggers
from sr_lightning.metrics.protocol import all_left_out, differs_from_bicubic, score
from sr_lightning.metrics.psnr_ssim import WINDOW
from sr_lightning.modules import SRModule
from sr_lightning.modules.recorded_step import cuda_graph
from sr_lightning.network_costs import count, lr_size
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.provenance import kills_in_a_row, recorded
from sr_lightning.runs.result import FINISHED, PRUNED, write_result
from sr_lightning.runs.wandb_record import agent_run_id
from sr_lightning.sweeps.processes import is_cell, process_rank
from sr_lightning.training.checks import teacher_options
from sr_lightning.training.choices import choose
from sr_lightning.training.introduction import BicubicScore, conclude, device_name, introduce
from sr_lightning.training.memory import named_shortage
from sr_lightning.training.nodes import named_loss
from sr_lightning.training.trainer import build_trainer, silence_lightning
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.cores import limit_threads
from sr_lightning.utils.malloc import keep_freed_memory
from sr_lightning.utils.signals import postponed

log = logging.getLogger(__name__)

MOST_KILLS = 3  # of a run of W&B's agents, without a step in between


def train(cfg: DictConfig) -> float:
    """Run the training that a checked config describes, and score the best checkpoint.

    Writes into the run directory: config.yaml (resolved), provenance.json, metrics.csv, checkpoints/best.ckpt and
    last.ckpt, results.csv, pictures, report.html, and result.json last.

    Args:
        cfg: As returned by `checks.checked`.

    Returns:
        Mean PSNR of the best checkpoint on the validation images, in dB.

    Raises:
        InputError: Bad user input in the config or the data.
    """
    silence_lightning()
    keep_freed_memory()
    limit_threads()
    scorer = Scorer.from_config(cfg)  # before the seed: networks of measures may draw random numbers
    pl.seed_everything(cfg.seed, verbose=False)
    module: SRModule = instantiate(cfg.model, _convert_="all", **teacher_options(cfg))
    if cfg.resume is None and module.warm_start is not None:
        warm_start(module.network, module.warm_start)
    datamodule: SRDataModule = instantiate(cfg.data, _convert_="all")
    with named_shortage(cfg, module):
        preflight(module, datamodule)
    sets = sets_of_run(datamodule.val, cfg.benchmarks, cfg.data_root, cfg.scale)
    scorer.check_sets(sets)
    images = EvaluationImages(cfg.run_dir, cfg.num_comparisons, cfg.report_images)
    if module.optimizer is None:  # nothing to train: the bicubic baseline
        psnr, rows = score_run(scorer, ScoredModel(str(cfg.name), module.network.eval()), sets, images)
        facts = {"protocol": rows[0]["protocol"], "bicubic": psnr, "best_step": 0, "steps": 0, "seconds": 0.0}
        write_result(cfg.run_dir, FINISHED, cfg, psnr=psnr, **facts)
        return psnr

    run, bicubic = RunFolder(cfg.run_dir), BicubicScore(datamodule, module.protocol)
    callbacks = build_callbacks(cfg, run, bicubic)
    with open_dict(cfg), named_shortage(cfg, module):
        cfg.chosen = choose(cfg, module, callbacks)
    if cfg.chosen.compile:
        module.compile_training()
    if cfg.chosen.graph:
        module.record = cuda_graph
    module.save_hyperparameters(OmegaConf.to_container(cfg, resolve=True))  # a checkpoint describes its network
    start_run_folder(cfg, run)
    done, trained = (0, False) if cfg.resume is None else progress(run.last, cfg.max_steps)
    if process_rank() == 0:
        introduce(cfg, module, datamodule, sets, bicubic.known(), done)
    loggers = build_loggers(cfg.get("logger"), run, done)
    facts = {"device": device_name(cfg), "threads": torch.get_num_threads(), "step": done}
    with recorded(run.path, **facts) if process_rank() == 0 else nullcontext([]) as parts, closing(loggers):
        module.provenance = parts
        trainer = build_trainer(
            OmegaConf.merge(cfg.trainer, {"precision": cfg.chosen.precision}),
            module,
            loggers,
            callbacks,
            **{key: cfg[key] for key in ("run_dir", "max_steps", "val_every", "save_every")},
        )
        log_costs(cfg, run_loggers(loggers))
        if agent_run_id() is not None and process_rank() == 0:
            check_kills(parts)
        if not trained:
            try:
                with postponed(), named_loss(cfg.trainer.get("timeout")), named_shortage(cfg, module):
                    trainer.fit(module, datamodule, ckpt_path=run.last if cfg.resume else None)
            finally:
                module.recorded = None  # its graph holds memory, and NCCL waits at exit until it is released
        if not trainer.is_global_zero:
            best_score = trainer.checkpoint_callback.best_model_score  # None if the latest is the best
            return module.latest["val/psnr"] if best_score is None else best_score.item()
        best = load_network(run.best, allow=cfg.model.network._target_)  # the checks of the config allow it
        psnr, rows = score_run(scorer, ScoredModel(str(cfg.name), best.network, run.best, best.step), sets, images)
        cache_scores(cfg, scorer, {name: pairs for name, pairs in sets.items() if name != "held-out"}, rows)
        result = run_outcome(run, cfg, psnr, best.step, rows[0]["protocol"]) | {"bicubic": bicubic.value()}
        for logger in run_loggers(loggers):
            gain = {"gain": psnr - result["bicubic"]}
            logger.log_outcome(Outcome(rows, images.comparisons, images.crops, result | gain))
        write_result(run.path, cfg=cfg, **result)
        conclude(cfg, result)
        return psnr


@rank_zero_only
def log_costs(cfg: DictConfig, loggers: Sequence[RunLogger]) -> None:
    """Send the network's parameters, and its multiply-adds for an output of 1280x720, to the loggers' summaries."""
    if loggers:
        network = OmegaConf.to_container(cfg.model.network, resolve=True)
        costs = count(network, *lr_size(cfg.scale), allow=network["_target_"])
        for logger in loggers:
            logger.log_summary({"parameters": costs.parameters, "multiply_adds": costs.multiply_adds})


def check_kills(parts: Sequence[dict[str, Any]]) -> None:
    """End a run that W&B would otherwise give to its agents again and again.

    Raises:
        InputError: The parts of the run before this one were killed before they had saved a step.
    """
    if (kills := kills_in_a_row(parts)) >= MOST_KILLS:
        raise InputError(
            f"the run was killed {kills} times in a row after step {parts[-1]['step']}, before it had saved a later "
            "one: out of memory? Choose a smaller network, data.batch_size or data.patch_size"
        )


def start_run_folder(cfg: DictConfig, run: RunFolder) -> None:
    """Write config.yaml, and remove the result.json of an earlier part of the run; in further processes do nothing."""
    if process_rank() > 0:
        return
    for left in run.path.glob("**/.*.[0-9]*.tmp"):  # by a killed process of an earlier version
        left.unlink(missing_ok=True)
    with replacing(run.config) as temporary:
        OmegaConf.save(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), temporary)
    run.result.unlink(missing_ok=True)


def progress(checkpoint: Path, max_steps: int) -> tuple[int, bool]:
    """Return the number of batches trained when a checkpoint was written, and whether the training is complete."""
    content = read_checkpoint(checkpoint)
    return steps_done(content), is_trained(content, max_steps) or ended_early(content, max_steps)


def ended_early(checkpoint: dict[str, Any], max_steps: int) -> bool:
    """Return True if early stopping has ended the run of a checkpoint, and it was not extended since."""
    same_length = checkpoint["hyper_parameters"].get("max_steps") == max_steps
    return same_length and steps_done(checkpoint) < max_steps and stopped_early(checkpoint)


def build_loggers(settings: DictConfig | None, run: RunFolder, done: int) -> list[Logger]:
    """Build the logger of metrics.csv, which goes on after `done` steps, and those of `conf/logger`: one or several."""
    loggers: list[Logger] = [MetricsCSV(run.metrics, done)]
    if settings:
        chosen = [settings] if "_target_" in settings else settings.values()
        loggers += [instantiate(logger, save_dir=str(run.path)) for logger in chosen]
    return loggers


def build_callbacks(cfg: DictConfig, run: RunFolder, bicubic: BicubicScore) -> list[pl.Callback]:
    """Build the progress callback and those that the config enables."""
    callbacks: list[pl.Callback] = [Progress(cfg.max_steps, cfg.data.batch_size, bicubic.value)]
    if cfg.comparisons_every is not None:
        callbacks.append(ValidationPictures(run.pictures / "validation", cfg.comparisons_every, cfg.num_comparisons))
    if cfg.get("debug") == "overfit":
        callbacks.append(Overfit())
    if cfg.get("early_stopping"):
        callbacks.append(instantiate(cfg.early_stopping))
    if is_cell() and cfg.prune_after is not None:
        callbacks.append(Pruning(run.path, cfg.prune_after))
    if cfg.save_top_k > 1:
        callbacks.append(TopCheckpoints(run.checkpoints, cfg.save_top_k))
    return callbacks


def run_outcome(run: RunFolder, cfg: DictConfig, psnr: float, best_step: int, protocol: str) -> dict[str, Any]:
    """Return the fields of result.json that are not in the config.

    Raises:
        FloatingPointError: The score is NaN.
    """
    if math.isnan(psnr):
        raise FloatingPointError(f"the score of {run.path} is {psnr}: try a smaller learning rate")
    last = read_checkpoint(run.last)
    steps, early = steps_done(last), ended_early(last, cfg.max_steps)
    return {
        "status": FINISHED if steps >= cfg.max_steps or early else PRUNED,
        "psnr": psnr,
        "protocol": protocol,
        "best_step": best_step,
        "steps": steps,
        "seconds": last["callbacks"].get("Progress", {}).get("seconds"),  # None in checkpoints of earlier versions
    } | ({"stopped_early": condition(cfg.early_stopping)} if early else {})


def preflight(module: SRModule, datamodule: SRDataModule) -> None:
    """Run parts of a validation image and of the first batch through network, scoring and loss, before step 1.

    Raises:
        InputError: There is no loss, validation images are too small to be scored or too flat, or other bad user input.
    """
    datamodule.check_channels(module.network.num_channels)
    if module.loss is None and module.optimizer is not None:
        raise InputError("model.loss=null: a network learns from a loss, such as model.loss._target_=torch.nn.L1Loss")
    datamodule.setup()
    scale, store = module.network.scale, datamodule.val_store
    least = WINDOW + 2 * module.protocol.border_for(scale)
    if small := [name for name, size in zip(store.names, store.hr_sizes, strict=True) if min(size) < least]:
        raise InputError(
            f"validation images need at least {least} x {least} pixels to be scored; remove {', '.join(small)}"
        )
    images = (datamodule.to_float(WholeImages(store)[i]) for i in range(len(store)))
    if not any(differs_from_bicubic(image["hr"], scale, module.protocol).item() for image in images):
        raise InputError(f"validation images: {all_left_out(len(store))}")
    part = max(64, math.ceil(least / scale))  # LR pixels: enough to find faults, and fast for large networks
    image = datamodule.to_float(WholeImages(store)[0])
    module = copy.deepcopy(module)  # leaves the batch norm statistics unchanged
    with torch.no_grad():
        sr = module.eval()(image["lr"][..., :part, :part])
        score(sr, image["hr"][..., : part * scale, : part * scale], scale, module.protocol)
        if module.loss is not None:
            batch = datamodule.to_float(datamodule.train_batches(on_device=False)[0])
            module.train().loss_of({name: images[:1] for name, images in batch.items()})
