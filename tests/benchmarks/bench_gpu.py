"""Training steps and enlarging on a GPU: python -m tests.benchmarks.bench_gpu [--through-train] [--try-on-cpu].

Milliseconds of a step in bfloat16, in interleaved rounds: launched one by one; as train.py records it (graph=true); and
of a loop written by hand, network, L1, backward pass and the same optimizer in one CUDA graph, the floor for the same
size (of a GAN: of its generator alone). Beside them the operations of the last two, which a CPU can count as well, and
before them the ceilings of the device: bfloat16 matrix products, copies in memory.
--through-train adds those of train.py graph=true with all that surrounds a step, and the patches per second aimed at.
Then milliseconds of an image of 1920x1080, 8 bits: from array to array, and of the network alone, launched in float32
and as a float16 graph written by hand; and frames of a video per second.
--try-on-cpu runs the program without a GPU and a graph, with small batches; only the operations mean something.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sr_lightning.inference import fuse_for_inference
from sr_lightning.modules.recorded_step import FusedRule, RecordedStep, cuda_graph
from sr_lightning.network_costs import MultiplyAdds
from sr_lightning.networks import EDSR, ESPCN, SRResNet
from sr_lightning.optim import Muon
from sr_lightning.training.choices import autocast, optimizers_of
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.upscale.video import upscale_video
from sr_lightning.utils.exact_float32 import exact_float32
from tests.helpers import ROOT, compose, rows_of, run_in_new_interpreter

PRECISION, BATCH, ROUNDS, STEPS = "bf16-mixed", 16, 5, 20
LOW = torch.float16
CASES = {  # settings of train.py -> patches per second aimed at on an H100 or H200, at LR side 36 unless given
    "model=edsr_baseline scale=x2": 5000,
    "experiment=edsr_fast scale=x2": 12000,
    "model=espcn scale=x3": 25000,
    "model=edsr_baseline scale=x2 gan=pixel": 2500,
    "model=edsr_baseline scale=x4 degradation=second_order": 3000,
    "model=rcan scale=x4 data.patch_size=48": 246,  # 65 ms a step
    "model=edsr scale=x2 data.patch_size=48": None,  # 0.55 of the rate of matrix products
}
ENLARGING = {  # network, and milliseconds aimed at on an H100 or H200, from array to array
    "ESPCN x2": (partial(ESPCN, scale=2, global_skip=True), 2.5),
    "EDSR-baseline x4": (partial(EDSR, scale=4), 4),
    "SRResNet x4": (partial(SRResNet, scale=4), 10),
}
HEIGHT, WIDTH = 1080, 1920


def ceilings(device: torch.device) -> tuple[float, float]:
    """Return the measured rates of the device: bfloat16 multiply-adds of a large matrix product, and bytes copied."""
    side = 8192 if device.type == "cuda" else 256
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    times = milliseconds({"product": lambda: matrix @ matrix, "copy": matrix.clone}, device)
    return side**3 / times["product"] * 1e3, 2 * matrix.nbytes / times["copy"] * 1e3


def settings_of(words: str) -> DictConfig:
    return compose("data.patch_size=36", *words.split(), f"data.batch_size={BATCH}", "trainer.accelerator=auto")


class Operations(TorchDispatchMode):
    """Counts operations of a program that compute: a GPU launches one kernel or more for each."""

    VIEWS = ("detach", "expand", "permute", "record_function", "select", "split", "squeeze", "unbind", "view")

    def __init__(self, program: Callable[[], None]) -> None:
        super().__init__()
        self.count = 0
        with self:
            program()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__.strip("_")
        self.count += not (operation.is_view or name.startswith(self.VIEWS))
        return operation(*args, **(kwargs or {}))


def steps_of(words: str, device: torch.device, record: Callable) -> tuple[dict[str, Callable[[], object]], list[int]]:
    """Build the three forms of a step on the batches of a config, and count the operations of the last two."""
    cfg = settings_of(words)
    forms, batch, counts = {}, random_batch(cfg.data.patch_size, cfg.scale, device), []

    def counted(program: Callable[[], None]) -> Callable[[], None]:
        counts.append(Operations(program).count)
        return record(program)

    for name in ("launched", "recorded", "by hand"):
        torch.manual_seed(0)
        module = instantiate(cfg.model, _convert_="all").to(device).train()
        if name == "by hand":
            forms[name] = by_hand(module, batch, counted)
            continue
        optimizers = optimizers_of(module)
        with autocast(PRECISION, device):
            step = RecordedStep(module, optimizers, batch, record=counted) if name == "recorded" else None
        forms[name] = (lambda step=step: step(batch)) if step else launched(module, optimizers, batch)
    return forms, counts


def random_batch(patch: int, scale: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {
        name: torch.rand(BATCH, 3, side, side, device=device) for name, side in (("lr", patch), ("hr", patch * scale))
    }


def launched(module, optimizers, batch) -> Callable[[], None]:
    losses = module.losses_of(batch, torch.zeros((), device=module.device))

    def step() -> None:
        for optimizer, loss_of in zip(optimizers, losses, strict=True):
            with autocast(PRECISION, module.device):
                loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def by_hand(module, batch, record: Callable) -> Callable[[], None]:
    network, optimizer = module.network, optimizers_of(module)[0]
    rule = optimizer if isinstance(optimizer, Muon) else FusedRule(optimizer)
    plan, numbers = None, None
    lr, hr = batch["lr"][:, : network.num_channels].contiguous(memory_format=torch.channels_last), batch["hr"]

    def step() -> None:
        optimizer.zero_grad()
        with autocast(PRECISION, lr.device):
            sr = network(lr)
        torch.nn.functional.l1_loss(sr.float(), hr[:, : network.num_channels]).backward()
        nonlocal plan, numbers
        if numbers is None:
            plan = rule.plan()
            rule.advance(plan)
            numbers = torch.tensor(rule.numbers(plan), dtype=torch.float64, device=lr.device)
        rule.update(plan, numbers)

    stream = torch.cuda.Stream() if lr.is_cuda else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
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


def frames_per_second(device: torch.device) -> dict[str, float]:
    """Enlarge a video with ESPCN x2 to HEIGHT x WIDTH, and decode and encode the same frames alone."""
    import av

    net = Upscaler(ESPCN(scale=2, global_skip=True), "", device=device.type, precision="auto")
    random, frames, seconds = np.random.default_rng(0), [], {}
    still = random.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)

    def keeping(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        frames.append(net.upscale(rgb))
        return frames[-1]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        source, target = Path(folder, "a.mp4"), Path(folder, "b.mp4")
        with av.open(str(source), "w") as made:
            video = made.add_stream("libx264", rate=25)
            video.height, video.width, video.pix_fmt = *still.shape[:2], "yuv420p"
            for number in range(4 * STEPS):
                moved = np.roll(still, (number, 2 * number), axis=(0, 1))
                made.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgb24")))
            made.mux(video.encode(None))
        ways = {  # the first one prepares the others
            "prepared": (keeping, None),
            "alone": (lambda rgb, size: next(stored), None),
            "enlarged": (lambda rgb, size: net.upscale(rgb), pool if device.type == "cuda" else None),
        }
        for name, (enlarge, beside) in ways.items():
            stored, start = iter(frames), time.perf_counter()
            upscale_video(enlarge, lambda width, height: (2 * width, 2 * height), source, target, pool=beside)
            seconds[name] = time.perf_counter() - start
    return {name: len(frames) / each for name, each in seconds.items()}


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
            *("train.py", f"data={images}", "data.patch_size=36", *words.split(), f"data.batch_size={BATCH}"),
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
        globals().update(PRECISION="32-true", BATCH=1, ROUNDS=1, STEPS=1, HEIGHT=80, WIDTH=160, LOW=torch.float32)
    os.chdir(ROOT)
    device = torch.device("cuda" if on_gpu else "cpu")
    print(torch.cuda.get_device_name() if on_gpu else "the CPU, which says nothing", "torch", torch.__version__)
    products, copied = ceilings(device)
    print(f"bfloat16 matrix products {2 * products / 1e12:.0f} TFLOP/s, copies {copied / 1e12:.2f} TB/s")
    record = cuda_graph if on_gpu else lambda program: program
    print(
        "settings, ms a step:                    launched recorded by hand, ratio  operations, ratio  train.py, "
        "patches/s, aim, of rate"
    )
    for words, aim in CASES.items():
        line = f"{words.removeprefix('model='):40}"
        if "degradation" not in words:  # whose LR is made between the steps
            forms, (recorded, hand) = steps_of(words, device, record)
            times = milliseconds(forms, device)
            line += "".join(f"{each:8.2f}" for each in times.values())
            line += f"{times['recorded'] / times['by hand']:7.2f} {recorded:6}/{hand} {recorded / hand:.2f}"
        if options.through_train:
            each = through_train(words, options.through_train)
            share = multiply_adds(words) * BATCH / (each / 1e3) / products
            line += f"  {each:8.2f} {BATCH / each * 1e3:10.0f} {aim or '':6} {share:10.1%}"
        print(line, flush=True)
    print(f"\nenlarging to {WIDTH}x{HEIGHT}, ms:       auto  float32 launched  by hand  aim of auto")
    for name, (build, aim) in ENLARGING.items():
        times = milliseconds(enlarging_of(build().eval(), device, record), device)
        print(f"{name:34}" + "".join(f"{times[way]:9.2f}" for way in times) + f"  {aim}", flush=True)
    if find_spec("av"):
        rates = frames_per_second(device)
        print(
            f"video to {WIDTH}x{HEIGHT} by ESPCN x2: {rates['enlarged']:.1f} frames/s, decoder and encoder alone "
            f"{rates['alone']:.1f}: {rates['enlarged'] / rates['alone']:.2f}, aim 0.9"
        )


def multiply_adds(words: str) -> float:
    """Return those of a patch's training step: forward, and twice as many backward."""
    cfg, side = settings_of(words), 16
    network = instantiate(cfg.model.network)
    with torch.no_grad(), MultiplyAdds() as counted:
        network(torch.zeros(1, network.num_channels, side, side))
    return 3 * counted.total * (cfg.data.patch_size / side) ** 2


if __name__ == "__main__":
    main()
