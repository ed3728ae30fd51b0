"""Time per training step: python tests/benchmarks/bench_training.py [loop] [precision] [memory].

loop       microseconds that Lightning and our module add to a step, against a plain PyTorch loop on the same batches
precision  a step as train.py makes it (bf16, channels_last, freed memory kept) against eager float32, for six networks
memory     a step with glibc keeping freed memory, against one where it gives it back
All on one thread, in interleaved rounds.
"""

import logging
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

from sr_lightning.callbacks import Progress
from sr_lightning.data import SRDataModule, bundled_photos
from sr_lightning.degradations import Bicubic
from sr_lightning.loggers import MetricsCSV
from sr_lightning.modules import SRModule
from sr_lightning.networks import EDSR, ESPCN, SRCNN, WDSR, SRResNet
from sr_lightning.optim import Muon, warmup_cosine
from sr_lightning.training.trainer import build_trainer, silence_lightning
from sr_lightning.utils.malloc import keep_freed_memory
from tests.helpers import compose

STEPS, ROUNDS = 400, 15


def module(network: torch.nn.Module, steps: int = STEPS, channels_last: bool = True) -> SRModule:
    scheduler = partial(warmup_cosine, total_steps=steps)
    return SRModule(network, torch.nn.L1Loss(), partial(Muon, lr=1e-3), scheduler, channels_last=channels_last)


def data(cache_dir: str) -> SRDataModule:
    photos, held_out = bundled_photos(["rocket", "coins", "camera"]), bundled_photos(["chelsea"])
    return SRDataModule(
        *(photos, held_out), scale=2, degradation=Bicubic(), patch_size=8, batch_size=4, max_steps=STEPS, seed=0,
        cache_dir=cache_dir,
    )  # fmt: skip


def loop() -> None:
    """The smallest network there is, so that what is added can be seen; the very trainer of train.py."""
    silence_lightning()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    tiny = partial(ESPCN, scale=2, num_features=(8,), kernel_sizes=(3, 3))
    never = 10 * STEPS

    def plain(datamodule: SRDataModule) -> float:
        trained = module(tiny())
        configured = trained.configure_optimizers()
        optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        batches = datamodule.train_batches()
        start = time.perf_counter()
        for k in range(STEPS):
            optimizer.zero_grad()
            trained.loss_of(datamodule.to_float(batches[k])).backward()
            optimizer.step()
            scheduler.step()
        return (time.perf_counter() - start) / STEPS

    class Clock(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 9:  # past what the first steps set up
                self.start = time.perf_counter()
            if batch_idx == STEPS - 2:  # before the last checkpoint
                self.seconds = (time.perf_counter() - self.start) / (STEPS - 11)

    def lightning(datamodule: SRDataModule, folder: str) -> float:
        words = ["name=bench", f"run_dir={folder}", f"max_steps={STEPS}", f"save_every={never}", f"val_every={never}"]
        cfg = compose(*words, "trainer=cpu", "trainer.precision=32-true")
        trained = module(tiny())
        clock, progress = Clock(), Progress(STEPS, cfg.data.batch_size)
        loggers = [MetricsCSV(Path(folder, "metrics.csv"))]
        steps = {"max_steps": STEPS, "val_every": never, "save_every": never}
        trainer = build_trainer(cfg.trainer, trained, loggers, [progress, clock], run_dir=folder, **steps)
        trainer.fit(trained, datamodule)
        return clock.seconds

    with tempfile.TemporaryDirectory() as folder:
        datamodule = data(folder)
        datamodule.setup()
        rounds = [(plain(datamodule), lightning(datamodule, folder)) for _ in range(ROUNDS)]
    raw, whole = (min(times) * 1e6 for times in zip(*rounds, strict=True))  # the least disturbed round of each
    print(f"loop: plain {raw:.0f} us a step, whole loop {whole:.0f} us, added {whole - raw:.0f} us")


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
