"""Precision and recall of the search for copies, on planted ones; needs SR_DATA_ROOT with BSDS500.

python tests/benchmarks/bench_copies.py [--images 40] [--seed 0]

Copies of images of BSDS500 train are sought among all 400 images of BSDS500. A pair of images of different origin is
false.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.data.copies import describe, find_copies
from sr_lightning.data.sources import image_folder
from sr_lightning.utils.markdown import markdown_table

ANY = range(8)  # flips and rotations by 90 degrees


# Share of the area that remains, factor of both sides, quality of JPEG (None: none), and symmetries to choose from.
KINDS = {
    "equal": (1, 1, None, [0]),
    "cropped to 80 %": (0.8, 1, None, [0]),
    "cropped to 50 %": (0.5, 1, None, [0]),
    "cropped to 25 %": (0.25, 1, None, [0]),
    "cropped to 10 %": (0.1, 1, None, [0]),
    "rescaled by 0.5": (1, 0.5, None, [0]),
    "rescaled by 0.7": (1, 0.7, None, [0]),
    "rescaled by 2": (1, 2, None, [0]),
    "JPEG of quality 90": (1, 1, 90, [0]),
    "JPEG of quality 30": (1, 1, 30, [0]),
    "flipped or rotated": (1, 1, None, ANY[1:]),
    "80 %, by 0.8, quality 75, any symmetry": (0.8, 0.8, 75, ANY),
    "50 %, by 0.7, quality 50, any symmetry": (0.5, 0.7, 50, ANY),
    "50 %, by 2, quality 30, any symmetry": (0.5, 2, 30, ANY),
    "25 %, by 0.5, quality 30, any symmetry": (0.25, 0.5, 30, ANY),
}


def copy_of(image, share, factor, quality, symmetries, rng):
    """Make a copy of a Pillow image; the crop has the sides' ratio and a random place."""
    width, height = (round(side * share**0.5) for side in image.size)
    left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True))
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    symmetry = int(rng.choice(symmetries))
    if symmetry:
        image = image.transpose(list(Image.Transpose)[symmetry - 1])
    if quality is not None:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        image = Image.open(file)
    return np.asarray(image).transpose(2, 0, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=40, help="copies of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    root = Path(os.environ["SR_DATA_ROOT"], "BSDS500")
    files = [pair.hr for part in ("train", "test") for pair in image_folder(root / part)]
    images = [Image.open(file).convert("RGB") for file in files]

    start = time.perf_counter()
    described = [describe(np.asarray(image).transpose(2, 0, 1)) for image in images]
    origins = list(range(len(images)))
    kind_of = [None] * len(images)
    for kind, settings in KINDS.items():
        for origin in rng.choice(200, options.images, replace=False).tolist():
            described.append(describe(copy_of(images[origin], *settings, rng)))
            origins.append(origin)
            kind_of.append(kind)
    middle = time.perf_counter()
    copies = find_copies(described)
    end = time.perf_counter()

    pairs = {(copy.first, copy.second) for copy in copies}
    false = [pair for pair in pairs if origins[pair[0]] != origins[pair[1]]]
    lines = [["kind", "planted", "found"]]
    for kind in KINDS:
        planted = [i for i, other in enumerate(kind_of) if other == kind]
        found = sum((i, origins[i]) in pairs for i in planted)
        lines.append([kind, str(len(planted)), f"{found / len(planted):.1%}"])
    print(markdown_table(lines))
    print(f"{len(pairs)} pairs, {len(false)} of them false: precision {1 - len(false) / len(pairs):.2%}")
    print(f"{len(images)} + {len(described) - len(images)} images: {middle - start:.0f} s + {end - middle:.0f} s")


if __name__ == "__main__":
    main()
