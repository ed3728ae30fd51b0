"""Bicubic LR from one 2040x1356 RGB image, one thread: time as a multiple of Pillow's (which is not exact).

python tests/benchmarks/bench_bicubic.py
"""

import statistics
import sys
import time
from pathlib import Path

import PIL
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.degradations import bicubic

ROUNDS = 25


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hr = torch.randint(0, 256, (3, 1356, 2040), dtype=torch.uint8)
    pillow_hr = Image.fromarray(hr.permute(1, 2, 0).contiguous().numpy())

    def pillow(scale):
        pillow_hr.resize((2040 // scale, 1356 // scale), Image.Resampling.BICUBIC)

    def torch_uint8(scale):
        torch.nn.functional.interpolate(hr[None], scale_factor=1 / scale, mode="bicubic", antialias=True)

    def ours(scale):
        bicubic.downscale(hr, scale)

    def ours_new_size(scale):
        bicubic._bands.cache_clear()
        bicubic.downscale(hr, scale)

    def ours_float64(scale):
        with torch.autocast("cpu"):  # makes it leave float32
            bicubic.downscale(hr, scale)

    print(f"{ROUNDS} interleaved rounds, medians, times Pillow {PIL.__version__}")
    for scale in (2, 3, 4):
        times = {resize: [] for resize in (pillow, torch_uint8, ours, ours_new_size, ours_float64)}
        for _ in range(ROUNDS):
            for resize, seconds in times.items():
                start = time.perf_counter()
                resize(scale)
                seconds.append(time.perf_counter() - start)
        median = {resize: statistics.median(seconds) for resize, seconds in times.items()}
        ratios = "  ".join(f"{resize.__name__} {t / median[pillow]:.2f}" for resize, t in median.items())
        print(f"x{scale}: {ratios}  (pillow {1e3 * median[pillow]:.1f} ms)")


if __name__ == "__main__":
    main()
