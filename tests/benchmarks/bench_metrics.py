"""PSNR and SSIM of one-channel images, one thread: how many times faster than torchmetrics, and how exact.

python tests/benchmarks/bench_metrics.py
"""

import statistics
import sys
import time
from pathlib import Path

import skimage
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.degradations import downscale, upscale
from sr_lightning.metrics.protocol import Protocol, score
from sr_lightning.metrics.psnr_ssim import psnr, ssim, ssim_daala

ROUNDS = 15


def interleaved(functions: dict) -> dict[str, float]:
    """The median seconds of each function, all called in turn."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main():
    torch.set_num_threads(1)
    photo = torch.from_numpy(skimage.data.camera())  # (512, 512) uint8
    print(f"{ROUNDS} interleaved rounds, medians")
    for name, hr in {"0.26 megapixels": photo, "1.05 megapixels": photo.repeat(2, 2)}.items():
        hr = hr[None, None]
        sr, hr = (image.float() / 255 for image in (upscale(downscale(hr, 4), 4), hr))
        seconds = interleaved(
            {
                "torchmetrics ssim": lambda sr=sr, hr=hr: structural_similarity_index_measure(sr, hr, data_range=1.0),
                "ssim": lambda sr=sr, hr=hr: ssim(sr, hr),
                "ssim_daala": lambda sr=sr, hr=hr: ssim_daala(sr, hr),
                "torchmetrics psnr": lambda sr=sr, hr=hr: peak_signal_noise_ratio(sr, hr, data_range=1.0),
                "psnr": lambda sr=sr, hr=hr: psnr(sr, hr),
                "score": lambda sr=sr, hr=hr: score(sr, hr, 4, Protocol()),
            }
        )
        milliseconds = {key: 1e9 * value / hr.numel() for key, value in seconds.items()}
        error = (ssim(sr, hr) - ssim(sr.double(), hr.double())).abs().item()
        print(f"{name}, ms per megapixel: " + "  ".join(f"{key} {value:.1f}" for key, value in milliseconds.items()))
        for function in ("ssim", "psnr"):
            print(f"    {function}: {seconds[f'torchmetrics {function}'] / seconds[function]:.1f} times torchmetrics")
        print(f"    ssim in float32 is {error:.0e} off float64")


if __name__ == "__main__":
    main()
