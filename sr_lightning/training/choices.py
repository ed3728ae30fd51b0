"""Settings measured on the machine of a run before its first step: precision, threads, torch.compile.

They are saved as `chosen` in config.yaml and in every checkpoint, but are no settings: a run that asks for "auto" has
the same name on every machine. A resumed run keeps them.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer

from sr_lightning.errors import InputError
from sr_lightning.inference.forms import computes_in_bfloat16
from sr_lightning.modules import GANModule, SRModule
from sr_lightning.modules.recorded_step import FUSED, RecordedStep, Recorder, cuda_graph
from sr_lightning.optim import Muon
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.saved_config import read_config
from sr_lightning.sweeps.processes import is_cell, process_rank
from sr_lightning.training.epoch_loop import HOOKS_WITHIN_A_STEP
from sr_lightning.training.nodes import is_new
from sr_lightning.utils.devices import best_device, fork_rng
from sr_lightning.utils.messages import counted
from sr_lightning.utils.timings import GAIN, Step, Timings, facts_of, fastest, processor

log = logging.getLogger(__name__)

BUDGET = 0.5  # seconds of measurement, after the first rounds
SHORT = 200  # steps: in a shorter run, one patch is measured instead of a batch
LONG = 1000  # steps: only in longer runs torch.compile may pay
GRADIENT_ERROR = 0.3  # the largest relative error of a step's gradient in a lower precision
COMPILE_GAIN = 0.2  # expected share of a step that torch.compile saves, before it is measured
OPTIMIZERS = ("optimizer", "discriminator_optimizer")
STEPS = 3  # per measurement of threads
GRAPH_STEPS = 4  # with other images and learning rates each
KINDS = {"precision": str, "threads": int, "compile": bool, "graph": bool, "processor": str}
GRAPH_ERROR = 0.01  # of the change of the weights in some steps, by rounding; a number that is not renewed gives more
PATIENCE = 1800  # seconds that a process waits for the choices of the first one, unless trainer.timeout is given


def choose(cfg: DictConfig, module: SRModule, callbacks: Sequence[pl.Callback] = ()) -> dict[str, Any]:
    """Return the choices of a run: those saved with it, or the fastest on this machine.

    Measuring leaves the module and the random state as they were. Of several processes the first measures.

    Args:
        cfg: The run's config. `chosen` holds the choices of a resumed run.
        module: With initial weights.
        callbacks: Of the run, besides those of the module.

    Returns:
        `precision`, Lightning's name; `threads` of torch on the CPU; `compile`, True if the training step is compiled;
        `graph`, True if it is a CUDA graph; `processor`, on which they were measured.

    Raises:
        InputError: torch.compile is requested, or was used by the resumed run, and does not work here.
    """
    if cfg.resume is not None:
        return choices_of_resumed_run(cfg, module, callbacks)
    if process_rank() > 0:
        return choices_of_first_process(cfg)
    trial = Trial(cfg, module)
    precision = str(cfg.trainer.precision)
    precision = trial.fastest_precision() if precision == "auto" else precision
    threads = trial.fastest_threads(precision)
    set_threads(threads)
    if trial.processes > 1:  # inherited by those that Lightning starts
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if cfg.compile:
        trial.check_compilation(precision, "compile=true")
    compiled = trial.compiles(precision) if cfg.compile is None else cfg.compile
    graph = bool(cfg.graph) and trial.records(precision, reason_against_graph(cfg, module, precision, callbacks))
    return {
        "precision": precision,
        "threads": threads,
        "compile": compiled,
        "graph": graph,
        "processor": processor(),
    }


def choices_of_resumed_run(cfg: DictConfig, module: SRModule, callbacks: Sequence[pl.Callback] = ()) -> dict[str, Any]:
    """Return the saved choices, and log if others are in force or would be faster on this machine.

    Runs saved by earlier versions hold no choices: bfloat16 followed from the processor's flags.

    Raises:
        InputError: The run was compiled, and torch.compile does not work here; or the choices were changed by hand.
    """
    saved = cfg.get("chosen")
    if saved is None:
        precision = str(cfg.trainer.precision)
        precision = precision_by_flags(cfg) if precision == "auto" else precision
        threads = torch.get_num_threads()
        return {
            "precision": precision,
            "threads": threads,
            "compile": False,
            "graph": False,
            "processor": processor(),
        }
    chosen = {"graph": False} | (OmegaConf.to_container(saved) if OmegaConf.is_dict(saved) else {})
    if {key: type(value) for key, value in chosen.items()} != KINDS:
        raise InputError(f"{RunFolder(cfg.run_dir).config}: chosen is not as train.py wrote it: {saved}")
    set_threads(chosen["threads"])
    if (threads := torch.get_num_threads()) != chosen["threads"]:
        log.warning(
            "the run goes on with %s, by OMP_NUM_THREADS, instead of %d: its bits may differ from those of an "
            "uninterrupted run",
            counted(threads, "thread"),
            chosen["threads"],
        )
    trial = Trial(cfg, module)
    if chosen["graph"] and (reason := reason_against_graph(cfg, module, chosen["precision"], callbacks)):
        log.warning("the run goes on without the CUDA graph of its steps, which is not used with %s", reason)
        chosen["graph"] = False
    if chosen["compile"]:
        trial.check_compilation(chosen["precision"], f"resume={cfg.resume}: the run was compiled")
    if cfg.trainer.precision == "auto" and chosen["processor"] != processor():
        here = trial.fastest_precision()
        if here != chosen["precision"]:
            log.info("the run goes on in %s, as it began; %s is faster on this machine", chosen["precision"], here)
    return chosen


def choices_of_first_process(cfg: DictConfig) -> dict[str, Any]:
    """Wait for the choices that the first process of this run writes into config.yaml.

    Raises:
        InputError: It has written none in time.
    """
    path = RunFolder(cfg.run_dir).config
    for _ in range(math.ceil(10 * (cfg.trainer.get("timeout") or PATIENCE))):
        if is_new(path) and (chosen := read_config(path).get("chosen")) is not None:
            set_threads(chosen.threads)
            return OmegaConf.to_container(chosen)
        time.sleep(0.1)
    raise InputError(f"{path}: process 0 has not written its choices; start all processes with the same run directory")


def set_threads(threads: int) -> None:
    """Set torch's threads, unless OMP_NUM_THREADS is set."""
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(threads)


def device_of(cfg: DictConfig) -> torch.device:
    """Return the device of the first process of a run."""
    accelerator = cfg.trainer.accelerator
    on_gpu = accelerator in ("auto", "gpu", "cuda") and best_device().type == "cuda"
    return torch.device("cuda" if on_gpu else "cpu")


def processes_of(cfg: DictConfig) -> int:
    """Number of processes of a run, if the config gives it; else 1."""
    devices = cfg.trainer.devices
    return devices if isinstance(devices, int) and devices > 1 else 1


def precision_by_flags(cfg: DictConfig) -> str:
    """Return the precision that earlier versions chose, from the device's flags."""
    return "bf16-mixed" if computes_in_bfloat16(device_of(cfg).type) else "32-true"


def reason_against_graph(
    cfg: DictConfig, module: SRModule, precision: str, callbacks: Sequence[pl.Callback] = ()
) -> str:
    """Return what in a run's settings keeps its steps from being a CUDA graph; empty if nothing does."""
    partials = [getattr(module, name, None) for name in OPTIMIZERS]
    classes = [getattr(optimizer, "func", None) for optimizer in partials if optimizer is not None]
    others = [getattr(each, "__name__", str(each)) for each in classes if each not in (Muon, *FUSED)]
    own = module.configure_callbacks()
    kinds = [*map(type, callbacks), *map(type, own if isinstance(own, Sequence) else [own])]
    hooks = hooks_within_a_step([*kinds, *(get_object(each._target_) for each in cfg.trainer.get("callbacks") or ())])
    strategy = str(cfg.trainer.get("strategy", "auto"))
    known = strategy.startswith(("auto", "ddp", "single_device")) and "spawn" not in strategy
    reasons = {
        "the CPU": device_of(cfg).type != "cuda",
        f"{type(module).__name__}, which has steps of its own": type(module) not in (SRModule, GANModule),
        "model.accumulate": getattr(module, "accumulate", 1) != 1,
        f"trainer.strategy={strategy}": not known,
        "trainer.accumulate_grad_batches": cfg.trainer.get("accumulate_grad_batches", 1) != 1,
        f"trainer.precision={precision}, which scales the loss": precision.startswith("16"),
        "trainer.profiler": cfg.trainer.get("profiler") is not None,
        f"the optimizer {', '.join(others)}": bool(others),
        f"{', '.join(hooks)}, called within a step": bool(hooks),
        "dampening": any(getattr(each, "keywords", {}).get("dampening") for each in partials),
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def hooks_within_a_step(kinds: Sequence[type[pl.Callback]]) -> list[str]:
    """Name the hooks of callbacks that Lightning calls within a step; a recorded step has no place for them."""
    hooks = ((kind, hook) for kind in kinds for hook in HOOKS_WITHIN_A_STEP)
    return [
        f"{kind.__name__}.{hook}" for kind, hook in hooks if getattr(kind, hook, None) is not getattr(pl.Callback, hook)
    ]


class Trial:
    """Training steps of a run, measured on random patches.

    Args:
        cfg: The run's config.
        module: With initial weights; it is copied.
    """

    def __init__(self, cfg: DictConfig, module: SRModule) -> None:
        self.module, self.max_steps = module, cfg.max_steps
        self.device, self.processes = device_of(cfg), processes_of(cfg)
        self.patches = max(1, cfg.data.batch_size // self.processes) if cfg.max_steps >= SHORT else 1
        self.side = cfg.data.patch_size
        self.limit = max(1, torch.get_num_threads() // self.processes)
        self.timings = Timings(cfg.cache_dir, Path(cfg.run_dir).parent / ".sweep" if is_cell() else None)

    def fastest_precision(self) -> str:
        """Return the fastest precision that the device has instructions for, if its gradients are accurate."""
        if not computes_in_bfloat16(self.device.type):
            return "32-true"
        seconds = self.seconds("precision", ["32-true", "bf16-mixed"], self.step)
        chosen = fastest(seconds)
        if chosen != "32-true" and not self.is_accurate(chosen):
            log.warning("the gradients in %s are wrong on this machine: precision=32-true is used", chosen)
            return "32-true"
        return chosen

    def fastest_threads(self, precision: str) -> int:
        """Return the number of threads: all, or the smallest number on which a step takes about as long."""
        if self.device.type != "cpu" or self.processes > 1 or self.limit == 1 or os.environ.get("OMP_NUM_THREADS"):
            return self.limit

        def steps(threads: str) -> Step:
            step = self.step(precision)

            def some_steps() -> None:
                torch.set_num_threads(int(threads))
                for _ in range(STEPS):
                    step()

            return some_steps

        counts = sorted({self.limit, *(4**i for i in range(8) if 4**i < self.limit)})
        seconds = self.seconds(f"threads, {precision}", [str(count) for count in counts], steps)
        torch.set_num_threads(self.limit)
        return int(next(count for count, time in seconds.items() if time <= GAIN * min(seconds.values())))

    def compiles(self, precision: str) -> bool:
        """Return True if torch.compile saves more time than it costs; it is tried in long trainings on a CPU only."""
        if self.device.type != "cpu" or self.processes > 1 or self.max_steps < LONG:
            return False
        cost = 20 + 0.5 * len(list(self.module.network.modules()))  # seconds; 4 to 25 for small networks
        eager = self.seconds(f"eager, {precision}", ["eager"], lambda name: self.step(precision))["eager"]
        if COMPILE_GAIN * eager * self.max_steps < cost:
            return False
        try:
            seconds = self.seconds(
                f"compilation, {precision}",
                ["eager", "compiled"],
                lambda name: self.step(precision, name == "compiled"),
            )
        except Exception as error:  # whatever stops a compiler, the run can go on without it
            log.info("torch.compile is not used, it fails on this machine: %s", first_line(error))
            return False
        return (seconds["eager"] - seconds["compiled"]) * self.max_steps > cost

    def check_compilation(self, precision: str, reason: str) -> None:
        """Compile and run one step.

        Raises:
            InputError: torch.compile fails.
        """
        try:
            with fork_rng(self.device):
                self.step(precision, compiled=True)()
        except Exception as error:
            raise InputError(
                f"{reason}, and torch.compile fails on this machine: {first_line(error)}. It needs a C++ compiler such "
                "as g++; a run begun with compile=false needs none"
            ) from error

    def records(self, precision: str, reason_against: str) -> bool:
        """Return True if recorded steps can be used: replayed, they change the weights as if computed directly."""
        if reason_against:
            log.warning("graph=true: not used with %s", reason_against)
            return False
        try:
            directly, replayed = (self.change_of_weights(precision, record) for record in (None, cuda_graph))
        except Exception as error:  # whatever stops the recording, the run can go on without it
            log.warning("graph=true: not used, recording a step fails on this machine: %s", first_line(error))
            return False
        error = float((replayed - directly).norm() / directly.norm())
        if not error <= GRAPH_ERROR:
            log.warning("graph=true: not used, replayed steps differ from others by %.1g of the change", error)
            return False
        return True

    def change_of_weights(self, precision: str, record: Recorder | None) -> Tensor:
        """Return the change of all weights, (K,), in some steps with falling learning rates; None: not recorded."""
        module, batch = copy.deepcopy(self.module).to(self.device).train(), self.batch()
        optimizers = optimizers_of(module)
        before = torch.cat([p.detach().flatten() for p in module.parameters()])
        with fork_rng(self.device), autocast(precision, self.device):
            step = RecordedStep(module, optimizers, batch, record=record or (lambda program: program))
            for number in range(GRAPH_STEPS):
                for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                    group["lr"] /= 1 + number
                step({name: images.roll(number, 0) / (1 + number) for name, images in batch.items()})
        return torch.cat([p.detach().flatten() for p in module.parameters()]) - before

    def seconds(self, purpose: str, names: Sequence[str], build: Callable[[str], Step]) -> dict[str, float]:
        """Return the seconds of each form of a training step."""
        key = {
            "purpose": f"training: {purpose}",
            "network": type(self.module.network).__name__,
            "shape": [self.patches, self.side],
            **facts_of(self.module, self.device, str(self.module.memory_format), *optimizer_classes(self.module)),
        }
        with fork_rng(self.device):
            return self.timings.seconds(key, names, build, BUDGET)

    def step(self, precision: str, compiled: bool = False) -> Step:
        """Build a function that takes one training step of a copy of the module."""
        module = copy.deepcopy(self.module).to(self.device).train()
        if compiled:
            module.compile_training()
        batch = self.batch()
        optimizers = optimizers_of(module)

        def step() -> None:
            backward(module, batch, precision)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return step

    def batch(self) -> dict[str, Tensor]:
        """Return random patches on the device: lr (N, 3, h, w) and hr (N, 3, H, W) in [0, 1]."""
        generator, scale = torch.Generator().manual_seed(0), self.module.network.scale
        sides = {"lr": self.side, "hr": self.side * scale}
        shapes = {name: (self.patches, 3, side, side) for name, side in sides.items()}
        return {name: torch.rand(shape, generator=generator).to(self.device) for name, shape in shapes.items()}

    def is_accurate(self, precision: str) -> bool:
        """Return True if the gradient of a step in this precision is close to that in float32."""
        batch, gradients = self.batch(), []
        for each in ("32-true", precision):
            module = copy.deepcopy(self.module).to(self.device).train()
            backward(module, batch, each)
            gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        exact, rounded = gradients
        return bool((rounded - exact).norm() <= GRADIENT_ERROR * exact.norm())


def backward(module: SRModule, batch: dict[str, Tensor], precision: str) -> None:
    """Compute the gradients of one batch; the two losses of a GAN share one backward pass."""
    with autocast(precision, batch["lr"].device):
        loss = module.loss_of(batch)
    loss.backward()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in one of Lightning's precisions."""
    low = torch.float16 if precision.startswith("16") else torch.bfloat16
    return torch.autocast(device.type, low, enabled="16" in precision, cache_enabled=False)


def optimizers_of(module: SRModule) -> list[Optimizer]:
    """Build the optimizers of a module: one, or those of generator and discriminator."""
    configured = module.configure_optimizers()
    return [each["optimizer"] for each in (configured if isinstance(configured, list) else [configured])]


def optimizer_classes(module: SRModule) -> list[str]:
    """Name the classes of a module's optimizers, whatever their learning rates."""
    optimizers = [getattr(module, name, None) for name in OPTIMIZERS]
    return [str(getattr(optimizer, "func", None)) for optimizer in optimizers]


def first_line(error: Exception) -> str:
    """Return the class and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
