"""Dry runs (`dry_run=true`): check a run or a sweep, and estimate its memory and time, without training."""

import contextlib
import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sr_lightning.cli import constructor_error
from sr_lightning.data import SRDataModule
from sr_lightning.data.sources import Pair
from sr_lightning.data.store import ImageStore
from sr_lightning.errors import InputError, find_input_error
from sr_lightning.evaluation.evaluate import sets_of_run
from sr_lightning.images.files import image_size
from sr_lightning.modules import SRModule
from sr_lightning.runs.fingerprint import cell_name
from sr_lightning.sweeps.invocation import SweepInvocation, plan
from sr_lightning.sweeps.processes import tell_caller
from sr_lightning.sweeps.run import CellFailed, Reporter, in_sweep
from sr_lightning.training.checks import check_settings, downloads, teacher_options
from sr_lightning.training.choices import Trial, backward, optimizers_of
from sr_lightning.utils.cores import limit_threads
from sr_lightning.utils.devices import best_device
from sr_lightning.utils.threads import in_threads

log = logging.getLogger(__name__)

SECONDS_PER_OPERATION = 15e-6  # overhead of a torch operation, most of the time of a small network's step


def dry_run(cfg: DictConfig) -> float:
    """Build everything a config describes, without training or decoding images, and report an estimate of its cost.

    Returns:
        0.0, in place of a score.

    Raises:
        InputError: In a single run, bad user input.
        CellFailed: In a sweep, the cell cannot be built; the other cells are still checked.
    """
    name, hydra = cell_name(cfg), HydraConfig.get()
    if not in_sweep():
        numbers = estimate(cfg)
        log.info("\n%s", plan([{"cell": name, "words": [], "status": "fine"} | numbers]))
        tell_caller(run_dir=cfg.run_dir, estimate=numbers)
        return 0.0
    report = Reporter(SweepInvocation.current(), hydra.job.num, name, list(hydra.overrides.task))
    try:
        report("fine", **estimate(cfg))
    except Exception as error:
        text = str(find_input_error(error) or f"{type(error).__name__}: {error}")
        report("bad", error=text)
        log.error("%s: error: %s", name, text)
        raise CellFailed(f"{name}: {text}") from None
    return 0.0


def estimate(cfg: DictConfig) -> dict[str, float]:
    """Estimate parameters, steps, patches, memory in bytes and seconds of one training.

    One step and the validation of the largest image run on tensors that have shapes but no data. Memory is the larger
    peak of the two: weights, gradients, optimizer state and activations, without the workspace of libraries and the
    memory of the process itself. Seconds are the arithmetic of all steps and validations, at the speed measured now for
    training layers of 64 features on this machine, plus a constant for each torch operation.

    Raises:
        InputError: Names every fault found.
    """
    limit_threads()
    module, datamodule = build_on_meta(cfg)
    steps = cfg.max_steps if module.optimizer is not None else 0
    numbers = {"parameters": sum(p.numel() for p in module.network.parameters()), "steps": steps}
    numbers["patches"] = steps * cfg.data.batch_size
    images = [] if datamodule is None else [lr for _, lr in sizes_of(datamodule.val, cfg.scale)]
    precision = str(cfg.trainer.precision)
    if steps and precision == "auto":
        precision = Trial(cfg, module_without_downloads(cfg)).fastest_precision()
    num_devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) and cfg.trainer.devices > 1 else 1
    memory, flops, operations = 0, 0.0, 0
    if steps:
        batch_size, side = cfg.data.batch_size // num_devices, cfg.data.patch_size
        meter = metered(lambda: one_step(module, batch_size, side, precision))
        memory, flops, operations = meter.peak, steps * meter.flops, steps * meter.operations
    if images:
        height, width = max(images, key=np.prod)
        meter = metered(lambda: one_validation(module, height, width))
        memory = max(memory, meter.peak)
        per_pixel, validations = meter.flops / (height * width), -(-steps // cfg.val_every)
        flops += validations * per_pixel * sum(h * w for h, w in images) / num_devices
    seconds = flops / flops_per_second(precision) + operations * SECONDS_PER_OPERATION
    return numbers | {"memory": memory, "seconds": seconds}


def build_on_meta(cfg: DictConfig) -> tuple[SRModule, SRDataModule | None]:
    """Build the module on the meta device, and the data module, None if its images are not downloaded yet.

    Raises:
        InputError: Names every fault found.
    """
    if cfg.resume is not None:
        raise InputError("dry_run checks new runs: leave resume out")
    check_settings(cfg)
    wrong, module, datamodule = [], None, None
    with collecting_errors(wrong), torch.device("meta"):
        module = module_without_downloads(cfg)
        if module.optimizer is not None:
            module.configure_optimizers()
    with collecting_errors(wrong):
        datamodule = data_of(cfg)
    with collecting_errors(wrong):
        if module is not None and datamodule is not None:
            datamodule.check_channels(module.network.num_channels)
    if wrong:
        raise InputError("\n".join(wrong))
    return module, datamodule


@contextlib.contextmanager
def collecting_errors(wrong: list[str]) -> Iterator[None]:
    """Append errors caused by user input to a list and continue, so that all of them are reported at once."""
    try:
        yield
    except (InputError, InstantiationException) as error:
        wrong.append(str(find_input_error(error) or constructor_error(error) or error).strip())


def module_without_downloads(cfg: DictConfig) -> SRModule:
    """Build the module of a config with random weights in place of downloaded ones."""
    return instantiate(without_downloads(cfg.model), _convert_="all", **teacher_options(cfg))


def without_downloads(config: DictConfig) -> DictConfig:
    """Return the config with random weights in place of downloaded ones, and with downloads of images disabled."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        value = {key: plain(item) for key, item in value.items()}
        if "VGG" in str(value.get("_target_")):
            path = value.get("weights", "download")
            if path not in ("download", "random") and not Path(path).expanduser().is_file():
                raise InputError(f"{value['_target_']}: weights={path}: file not found. Set a file, download or random")
            value["weights"] = "random"
        return value | ({"download": False} if "download" in value else {})

    return OmegaConf.create(plain(OmegaConf.to_container(config, resolve=True)))


def data_of(cfg: DictConfig) -> SRDataModule | None:
    """Build the data module and check the sizes of its files; None if they are not downloaded yet.

    Raises:
        InputError: Missing files, images smaller than a patch, benchmarks whose files do not pair.
    """
    try:
        datamodule: SRDataModule = instantiate(without_downloads(cfg.data), _convert_="all")
    except (InputError, InstantiationException):
        if downloads(cfg.data):
            log.info("%s is not downloaded yet: its images are not checked", cfg.choices.data)
            return None
        raise
    if not datamodule.skip_small:
        hr_sizes, lr_sizes = (np.array(sizes) for sizes in zip(*sizes_of(datamodule.train, cfg.scale), strict=True))
        names, nothing = tuple(pair.name for pair in datamodule.train), np.empty(0, np.uint8)
        store = ImageStore(names, cfg.scale, nothing, hr_sizes, lr_sizes, nothing, nothing)
        store.check_patch_size(cfg.data.patch_size)
    sets_of_run(datamodule.val, cfg.benchmarks, cfg.data_root, cfg.scale)
    return datamodule


def sizes_of(pairs: Sequence[Pair], scale: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return height and width of HR and of LR of each image, read from the headers of the files."""
    hr_sizes = in_threads(image_size, [pair.hr for pair in pairs])
    return [(size, (size[0] // scale, size[1] // scale)) for size in hr_sizes]


class Meter(TorchDispatchMode):
    """Counter of floating-point operations (matrix products, convolutions) and of the bytes of live tensors.

    Attributes:
        flops: Floating-point operations.
        operations: Calls of torch's operators.
        peak: Largest number of bytes held at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.operations = self.peak = self._held = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        self.operations += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._held += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._held)
        return out

    def _free(self, size: int) -> None:
        self._held -= size


def metered(function: Callable[[], None]) -> Meter:
    """Run a function on tensors that have shapes but no data, and return the counts."""
    with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter:
        function()
    return meter


def replace_with_fake_tensors(module: nn.Module) -> None:
    """Replace a module's meta tensors by fake CPU tensors, which autocast and CPU operations accept."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(empty(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = empty(buffer)


def one_step(module: SRModule, batch_size: int, side: int, precision: str) -> None:
    """Take one training step on LR patches of `side` pixels."""
    replace_with_fake_tensors(module)
    module.train().setup("fit")  # creates the averaged network, if configured
    optimizers = optimizers_of(module)
    scale = module.network.scale
    batch = {"lr": torch.rand(batch_size, 3, side, side)}
    batch["hr"] = torch.rand(batch_size, 3, side * scale, side * scale)
    backward(module, batch, precision)
    for optimizer in optimizers:
        optimizer.step()


@torch.no_grad()
def one_validation(module: SRModule, height: int, width: int) -> None:
    """Run the forward pass of a whole LR image."""
    replace_with_fake_tensors(module)
    module.eval()(torch.rand(1, 3, height, width))


@functools.cache
def flops_per_second(precision: str) -> float:
    """Measure operations per second on this machine, training convolutions of 64 features on 32 x 32 pixels."""
    device = best_device()
    features, side, batch_size = 64, 32, 16
    layers = nn.Sequential(*(nn.Conv2d(features, features, 3, padding=1) for _ in range(4))).to(device)
    images = torch.rand(batch_size, features, side, side, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled="16" in precision):
            layers(images).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        step()
        count += 1
    flops = 3 * 4 * 2 * 9 * features**2 * batch_size * side**2  # the backward pass costs twice the forward pass
    return count * flops / (time.perf_counter() - start)
