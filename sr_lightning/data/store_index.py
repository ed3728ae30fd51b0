"""Index of an image store: places of the images in its one file of pixels, and checksums."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def layout(hr_sizes: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the start of HR and of LR of each image, both (N,), and the size of all in bytes."""
    hr_bytes = 3 * hr_sizes.prod(axis=1)
    ends = np.cumsum(hr_bytes + hr_bytes // scale**2)
    lr_starts = ends - hr_bytes // scale**2
    return lr_starts - hr_bytes, lr_starts, int(ends[-1])


def image_bounds(hr_sizes: np.ndarray, scale: int) -> list[int]:
    """Return the first byte of each image, and the size of all, which is where the last one ends."""
    starts, _, total = layout(hr_sizes, scale)
    return [*starts.tolist(), total]


def read_index(folder: Path, images: int, scale: int) -> dict[str, Any] | None:
    """Read the index of a store; None if there is no store, or it is damaged as far as its index and length tell."""
    try:
        index = json.loads((folder / "index.json").read_bytes())
        sizes = np.array(index["hr_sizes"])
        whole = sizes.dtype == np.int64 and sizes.shape == (images, 2) and sizes.min() >= scale
        whole = whole and not (sizes % scale).any() and layout(sizes, scale)[2] == index["bytes"]
        whole = whole and (folder / "pixels").stat().st_size == index["bytes"]
        if whole and "checksum" in index:  # stores of earlier versions have none
            whole = index["checksum"] == checksum(folder.name, index)
        return index if whole else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def checksum(key: str, index: dict[str, Any]) -> str:
    """Hash an index, with the key of its store."""
    content = [key, *(index[name] for name in ("scale", "bytes", "hr_sizes", "sha256"))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def image_digest(file: Path, start: int, end: int) -> str:
    """SHA-256 of the bytes of one image, HR and LR, in the file of the pixels."""
    return hashlib.sha256(np.fromfile(file, np.uint8, end - start, offset=start)).hexdigest()
