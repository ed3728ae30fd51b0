"""PSNR and SSIM of one-channel images, one thread, compared with torchmetrics and with a separable filter alone.

python tests/benchmarks/bench_metrics.py
"""

import sys
import time
from pathlib import Path

import skimage
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.degradations import downscale, upscale
from sr_lightning.metrics.protocol import Protocol, score
from sr_lightning.metrics.psnr_ssim import WANG_TAPS, WINDOW, psnr, ssim, ssim_daala
from sr_lightning.metrics.ssim_map import _STRIP, _blur_by_slices

ROUNDS = 15


def interleaved(functions: dict) -> dict[str, float]:
    """The least seconds of each function, all called in turn."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.process_time()  # other programs take turns without being counted
            function()
            times[name].append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in times.items()}


def filter_alone(width, strips):
    """Blur the four maps that SSIM needs by an 11-tap window in both directions, one multiply-add per tap."""
    maps = torch.rand(4, (_STRIP // width + WINDOW - 1) * width + WINDOW - 1)
    for _ in range(strips):
        _blur_by_slices(_blur_by_slices(maps, width, WANG_TAPS), 1, WANG_TAPS)


def main():
    torch.set_num_threads(1)
    photo = torch.from_numpy(skimage.data.camera())  # (512, 512) uint8
    print(f"{ROUNDS} interleaved rounds, the least of each")
    for name, hr in {"0.26 megapixels": photo, "1.05 megapixels": photo.repeat(2, 2)}.items():
        hr = hr[None, None]
        sr, hr = (image.float() / 255 for image in (upscale(downscale(hr, 4), 4), hr))
        width, strips = hr.shape[3], hr.numel() // _STRIP
        seconds = interleaved(
            {
                "filter alone": lambda width=width, strips=strips: filter_alone(width, strips),
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
        ratio = (seconds["psnr"] + seconds["ssim"]) / seconds["filter alone"]
        print(f"    psnr and ssim: {ratio:.2f} times the filter alone")
        print(f"    ssim in float32 is {error:.0e} off float64")


if __name__ == "__main__":
    main()
