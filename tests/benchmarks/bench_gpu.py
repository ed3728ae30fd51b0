"""Training steps on a GPU: python -m tests.benchmarks.bench_gpu [--through-train] [--try-on-cpu].

Milliseconds of a step in bfloat16, in interleaved rounds: launched one by one; as train.py records it (graph=true); and
of a loop written by hand, network, L1, backward pass and fused Adam in one CUDA graph, the floor for the same size.
--through-train adds those of train.py graph=true with all that surrounds a step, and the patches per second aimed at.
--try-on-cpu runs the program without a GPU and a graph, with small batches; its figures mean nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.utils import instantiate
from PIL import Image

from sr_lightning.modules.recorded_step import RecordedStep, cuda_graph
from sr_lightning.training.choices import autocast, optimizers_of
from tests.helpers import ROOT, compose, rows_of, run_in_new_interpreter

PRECISION, BATCH, ROUNDS, STEPS = "bf16-mixed", 16, 5, 20
CASES = {  # settings of train.py -> patches per second aimed at on an H100 or H200, at LR side 36
    "model=edsr_baseline scale=x2": 5000,
    "experiment=edsr_fast scale=x2": 12000,
    "model=espcn scale=x3": 25000,
    "model=rcan scale=x4": None,
    "model=edsr scale=x2": None,
}


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
        images = Path(folder, "images")  # noise: bare machines lack the photos of data=demo
        images.mkdir()
        for number in range(12):
            Image.effect_noise((480, 480), 64).convert("RGB").save(images / f"{number}.png")
        run_in_new_interpreter(
            *("train.py", *words.split(), f"data={images}", "data.patch_size=36", f"data.batch_size={BATCH}"),
            *("graph=true", "benchmarks=[]", f"max_steps={steps}", f"val_every={steps}", f"log_every={steps // 2}"),
            *(f"trainer.precision={PRECISION}", "num_comparisons=0", "report_images=0"),
            f"hydra.run.dir={folder}/run",
        )
        rows = rows_of(Path(folder, "run", "metrics.csv"))
    times = [float(row["seconds"]) for row in rows if row.get("train/loss")]
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
        globals().update(PRECISION="32-true", BATCH=1, ROUNDS=1, STEPS=1)
    os.chdir(ROOT)
    device = torch.device("cuda" if on_gpu else "cpu")
    print(torch.cuda.get_device_name() if on_gpu else "the CPU, which says nothing", "torch", torch.__version__)
    print("settings, ms a step:               launched recorded  by hand  recorded/by hand  train.py, patches/s, aim")
    for words, aim in CASES.items():
        times = milliseconds(steps_of(words, device, cuda_graph if on_gpu else lambda program: program), device)
        ratio = times["recorded"] / times["by hand"]
        line = f"{words:34} {times['launched']:8.2f} {times['recorded']:8.2f} {times['by hand']:8.2f} {ratio:17.2f}"
        if options.through_train:
            each = through_train(words, options.through_train)
            line += f"  {each:8.2f} {BATCH / each * 1e3:10.0f} {aim or ''}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
