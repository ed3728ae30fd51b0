"""Cost of decoding a data set: measured on small photos and on images of 2040 x 1356, computed for large sets.

  python tests/benchmarks/bench_data.py            (SR_DATA_ROOT has T91/ and BSDS500/)

Processor seconds of one thread, since decoding runs in up to eight threads, and the memory of the process. The large
images are mosaics of mirrored photos of BSDS500. Images of all sets are assumed to be as large as those of DIV2K.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.data import store_build
from sr_lightning.data.file_digests import file_digests
from sr_lightning.data.sources import Pair, image_folder
from sr_lightning.data.store import ImageStore
from sr_lightning.degradations import Bicubic
from sr_lightning.utils import threads

SCALE, LARGE, TINY = 2, 8, 3000
PIXELS = 2_793_250  # of an image of DIV2K, the mean (Agustsson and Timofte, CVPR workshops 2017, table 1)
SETS = {"DIV2K": 800, "DF2K": 3450, "LSDIR": 84_991}
THREADS, MACHINES = 8, 4


def mosaic(photos: list[Path], number: int) -> Image.Image:
    """An image of 2040 x 1356 from four photos and their mirror images."""
    whole = Image.new("RGB", (2040, 1356))
    for i, (y, x) in enumerate(np.ndindex(5, 7)):
        photo = Image.open(photos[(4 * number + i) % len(photos)])
        whole.paste(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else photo, (321 * x, 321 * y))
    return whole


def peak() -> float:
    """The most memory that this process has had, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1000


def measured(name: str, pairs: list[Pair], cache: Path) -> tuple[float, float]:
    """Print what a store takes; return processor seconds of a million pixels, of all and of hashing the files."""
    millions = sum(np.prod(Image.open(pair.hr).size) for pair in pairs) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start = peak(), time.process_time()
    file_digests([pair.hr for pair in pairs], None)
    hashed = time.process_time() - start
    start = time.process_time()
    store = ImageStore.open(pairs, SCALE, Bicubic(), cache)
    built = time.process_time() - start
    start = time.process_time()
    ImageStore.open(pairs, SCALE, Bicubic(), cache)
    opened = time.process_time() - start
    cells = [f"{len(pairs):,}", f"{millions:.1f}", f"{store.pixels.nbytes / 1e6:.0f}", f"{1e3 * hashed / millions:.1f}"]
    cells += [f"{1e3 * built / millions:.0f}", f"{1e6 * opened / len(pairs):.0f}", f"{peak() - before:.0f}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return built / millions, hashed / millions


def serial(cache: Path) -> float:
    """Seconds of a million pixels in the one thread that writes."""
    image, rounds = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8), 20
    start = time.process_time()
    with (cache / "pixels").open("wb") as file:
        for _ in range(rounds):
            file.write(image.data)
    return (time.process_time() - start) / rounds * (1 + 1 / SCALE**2)


def build_at(barrier: Barrier, seconds: Queue, pairs: list[Pair], cache: Path) -> None:
    """Build a store in a process of its own, each image a part, in one thread."""
    threads.THREADS, store_build.PART = 1, 1
    torch.set_num_threads(1)
    barrier.wait()
    start = time.process_time()
    ImageStore.open(pairs, SCALE, Bicubic(), cache)
    seconds.put(time.process_time() - start)


def together(pairs: list[Pair], cache: Path, number: int) -> list[float]:
    """Processor seconds of each of a number of processes that build one store."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(number), context.Queue()
    processes = [context.Process(target=build_at, args=(barrier, seconds, pairs, cache)) for _ in range(number)]
    for process in processes:
        process.start()
    found = [seconds.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    root = Path(os.environ["SR_DATA_ROOT"])
    threads.THREADS = 1
    with tempfile.TemporaryDirectory() as folder:
        large, tiny = Path(folder, "large"), Path(folder, "tiny")
        large.mkdir()
        tiny.mkdir()
        photos = sorted((root / "BSDS500").rglob("*.jpg")) or sorted((root / "BSDS500").rglob("*.png"))
        for i in range(LARGE):
            mosaic(photos, i).save(large / f"{i}.png")
        for i in range(TINY):
            Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(tiny / f"{i}.png")
        print(f"x{SCALE}, one thread; milliseconds a million pixels, microseconds an image\n")
        print("| | images | million pixels | MB | hash, ms | build, ms | open, us | memory, MB |")
        print("|---|---|---|---|---|---|---|---|")
        cache = Path(folder, "cache")
        measured("T91", image_folder(root / "T91"), cache)
        measured("BSDS500", [Pair(path.stem, path) for path in photos[:100]], cache)
        seconds, hashing = measured("2040 x 1356", image_folder(large), cache)
        measured("8 x 8", image_folder(tiny), cache)
        for number in (1, 2):
            found = together(image_folder(large), Path(folder, str(number)), number)
            print(f"{LARGE} of 2040 x 1356 by {number} processes, s: {', '.join(f'{each:.2f}' for each in found)}")
        alone = serial(cache)
        print(f"\nThe thread that writes: {1e3 * alone:.1f} ms a million pixels\n")
        print(f"| | images | GB at x2 | at x4 | minutes, one core | {THREADS} cores | {MACHINES} x {THREADS} cores |")
        print("|---|---|---|---|---|---|---|")
        for name, images in SETS.items():
            millions = images * PIXELS / 1e6
            sizes = [f"{3e6 * millions * (1 + 1 / scale**2) / 1e9:,.0f}" for scale in (2, 4)]
            one = max(seconds / THREADS, alone)
            several = hashing / THREADS + max((seconds - hashing) / THREADS, alone) / MACHINES  # each hashes all files
            minutes = [f"{millions * each / 60:,.1f}" for each in (seconds, one, several)]
            print(f"| {name} | {images:,} | {' | '.join([*sizes, *minutes])} |")


if __name__ == "__main__":
    main()
