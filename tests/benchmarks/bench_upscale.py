"""A 1024x1536 image in tiles, one thread: time as a multiple of the whole image's.

python tests/benchmarks/bench_upscale.py
"""

import logging
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.networks import EDSR, ESPCN, FSRCNN, SRCNN, WDSR
from sr_lightning.upscale.upscaler import Upscaler

ROUNDS = 3
NETWORKS = {
    "ESPCN x2": lambda: ESPCN(scale=2, global_skip=True),
    "ESPCN x4": lambda: ESPCN(scale=4, global_skip=True),
    "FSRCNN x3": lambda: FSRCNN(scale=3, global_skip=True),
    "SRCNN x3": lambda: SRCNN(scale=3, global_skip=True),
    "EDSR 4x24, luma, x3": lambda: EDSR(scale=3, num_features=24, num_blocks=4, num_channels=1),
    "WDSR-A 4 blocks x4": lambda: WDSR(scale=4, num_blocks=4),
}
TILES = (0, 64, 128, 256, 512, "auto")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable()
    image = torch.randint(0, 256, (3, 1024, 1536), dtype=torch.uint8)
    print(f"{ROUNDS} interleaved rounds, medians of processor time, times the whole image's")
    for name, build in NETWORKS.items():
        upscalers = {tile: Upscaler(build(), name, device="cpu", tile=tile) for tile in TILES}
        seconds = {tile: [] for tile in TILES}
        for upscaler in upscalers.values():
            upscaler.upscale(image[:, :32, :32])
        for _ in range(ROUNDS):
            for tile, upscaler in upscalers.items():
                start = time.process_time()
                upscaler.upscale(image)
                seconds[tile].append(time.process_time() - start)
        median = {tile: statistics.median(values) for tile, values in seconds.items()}
        ratios = "  ".join(f"{tile}: {median[tile] / median[0]:.2f}" for tile in TILES[1:])
        side, margin = upscalers["auto"]._automatic, upscalers["auto"].margin
        print(f"{name}: {ratios}  (auto {side}, margin {margin}; whole {median[0]:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
