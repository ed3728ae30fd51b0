"""Upscaling of large images and folders: python tests/benchmarks/bench_upscale.py [tiles] [png] [folder] [options].

tiles   for networks of conf/model at x2 and x4 and an output of 1920x1080: speed in tiles as a share of the speed of
        the whole image; least processor time of interleaved rounds. Freed memory is kept, as by the command; with
        --release it is returned, as in Python by default, and the whole image gets new memory for each layer
png     speed and size of PNG by compression level, on enlarged photos (BSDS500 under SR_DATA_ROOT)
folder  the command's loop over these photos: decoding, network and encoding alone, and all together, in seconds; they
        share the cores: compare the time together with the slowest or, if longer, their sum over the cores (the least)
"""

import argparse
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.configs import CONF
from sr_lightning.images.photo import read_photo, write_photo
from sr_lightning.networks import ESPCN
from sr_lightning.upscale.pipeline import upscale_images
from sr_lightning.upscale.plan import Job
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.utils.malloc import keep_freed_memory
from sr_lightning.utils.threads import THREADS

TILES = (0, 256, "auto")


def tiles(model: str, scale: int, height: int, rounds: int) -> str:
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


def photos() -> list[Path]:
    found = sorted(Path(os.environ.get("SR_DATA_ROOT", "data"), "BSDS500").rglob("*.jpg"))[:12]
    if not found:
        sys.exit("no photos: set SR_DATA_ROOT to the folder of BSDS500")
    return found


def png() -> None:
    images = [read_photo(path) for path in photos()]
    for name, scale in (("photos", 1), ("bicubic x3", 3)):
        enlarged = [image.resize((image.width * scale, image.height * scale), Image.BICUBIC) for image in images]
        megapixels = sum(image.width * image.height for image in enlarged) / 1e6
        sizes = {}
        for level in (6, 9, 5, 4, 3, 2, 1, 0):
            files = [io.BytesIO() for _ in enlarged]
            start = time.process_time()
            for image, file in zip(enlarged, files, strict=True):
                image.save(file, "PNG", compress_level=level)
            speed = megapixels / (time.process_time() - start)
            sizes[level] = sum(file.tell() for file in files)
            print(f"{name}, level {level}: {speed:.1f} megapixels/s, {sizes[level] / sizes[6]:.2f} of level 6's size")


def folder(scale: int, suffix: str, level: int, rounds: int) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    net = Upscaler(ESPCN(scale=scale, global_skip=True), "ESPCN", device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        jobs = [Job(path, Path(temporary, f"{path.stem}.{suffix}")) for path in photos()]
        images = [read_photo(job.source) for job in jobs]
        results = [net.upscale(image) for image in images]

        def encode() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                targets = [job.target for job in jobs]
                list(pool.map(lambda path, image: write_photo(path, image, png_compression=level), targets, results))

        parts: dict[str, Callable[[], object]] = {
            "decoding": lambda: [read_photo(job.source) for job in jobs],
            "network": lambda: [net.upscale(image) for image in images],
            "encoding": encode,
            "together": lambda: upscale_images(net, jobs, 95, level, tqdm(disable=True)),
        }
        times = {part: (float("inf"), float("inf")) for part in parts}  # elapsed, of the processor
        for _ in range(rounds):
            for part, function in parts.items():
                start, start_processor = time.perf_counter(), time.process_time()
                function()
                elapsed = time.perf_counter() - start, time.process_time() - start_processor
                times[part] = min(times[part], elapsed)
    together = times.pop("together")[0]
    slowest = max(elapsed for elapsed, _ in times.values())
    least = max(slowest, sum(processor for _, processor in times.values()) / len(os.sched_getaffinity(0)))
    print(f"ESPCN x{scale}, {suffix}, level {level}: seconds (of the processor)")
    for part, (elapsed, processor) in times.items():
        print(f"  {part} {elapsed:.2f} ({processor:.2f})")
    print(f"  together {together:.2f}: {together / slowest:.2f} of the slowest, {together / least:.2f} of the least")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", default=["tiles"], help="tiles, png, folder (default: tiles)"
    )
    parser.add_argument("--model", nargs="+", default=["espcn", "fsrcnn", "srcnn", "edsr_baseline", "wdsr_a"])
    parser.add_argument("--height", type=int, default=1080, help="of the output (default: 1080)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--release", action="store_true", help="return freed memory to the system")
    options = parser.parse_args()
    torch.manual_seed(0)
    logging.disable()
    if not options.release:
        keep_freed_memory()
    if "tiles" in options.parts:
        torch.set_num_threads(1)
        with initialize_config_dir(str(CONF), version_base=None):
            for model in options.model:
                for scale in (2, 4):
                    print(f"{model} x{scale}: {tiles(model, scale, options.height, options.rounds)}", flush=True)
    if "png" in options.parts:
        png()
    if "folder" in options.parts:
        for suffix, level in (("png", 6), ("png", 2), ("jpg", 2)):
            folder(3, suffix, level, options.rounds)


if __name__ == "__main__":
    main()
