"""Patches from an image store to float tensors, as a share of the bare uint8 -> float conversion of the same bytes.

python tests/benchmarks/bench_patches.py

16 images of 2040x1356 in a memory-mapped store, scale 4, batches of 16, all symmetries, one thread.
"""

import statistics
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.data.patches import PatchSampler, gather
from sr_lightning.data.sources import image_folder
from sr_lightning.data.store import ImageStore

ROUNDS, BATCHES = 100, 8  # BATCHES in each round


def to_float(lr, hr):
    return lr.float().mul_(1 / 255), hr.float().mul_(1 / 255)


def first_pixels(hr, scale):
    return hr[:, ::scale, ::scale]


first_pixels.key = "the first of each scale x scale pixels"


def measure(store, patch_size):
    """Medians over rounds, in seconds per batch: conversion alone, gathering, gathering and conversion."""
    sampler = PatchSampler(store, patch_size=patch_size, batch_size=16, seed=0)
    numbers = count()  # places not met before, as in training
    given = gather(store, sampler.draw(next(numbers)), patch_size)
    runs = (
        lambda: to_float(*given),
        lambda: gather(store, sampler.draw(next(numbers)), patch_size),
        lambda: to_float(*gather(store, sampler.draw(next(numbers)), patch_size)),
    )
    times = [[], [], []]
    for _ in range(ROUNDS):
        for run, seconds in zip(runs, times, strict=True):
            start = time.process_time()  # of this one thread: other programs take turns without being counted
            for _ in range(BATCHES):
                run()
            seconds.append((time.process_time() - start) / BATCHES)
    return [statistics.median(seconds) for seconds in times]


def main():
    torch.set_num_threads(1)
    # glibc returns freed blocks larger than the largest freed so far (up to 32 MB) to the system, and getting them
    # again costs more than filling them. Any training frees one; without it all runs would mostly measure page faults.
    torch.ones(31 << 20, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (16, 1356, 2040, 3), dtype=np.uint8)
        for i, image in enumerate(noise):
            Image.fromarray(image).save(Path(folder, f"{i}.bmp"))
        store = ImageStore.open(image_folder(folder), 4, first_pixels, Path(folder, "cache"))
        print(f"share of the conversion's rate; medians of {ROUNDS} interleaved rounds of {BATCHES} batches")
        for patch_size in (24, 48):
            conversion, gathering, both = measure(store, patch_size)
            print(
                f"HR {4 * patch_size:3}: draw, gather and convert {conversion / both:.1%}; "
                f"draw and gather {conversion / gathering:.1%} ({16 / both:,.0f} and {16 / gathering:,.0f} patches/s)"
            )


if __name__ == "__main__":
    main()
