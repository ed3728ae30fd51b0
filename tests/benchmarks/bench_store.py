"""Memory of a process that gathers from a memory-mapped store, for a small and a large data set; Linux only.

python tests/benchmarks/bench_store.py

Private memory must not grow with the data set: decoded images stay in pages of the file, which processes share.
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.data.patches import PatchSampler, gather
from sr_lightning.data.sources import image_folder
from sr_lightning.data.store import ImageStore

COUNTS, BATCHES = (16, 160), 2000


def first_pixels(hr, scale):
    return hr[:, ::scale, ::scale]


first_pixels.key = "the first of each scale x scale pixels"


def memory():
    """Anonymous (RssAnon), private (clean and dirty) and file-backed (RssFile) memory of this process, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    rollup = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = (status["RssAnon"], rollup["Private_Dirty"], status["RssFile"])
    return np.array([int(value.split()[0]) / 1000 for value in kilobytes])


def measure(folder, cache, residence):
    """In a process of its own: memory before the store is opened and after many batches."""
    torch.set_num_threads(1)
    pairs = image_folder(folder)
    start = time.perf_counter()
    before = memory()
    store = ImageStore.open(pairs, 4, first_pixels, cache, residence)
    opened = time.perf_counter() - start
    sampler = PatchSampler(store, patch_size=48, batch_size=16, seed=0)
    for number in range(BATCHES):
        gather(store, sampler.draw(number), 48)
    grown = memory() - before
    print(
        f"{len(store):4} images, {store.pixels.nbytes / 1e6:.0f} MB, {residence:6}: opened in {opened:.2f} s; "
        f"after {BATCHES} batches: anonymous {grown[0]:.1f} MB, private dirty {grown[1]:.1f}, file {grown[2]:.0f}"
    )


def main():
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for count in COUNTS:
            images = Path(folder, str(count))
            images.mkdir()
            tile = rng.integers(0, 256, (1356, 2040, 3), dtype=np.uint8)
            for i in range(count):
                Image.fromarray(np.roll(tile, i, axis=0)).save(images / f"{i:03}.bmp")
            start = time.perf_counter()
            ImageStore.open(image_folder(images), 4, first_pixels, Path(folder, "cache"))
            print(f"{count:4} images built in {time.perf_counter() - start:.1f} s")
            for residence in ("mmap", "memory") if count == COUNTS[0] else ("mmap",):
                process = context.Process(target=measure, args=(images, Path(folder, "cache"), residence))
                process.start()
                process.join()


if __name__ == "__main__":
    main()
