"""Time per training step: python tests/benchmarks/bench_training.py [loop] [precision] [memory].

loop       microseconds of a step in a plain PyTorch loop, with a trivial module in Lightning's Trainer, and in ours
precision  a step as train.py makes it (bf16, channels_last, freed memory kept) against eager float32, for six networks
memory     a step with glibc keeping freed memory, against one where it gives it back
All on one thread, in interleaved rounds.
"""

import itertools
import logging
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from sr_lightning.callbacks import Progress
from sr_lightning.data import SRDataModule, bundled_photos
from sr_lightning.degradations import Bicubic
from sr_lightning.loggers import MetricsCSV
from sr_lightning.modules import SRModule
from sr_lightning.networks import EDSR, ESPCN, SRCNN, WDSR, SRResNet
from sr_lightning.optim import Muon, warmup_cosine
from sr_lightning.training.trainer import NoProfiler, build_trainer, silence_lightning
from sr_lightning.utils.malloc import keep_freed_memory
from sr_lightning.utils.stopwatch import OTHER, Stopwatch
from tests.helpers import compose

STEPS, LOG_EVERY, ROUNDS = 400, 50, 15


def module(network: torch.nn.Module, steps: int = STEPS, channels_last: bool = True) -> SRModule:
    scheduler = partial(warmup_cosine, total_steps=steps)
    return SRModule(network, torch.nn.L1Loss(), partial(Muon, lr=1e-3), scheduler, channels_last=channels_last)


def data(cache_dir: str) -> SRDataModule:
    photos, held_out = bundled_photos(["rocket", "coins", "camera"]), bundled_photos(["chelsea"])
    return SRDataModule(
        *(photos, held_out), scale=2, degradation=Bicubic(), patch_size=8, batch_size=4, max_steps=STEPS, seed=0,
        cache_dir=cache_dir,
    )  # fmt: skip


class Stamps(Logger):
    """Logger that notes the time of each value, so that a group of steps is measured without a hook at each batch."""

    name, version = "stamps", ""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.times.append(time.perf_counter())

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        pass


class EachBatch(pl.Callback):
    """Callback of a user, for which Lightning takes every step; it notes the time every `LOG_EVERY` batches."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % LOG_EVERY == 0:
            self.times.append(time.perf_counter())


class Trivial(pl.LightningModule):
    """The least that a LightningModule can do for the same training."""

    def __init__(self, trained: SRModule) -> None:
        super().__init__()
        self.trained = trained
        self.configure_optimizers = trained.configure_optimizers

    def training_step(self, batch, batch_idx):
        return self.trained.loss_of(batch)


def plain_loop(datamodule: SRDataModule, trained: SRModule) -> list[float]:
    configured = trained.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    batches = datamodule.train_batches()
    times = []
    for k in range(STEPS):
        optimizer.zero_grad()
        trained.loss_of(datamodule.to_float(batches[k])).backward()
        optimizer.step()
        scheduler.step()
        if (k + 1) % LOG_EVERY == 0:
            times.append(time.perf_counter())
    return times


def trivial_module(datamodule: SRDataModule, trained: SRModule, folder: str) -> list[float]:
    times: list[float] = []
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=0, callbacks=[EachBatch(times)], profiler=NoProfiler(),
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Trivial(trained), datamodule)
    return times


def whole_loop(datamodule: SRDataModule, trained: SRModule, folder: str, grouped: bool) -> list[float]:
    """Train with the trainer, callbacks and loggers of train.py."""
    never, stamps = 10 * STEPS, Stamps()
    steps = {"max_steps": STEPS, "val_every": never, "save_every": never}
    words = [f"{key}={value}" for key, value in steps.items()]
    cfg = compose(*words, "name=bench", f"run_dir={folder}", "trainer=cpu", "trainer.precision=32-true")
    loggers = [MetricsCSV(Path(folder, "metrics.csv")), stamps]
    callbacks = [Progress(STEPS, cfg.data.batch_size)] + ([] if grouped else [EachBatch([])])
    build_trainer(cfg.trainer, trained, loggers, callbacks, run_dir=folder, **steps).fit(trained, datamodule)
    return stamps.times


def loop() -> None:
    """The smallest network there is, so that what is added can be seen."""
    silence_lightning()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        datamodule = data(folder)
        datamodule.setup()
        variants = {
            "plain": plain_loop,
            "trivial module": partial(trivial_module, folder=folder),
            "ours, each step by Lightning": partial(whole_loop, folder=folder, grouped=False),
            "ours, in groups": partial(whole_loop, folder=folder, grouped=True),
        }
        least = dict.fromkeys(variants, math.inf)
        for _ in range(ROUNDS):
            for name, train in variants.items():
                tiny = ESPCN(scale=2, num_features=(8,), kernel_sizes=(3, 3))
                times = train(datamodule, module(tiny))[:-1]  # the last batch saves a checkpoint
                passed = min(after - before for before, after in itertools.pairwise(times))
                least[name] = min(least[name], passed / LOG_EVERY * 1e6)
    for name, microseconds in least.items():
        print(f"loop: {name}: {microseconds:.0f} us a step, {microseconds - least['plain']:+.0f}")
    stopwatch = Stopwatch()
    stopwatch.start()
    enter = partial(stopwatch.enter, OTHER)
    cost = 4e6 * min(seconds(enter, 1000) for _ in range(20))
    print(f"loop: the stopwatch takes {cost:.2f} us of a step, {cost / least['plain']:.2%} of the plain loop")


def step_of(network: torch.nn.Module, patch_size: int, batch_size: int, fast: bool) -> Callable[[], None]:
    """A training step on random patches: eager float32, or bf16 with channels_last."""
    trained = module(network, channels_last=fast).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    side = patch_size * network.scale
    batch = {"lr": torch.rand(batch_size, 3, patch_size, patch_size), "hr": torch.rand(batch_size, 3, side, side)}

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = trained.loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


PRECISION_CASES = {
    "SRCNN 9-1-5 x3, LR 16": (lambda: SRCNN(scale=3), 16, 20),
    "ESPCN 64-64-32 x3, LR 20": (lambda: ESPCN(scale=3), 20, 20),
    "EDSR-baseline x4, LR 48": (lambda: EDSR(scale=4), 48, 1),
    "SRResNet x4, LR 48": (lambda: SRResNet(scale=4), 48, 1),
    "WDSR-A 16x32 x4, LR 48": (lambda: WDSR(scale=4), 48, 1),
    "WDSR-B 16x32 x4, LR 48": (lambda: WDSR(scale=4, expansion=6, low_rank=0.8), 48, 1),
}


def precision() -> None:
    """In processes of their own, which take turns: what malloc has been told it cannot be told to forget."""
    for name, (_, _, repeats) in PRECISION_CASES.items():
        variants = [(False, False), (False, True), (True, True)]  # fast, keep
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", f"import bench_training as b; b.answer({name!r}, {fast}, {keep})"],
                cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            )
            for fast, keep in variants
        ]  # fmt: skip
        rounds = [[ask(process) for process in processes] for _ in range(4 if repeats == 1 else 8)][1:]
        for process in processes:
            process.communicate()
        plain, kept = (statistics.median(times[i] / times[2] for times in rounds) for i in (0, 1))
        print(
            f"precision: {name}, batch 16: bf16 + channels_last + kept memory is {plain:.2f}x eager float32, "
            f"{kept:.2f}x where that keeps its memory as well",
            flush=True,
        )


def ask(process: subprocess.Popen) -> float:
    """Seconds of a step, measured in another process."""
    process.stdin.write("go\n")
    return float(process.stdout.readline())


def answer(name: str, fast: bool, keep: bool) -> None:
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    build, patch_size, repeats = PRECISION_CASES[name]
    step = step_of(build(), patch_size, 16, fast)
    for _ in sys.stdin:
        print(seconds(step, repeats), flush=True)


MEMORY_CASES = {
    "SRCNN 9-1-5 x3, LR 16": lambda: (SRCNN(scale=3, global_skip=True), 16),
    "ESPCN 64-64-32 x2, LR 20": lambda: (ESPCN(scale=2, global_skip=True), 20),
    "EDSR-baseline x2, LR 24": lambda: (EDSR(scale=2), 24),
}


def memory() -> None:
    """In processes of their own: what malloc has been told it cannot be told to forget."""
    for name in MEMORY_CASES:
        rounds = []
        for _ in range(5):
            code = f"import bench_training as b; b.one_memory_run({name!r}, {{}})"
            runs = [
                subprocess.run(
                    [sys.executable, "-c", code.format(keep)], cwd=Path(__file__).parent, capture_output=True
                )
                for keep in (False, True)
            ]
            rounds.append([float(run.stdout) for run in runs])
        ratio = statistics.median(given_back / kept for given_back, kept in rounds)
        print(f"memory: {name}, batch 16, bf16: keeping freed memory is {ratio:.2f}x giving it back", flush=True)


def one_memory_run(name: str, keep: bool) -> None:
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    network, patch_size = MEMORY_CASES[name]()
    step = step_of(network, patch_size, 16, fast=True)
    seconds(step, 3)
    print(min(seconds(step, 5) for _ in range(6)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["loop", "precision", "memory"]:
        {"loop": loop, "precision": precision, "memory": memory}[name]()
