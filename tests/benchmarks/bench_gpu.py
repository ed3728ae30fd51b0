"""Training steps and enlarging on a GPU: python -m tests.benchmarks.bench_gpu [--through-train] [--try-on-cpu].

Milliseconds of a step in bfloat16, in interleaved rounds: launched one by one; as train.py records it (graph=true); and
of a loop written by hand, network, L1, backward pass and fused Adam in one CUDA graph, the floor for the same size.
--through-train adds those of train.py graph=true with all that surrounds a step, and the patches per second aimed at.
Then milliseconds of an image of 1920x1080, 8 bits: from array to array, and of the network alone, launched in float32
and as a float16 graph written by hand.
--try-on-cpu runs the program without a GPU and a graph, with small batches; its figures mean nothing.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from torch import nn

from sr_lightning.inference import fuse_for_inference
from sr_lightning.modules.recorded_step import RecordedStep, cuda_graph
from sr_lightning.networks import EDSR, ESPCN, SRResNet
from sr_lightning.training.choices import autocast, optimizers_of
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.utils.exact_float32 import exact_float32
from tests.helpers import ROOT, compose, rows_of, run_in_new_interpreter

PRECISION, BATCH, ROUNDS, STEPS = "bf16-mixed", 16, 5, 20
LOW = torch.float16
CASES = {  # settings of train.py -> patches per second aimed at on an H100 or H200, at LR side 36
    "model=edsr_baseline scale=x2": 5000,
    "experiment=edsr_fast scale=x2": 12000,
    "model=espcn scale=x3": 25000,
    "model=rcan scale=x4": None,
    "model=edsr scale=x2": None,
}
ENLARGING = {  # network, and milliseconds aimed at on an H100 or H200, from array to array
    "ESPCN x2": (partial(ESPCN, scale=2, global_skip=True), 2.5),
    "EDSR-baseline x4": (partial(EDSR, scale=4), 4),
    "SRResNet x4": (partial(SRResNet, scale=4), 10),
}
HEIGHT, WIDTH = 1080, 1920


def steps_of(words: str, device: torch.device, record: Callable) -> dict[str, Callable[[], object]]:
    """Build the three forms of a step."""
    cfg = compose(*words.split(), "data.patch_size=36", f"data.batch_size={BATCH}", "trainer.accelerator=auto")
    forms, batch = {}, random_batch(cfg.scale, device)
    for name in ("launched", "recorded", "by hand"):
        torch.manual_seed(0)
        module = instantiate(cfg.model, _convert_="all").to(device).train()
        if name == "by hand":
            forms[name] = by_hand(module, batch, record)
            continue
        (optimizer,) = optimizers_of(module)
        with autocast(PRECISION, device):
            step = RecordedStep(module, [optimizer], batch, record=record) if name == "recorded" else None
        forms[name] = (lambda step=step: step(batch)) if step else launched(module, optimizer, batch)
    return forms


def random_batch(scale: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.rand(BATCH, 3, side, side, device=device) for name, side in (("lr", 36), ("hr", 36 * scale))}


def launched(module, optimizer, batch) -> Callable[[], None]:
    def step() -> None:
        with autocast(PRECISION, module.device):
            loss = module.loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def by_hand(module, batch, record: Callable) -> Callable[[], None]:
    network = module.network
    optimizer = torch.optim.Adam(network.parameters(), lr=torch.tensor(1e-4), fused=True, capturable=True)
    lr, hr = batch["lr"][:, : network.num_channels].contiguous(memory_format=torch.channels_last), batch["hr"]

    def step() -> None:
        optimizer.zero_grad()
        with autocast(PRECISION, lr.device):
            sr = network(lr)
        torch.nn.functional.l1_loss(sr.float(), hr[:, : network.num_channels]).backward()
        optimizer.step()

    stream = torch.cuda.Stream() if lr.is_cuda else None
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    synchronize(lr.device)
    return record(step)


def enlarging_of(network: nn.Module, device: torch.device, record: Callable) -> dict[str, Callable[[], object]]:
    """Build four ways to make an image of HEIGHT x WIDTH."""
    height, width = HEIGHT // network.scale, WIDTH // network.scale
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    auto, exact = (Upscaler(network, "", device=device.type, precision=name) for name in ("auto", "float32"))
    network = fuse_for_inference(network).to(device)
    lr = torch.rand(1, network.num_channels, height, width, device=device)
    print(f"  chosen: {auto.network.form.name}{' as a graph' if auto.network.as_graph else ''}", flush=True)
    low = copy.deepcopy(network).to(dtype=LOW, memory_format=torch.channels_last)
    small = lr.to(dtype=LOW, memory_format=torch.channels_last)

    def launched() -> torch.Tensor:
        with torch.inference_mode(), exact_float32():
            return network(lr)

    def by_hand() -> None:
        with torch.inference_mode():
            low(small)

    stream = torch.cuda.Stream() if lr.is_cuda else None
    with torch.cuda.stream(stream):
        by_hand()
    synchronize(device)
    return {
        "auto": lambda: auto.upscale(image),
        "float32": lambda: exact.upscale(image),
        "launched": launched,
        "by hand": record(by_hand),
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(forms: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    least = dict.fromkeys(forms, float("inf"))
    for _ in range(ROUNDS):
        for name, step in forms.items():
            step()
            synchronize(device)
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            synchronize(device)
            least[name] = min(least[name], (time.perf_counter() - start) / STEPS * 1e3)
    return least


def through_train(words: str, steps: int) -> float:
    """Return the milliseconds of a step of train.py in the second half of a run, without validation."""
    with tempfile.TemporaryDirectory() as folder:
        run_in_new_interpreter(
            *(
                "train.py",
                *words.split(),
                "data.patch_size=36",
                f"data.batch_size={BATCH}",
                "graph=true",
                "benchmarks=[]",
            ),
            *(f"max_steps={steps}", f"val_every={steps}", f"log_every={steps // 2}", f"trainer.precision={PRECISION}"),
            *(f"hydra.run.dir={folder}", "num_comparisons=0", "report_images=0"),
        )
        times = [float(row["seconds"]) for row in rows_of(Path(folder, "metrics.csv")) if row.get("train/loss")]
    return (times[-1] - times[0]) / (steps // 2) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.bench_gpu")
    parser.add_argument("--through-train", type=int, nargs="?", const=2000, metavar="STEPS")
    parser.add_argument("--try-on-cpu", action="store_true")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.try_on_cpu:
        sys.exit("there is no GPU here: python -m tests.benchmarks.bench_gpu on a machine with one")
    if not on_gpu:
        globals().update(PRECISION="32-true", BATCH=1, ROUNDS=1, STEPS=1, HEIGHT=96, WIDTH=128, LOW=torch.float32)
    os.chdir(ROOT)
    device = torch.device("cuda" if on_gpu else "cpu")
    print(torch.cuda.get_device_name() if on_gpu else "the CPU, which says nothing", "torch", torch.__version__)
    print("settings, ms a step:               launched recorded  by hand  recorded/by hand  train.py, patches/s, aim")
    record = cuda_graph if on_gpu else lambda program: program
    for words, aim in CASES.items():
        times = milliseconds(steps_of(words, device, record), device)
        ratio = times["recorded"] / times["by hand"]
        line = f"{words:34} {times['launched']:8.2f} {times['recorded']:8.2f} {times['by hand']:8.2f} {ratio:17.2f}"
        if options.through_train:
            each = through_train(words, options.through_train)
            line += f"  {each:8.2f} {BATCH / each * 1e3:10.0f} {aim or ''}"
        print(line, flush=True)
    print(f"\nenlarging to {WIDTH}x{HEIGHT}, ms:       auto  float32 launched  by hand  aim of auto")
    for name, (build, aim) in ENLARGING.items():
        times = milliseconds(enlarging_of(build().eval(), device, record), device)
        print(f"{name:34}" + "".join(f"{times[way]:9.2f}" for way in times) + f"  {aim}", flush=True)


if __name__ == "__main__":
    main()
