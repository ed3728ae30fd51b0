"""Upscaling in tiles: python tests/benchmarks/bench_upscale.py [--model MODEL …] [--height 1080] [--release].

For networks of conf/model at x2 and x4 and an output of 1920x1080: speed in tiles as a share of the speed of the whole
image, on one thread; least processor time of interleaved rounds. The process keeps freed memory, as the command does;
with --release it returns it, as Python does by default, and the whole image gets new memory for each layer.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.configs import CONF
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.utils.malloc import keep_freed_memory

TILES = (0, 256, "auto")


def speeds(model: str, scale: int, height: int, rounds: int) -> str:
    network = instantiate(compose("train", [f"model={model}", f"scale=x{scale}"]).model.network)
    image = torch.randint(0, 256, (3, height // scale, height * 16 // 9 // scale), dtype=torch.uint8)
    upscalers = {tile: Upscaler(network, model, device="cpu", tile=tile) for tile in TILES}
    seconds = dict.fromkeys(TILES, float("inf"))
    for upscaler in upscalers.values():
        upscaler.upscale(image[:, :64, :64])
    for _ in range(rounds):
        for tile, upscaler in upscalers.items():
            start = time.process_time()
            upscaler.upscale(image)
            seconds[tile] = min(seconds[tile], time.process_time() - start)
    shares = "  ".join(f"{tile}: {seconds[0] / seconds[tile]:.2f}" for tile in TILES[1:])
    rows, columns = upscalers["auto"]._tile_for(*image.shape[-2:]) or image.shape[-2:]
    return f"{shares}  (auto {columns}x{rows}, margin {upscalers['auto'].margin}; whole {seconds[0]:.2f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["espcn", "fsrcnn", "srcnn", "edsr_baseline", "wdsr_a"])
    parser.add_argument("--height", type=int, default=1080, help="of the output (default: 1080)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--release", action="store_true", help="return freed memory to the system")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable()
    if not options.release:
        keep_freed_memory()
    with initialize_config_dir(str(CONF), version_base=None):
        for model in options.model:
            for scale in (2, 4):
                print(f"{model} x{scale}: {speeds(model, scale, options.height, options.rounds)}", flush=True)


if __name__ == "__main__":
    main()
