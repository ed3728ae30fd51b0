"""Bicubic LR from one 2040x1356 RGB image, one thread: time as a multiple of Pillow's (which is not exact).

python tests/benchmarks/bench_bicubic.py
"""

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
    interleaved = hr.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    pillow_hr = Image.fromarray(interleaved.permute(1, 2, 0).numpy())

    def pillow(scale):
        pillow_hr.resize((2040 // scale, 1356 // scale), Image.Resampling.BICUBIC)

    def torch_uint8(scale):
        torch.nn.functional.interpolate(hr[None], scale_factor=1 / scale, mode="bicubic", antialias=True)

    def ours(scale):
        bicubic.downscale(hr, scale)

    def ours_new_size(scale):
        bicubic._bands.cache_clear()
        bicubic.downscale(hr, scale)

    def ours_interleaved(scale):
        bicubic.downscale(interleaved, scale)

    def ours_by_matrix(scale):
        bicubic._multiply(bicubic._multiply(hr, -2, 1, scale, "mirror"), -1, 1, scale, "mirror")

    print(f"{ROUNDS} interleaved rounds, the least of each, times Pillow {PIL.__version__}")
    for scale in (2, 3, 4):
        times = {resize: [] for resize in (pillow, torch_uint8, ours, ours_new_size, ours_interleaved, ours_by_matrix)}
        for _ in range(ROUNDS):
            for resize, seconds in times.items():
                start = time.process_time()  # other programs take turns without being counted
                resize(scale)
                seconds.append(time.process_time() - start)
        least = {resize: min(seconds) for resize, seconds in times.items()}
        ratios = "  ".join(f"{resize.__name__} {t / least[pillow]:.2f}" for resize, t in least.items())
        print(f"x{scale}: {ratios}  (pillow {1e3 * least[pillow]:.1f} ms)")


if __name__ == "__main__":
    main()
