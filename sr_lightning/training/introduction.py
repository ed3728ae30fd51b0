"""Messages of a run before its first step and after its last one."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from sr_lightning.callbacks.early_stopping import condition
from sr_lightning.cli import allow_override, hydra_value, resume_override
from sr_lightning.configs import command
from sr_lightning.data import SRDataModule
from sr_lightning.data.datamodule import WholeImages
from sr_lightning.data.sources import Pair, benchmark_names
from sr_lightning.evaluation.scoring import output_to_score
from sr_lightning.metrics.protocol import Protocol, differs_from_bicubic, score
from sr_lightning.modules import SRModule
from sr_lightning.networks import Bicubic
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.targets import foreign_packages
from sr_lightning.sweeps.invocation import relative
from sr_lightning.sweeps.processes import is_cell
from sr_lightning.training.choices import device_of
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.messages import counted
from sr_lightning.utils.timings import processor

log = logging.getLogger(__name__)

DEBUG = {
    "overfit": "the first batch at every step; its PSNR, train/psnr, must climb",
    "short": "everything once, in few steps",
    "limit": "a part of the images",
}
AT_ONCE = 20_000_000  # HR pixels of validation images that bicubic enlarges in a second; more are scored later


def introduce(
    cfg: DictConfig,
    module: SRModule,
    datamodule: SRDataModule,
    sets: Mapping[str, Sequence[Pair]],
    bicubic: float | None,
    done: int,
) -> None:
    """Log run, network, data, steps, device and bicubic's score, a line each.

    Args:
        cfg: The run's config, with `chosen`.
        module: The module to train.
        datamodule: Its data, set up.
        sets: The sets that are scored at the end, by name.
        bicubic: PSNR of bicubic on the validation images in dB, if it is known.
        done: Batches that a resumed run has behind it.
    """
    network, side = module.network, datamodule.patch_size
    radius = network.receptive_radius
    others = [child for name, child in module.named_children() if name == "discriminator"]
    discriminator = "".join(f", against a discriminator of {parameters(child)}" for child in others)
    benchmarks = [f"{name} ({len(pairs)})" for name, pairs in sets.items() if name != "held-out"]
    lr = "from files" if all(pair.lr for pair in datamodule.train) else f"made by {lr_name(datamodule)}"
    begun = f", {done:,} of them done" if done else ""
    until = f"; fewer after {condition(cfg.early_stopping)}" if cfg.get("early_stopping") else ""
    why = "as the run began" if cfg.resume else "the fastest here" if cfg.trainer.precision == "auto" else "as set"
    threads = torch.get_num_threads()
    form = f"{'compiled, ' if cfg.chosen.compile else ''}{'as a CUDA graph, ' if cfg.chosen.graph else ''}"
    facts = {
        "run": relative(RunFolder(cfg.run_dir).path),
        **({"debug": f"{DEBUG.get(cfg.debug, cfg.debug)}. Not a result to compare"} if cfg.get("debug") else {}),
        "network": f"{cfg.name} x{network.scale}: {type(network).__name__} on "
        f"{'luma' if network.num_channels == 1 else 'RGB'}, {parameters(network)}, sees "
        f"{'the whole image' if radius is None else f'{radius} LR pixels around'}{discriminator}",
        "data": f"{cfg.choices.data}: {len(datamodule.train_store)} images to train on, {len(datamodule.val_store)} to "
        f"validate on, {', '.join(benchmarks) or 'no benchmark'} to score at the end; LR {lr}",
        "steps": f"{cfg.max_steps:,}{begun}, of {datamodule.batch_size} patches of {side}x{side} LR pixels; "
        f"seed {cfg.seed}{until}",
        "device": f"{device_name(cfg)}, {cfg.chosen.precision} ({why}), {form}{counted(threads, 'thread')}",
        "bicubic": "scored in the first validation"
        if bicubic is None
        else f"{bicubic:.2f} dB on the validation images, the value to beat",
    }
    if profiler := cfg.trainer.get("profiler"):
        name = profiler if isinstance(profiler, str) else "your own"
        facts["profile"] = f"{name}, written at the end; it costs time, and short steps are not taken in groups"
    for name, text in facts.items():
        log.info("%-8s %s", name, text)


def conclude(cfg: DictConfig, result: Mapping[str, Any]) -> None:
    """Log the outcome of a run, where its files are, and the commands that use it.

    Args:
        cfg: The run's config.
        result: As written to result.json.
    """
    run_dir = relative(RunFolder(cfg.run_dir).path)
    spent = tqdm.format_interval(result["seconds"] or 0)
    if "stopped_early" in result:
        log.info("ended    early, at step %d of %d: %s", result["steps"], cfg.max_steps, result["stopped_early"])
    log.info(
        "best     %.2f dB on the validation images at step %d, %+.2f dB over bicubic, trained in %s",
        *(result["psnr"], result["best_step"], result["psnr"] - result["bicubic"], spent),
    )
    profile = sorted(path.name for path in RunFolder(cfg.run_dir).path.glob("fit-profile*"))
    log.info("files    %s: %s", run_dir, ", ".join(["checkpoints/best.ckpt", "metrics.csv", "results.csv", *profile]))
    if is_cell() or cfg.get("debug"):
        return
    allowed = [f" --allow {package}" for package in foreign_packages(OmegaConf.to_container(cfg))]
    compared = [f"runs=[{hydra_value(str(run_dir))},OTHER_RUN]", "benchmarks=[Set5]", *allow_override(cfg)]
    fetched = "" if "Set5" in benchmark_names(cfg.data_root) else "python -m sr_lightning.data fetch set5 && "
    for purpose, line in {
        "enlarge": f"python -m sr_lightning.upscale -c {shlex.quote(str(run_dir))} PHOTO{''.join(allowed)}",
        "compare": f"{fetched}{command('evaluate.py')} {shlex.join(compared)}",
        "longer": f"{command('train.py')} {resume_override(cfg)} max_steps={2 * cfg.max_steps} extend=stretch",
    }.items():
        log.info("%-8s %s", purpose, line)


def device_name(cfg: DictConfig) -> str:
    """Name the processor or GPU that trains."""
    return torch.cuda.get_device_name() if device_of(cfg).type == "cuda" else processor().rpartition(",")[0]


def parameters(network: torch.nn.Module) -> str:
    """Format a network's number of parameters."""
    return f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def lr_name(datamodule: SRDataModule) -> str:
    """Name the degradation that makes LR."""
    random = datamodule.random_degradation
    return "bicubic" if random is None else f"{random.name}, new for each patch"


class BicubicScore:
    """PSNR of bicubic on the validation images of a run, computed once and kept beside the decoded images.

    Args:
        datamodule: Set up.
        protocol: Of the scores.
    """

    def __init__(self, datamodule: SRDataModule, protocol: Protocol) -> None:
        self.datamodule, self.protocol = datamodule, protocol
        self.path = datamodule.val_store.file.parent / "bicubic.json"

    def known(self) -> float | None:
        """Return the PSNR in dB, or None if it would take more than about a second to compute."""
        at_once = int(self.datamodule.val_store.hr_sizes.prod(axis=1).sum()) <= AT_ONCE
        return self._kept().get(self.protocol.name) or (self.value() if at_once else None)

    def value(self) -> float:
        """Return the PSNR in dB, computed if it is not kept."""
        kept = self._kept()
        if self.protocol.name not in kept:
            kept[self.protocol.name] = self._compute()
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(kept))
        return kept[self.protocol.name]

    def _kept(self) -> dict[str, float]:
        """Read the file; whatever is not as it was written is computed again."""
        try:
            kept: Any = json.loads(self.path.read_text())
            return {str(name): float(psnr) for name, psnr in kept.items() if 0 < float(psnr) < 1000}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    @torch.inference_mode()
    def _compute(self) -> float:
        store, protocol, scores = self.datamodule.val_store, self.protocol, []
        images, bicubic = WholeImages(store), Bicubic(scale=store.scale)
        for image in (self.datamodule.to_float(images[i]) for i in range(len(images))):
            if differs_from_bicubic(image["hr"], store.scale, protocol).item():
                sr = output_to_score(bicubic, image["lr"], protocol)
                scores.append(score(sr, image["hr"], store.scale, protocol)["psnr"].item())
        return sum(scores) / len(scores)
