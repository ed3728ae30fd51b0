"""LR of 16 HR patches of 96x96 by random degradations, x4, against gathering them and against doing it image by image.

python tests/benchmarks/bench_degradations.py [cpu | cuda]

Image by image means SciPy's filters, Pillow's resizing and JPEG, and NumPy's noise, in the same order with the same
probabilities, on one core; the batch takes one thread as well, or the GPU, which also computes it in
fixed shapes, launched one by one and replayed as a CUDA graph.
"""

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from sr_lightning.data.patches import PatchSampler, gather
from sr_lightning.data.sources import image_folder
from sr_lightning.data.store import ImageStore
from sr_lightning.degradations import JPEG, Bicubic, Blur, EitherOrder, Noise, Resize
from sr_lightning.degradations.padded_batch import as_int64
from sr_lightning.degradations.replayed import ReplayedDegradation
from sr_lightning.utils.cuda_graphs import cuda_graph
from sr_lightning.utils.malloc import keep_freed_memory

ROUNDS, SCALE, SIDE = 30, 4, 96
METHODS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def one_by_one(steps, image, rng):
    """A patch (96, 96, 3) in [0, 1] through the steps, with the tools that one would take."""
    for step in steps:
        if isinstance(step, EitherOrder):
            parts = [list(step.one.values()), list(step.other.values())]
            if rng.random() < 0.5:
                parts.reverse()
            image = one_by_one([*parts[0], *parts[1]], image, rng)
        elif isinstance(step, Resize):
            base = image.shape[0] if step.relative_to == "input" else SIDE // SCALE
            u = rng.random()
            bounds = (1, step.factor[1]) if u < step.up else (step.factor[0], 1) if u < step.up + step.down else (1, 1)
            side = max(round(base * rng.uniform(*bounds)), 1)
            method = METHODS[rng.integers(3)]
            planes = np.float32(image.transpose(2, 0, 1))
            planes = [Image.fromarray(plane).resize((side, side), method) for plane in planes]
            image = np.stack(planes, axis=-1)
        elif rng.random() < step.probability:
            image = {Blur: blurred, Noise: noisy, JPEG: compressed}[type(step)](step, image, rng)
    return image


def blurred(step, image, rng):
    kernel = step.draw(torch.from_numpy(rng.integers(-(1 << 63), 1 << 63, (1, step.num_draws))))[0].numpy()
    return np.stack([ndimage.correlate(plane, kernel, mode="mirror") for plane in image.transpose(2, 0, 1)], axis=-1)


def noisy(step, image, rng):
    shape = image.shape[:2] + ((1,) if rng.random() < step.gray else (3,))
    if rng.random() < step.gaussian:
        noise = rng.normal(0, rng.uniform(*step.sigma) / 255, shape)
    else:
        levels = np.round(np.clip(image, 0, 1) * 255)[..., : shape[2]] / 255
        noise = (rng.poisson(levels * 256) / 256 - levels) * rng.uniform(*step.poisson_scale)
    return np.clip(image + noise, 0, 1)


def compressed(step, image, rng):
    file = io.BytesIO()
    levels = np.uint8(np.clip(image, 0, 1) * 255 + 0.5)
    Image.fromarray(levels).save(file, "JPEG", quality=int(rng.integers(step.quality[0], step.quality[1] + 1)))
    return np.asarray(Image.open(file)) / 255


def main(device):
    torch.set_num_threads(1)
    keep_freed_memory()  # as train.py does
    degradations = {
        name: instantiate(OmegaConf.load(ROOT / "conf" / "degradation" / f"{name}.yaml"))
        for name in ("blur_noise_jpeg", "second_order")
    }
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(16):
            coarse = Image.fromarray(rng.integers(0, 256, (85, 128, 3), dtype=np.uint8))
            coarse.resize((1024, 680), Image.Resampling.BICUBIC).save(Path(folder, f"{i}.bmp"))
        store = ImageStore.open(image_folder(folder), SCALE, Bicubic(), Path(folder, "cache"))
        sampler = PatchSampler(store, patch_size=SIDE // SCALE, batch_size=16, seed=0)

        def gathered(k):
            return gather(store, sampler.draw(k), SIDE // SCALE)[1].to(device).float().mul_(1 / 255)

        def batched(degradation):
            def run(k, hr):
                degradation.degrade(hr, SCALE, degradation.draw(0, k, 16))

            return run

        def fixed(degradation):
            return lambda k, hr: degradation.degrade(hr, SCALE, as_int64(degradation.draw(0, k, 16)).to(device))

        def replayed(degradation):
            degrade = ReplayedDegradation(degradation, SCALE, cuda_graph, 16)
            return lambda k, hr: degrade(hr, degradation.draw(0, k, 16))

        def each(degradation):
            def run(k, hr):
                for image in hr.permute(0, 2, 3, 1).cpu().numpy():
                    one_by_one(degradation.steps.values(), image, rng)

            return run

        runs = {"gathering": lambda k, hr: gathered(k)}
        for name, degradation in degradations.items():
            runs |= {name: batched(degradation), f"{name}, one by one": each(degradation)}
            if device != "cpu":
                runs |= {f"{name}, fixed": fixed(degradation), f"{name}, replayed": replayed(degradation)}
        # On a CPU, the time of this one thread: other programs take turns without being counted.
        clock = time.process_time if device == "cpu" else time.perf_counter
        seconds = {name: [] for name in runs}
        for k in range(ROUNDS + 2):
            hr = gathered(k)
            for name, run in runs.items():
                if device != "cpu":
                    torch.cuda.synchronize()
                start = clock()
                run(k, hr)
                if device != "cpu":
                    torch.cuda.synchronize()
                if k >= 2:
                    seconds[name].append(clock() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"medians of {ROUNDS} interleaved rounds, {device}; gathering takes {1e3 * median['gathering']:.2f} ms a batch"
    )
    for name in degradations:
        alone = median[f"{name}, one by one"]
        print(
            f"{name}: {median[name] / median['gathering']:.0f} times the gathering ({1e3 * median[name]:.1f} ms), "
            f"{median[name] / alone:.2f} of one by one"
        )
        if device != "cpu":
            for form in ("fixed", "replayed"):
                print(f"{name}, {form}: {1e3 * median[f'{name}, {form}']:.2f} ms")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
