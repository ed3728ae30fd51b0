"""Image store: all images of a data set, decoded once into one file that every process maps into memory."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sr_lightning.data.file_digests import file_digests
from sr_lightning.data.pair_images import Degradation, naming_all
from sr_lightning.data.sources import Pair
from sr_lightning.data.store_build import build, remove_abandoned
from sr_lightning.data.store_index import image_bounds, image_digest, layout, read_index
from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import delete, one_at_a_time
from sr_lightning.utils.messages import listing
from sr_lightning.utils.threads import in_threads

FORMAT = 1  # increase it when image files are decoded or stored in another way
RESIDENCES = ("mmap", "memory")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStore:
    """Images of a data set, HR cropped to a multiple of the scale, with their LR.

    A pickle has the path of the pixels, not the pixels: workers started by spawn or forkserver map the same pages.

    Attributes:
        names: Names of the N images.
        scale: The factor.
        pixels: uint8, flat: for each image HR as (H, W, 3), then LR as (H/scale, W/scale, 3). With interleaved colours
            a row of a patch is one piece of memory; in planes it would be three, and gathering patches, which is bound
            by memory, up to a third slower.
        hr_sizes, lr_sizes: (N, 2) int64, height and width.
        hr_starts, lr_starts: (N,) int64, index in `pixels` at which each image starts.
        file: The file of the pixels; None if they are only in memory.
    """

    names: tuple[str, ...]
    scale: int
    pixels: np.ndarray
    hr_sizes: np.ndarray
    lr_sizes: np.ndarray
    hr_starts: np.ndarray
    lr_starts: np.ndarray
    file: Path | None = None

    @classmethod
    def open(
        cls,
        pairs: Sequence[Pair],
        scale: int,
        degradation: Degradation | None,
        cache_dir: str | Path,
        residence: str = "mmap",
    ) -> "ImageStore":
        """Open the store of these images; build it if it is not in the cache.

        Its key is the content of the files and the settings, whatever the paths of the files. All processes that open
        it while it is missing build it together; what killed ones have decoded is used.

        Args:
            pairs: The images. Of HR that is no multiple of the scale, the part that both show is stored (`crop_lr`).
            scale: The factor.
            degradation: Makes LR of whole cropped HR images for pairs without LR; None if every pair has LR.
            cache_dir: Folder of the stores.
            residence: "mmap": pages of the file, shared by all processes; "memory": a private copy.

        Raises:
            InputError: No images, bad files (all are named), LR that does not match its HR, neither LR nor a
                degradation, or a full disk.
        """
        if residence not in RESIDENCES:
            raise InputError(f"residence={residence}: choose {' or '.join(RESIDENCES)}")
        if not pairs:
            raise InputError("the data set has no images")
        if degradation is None and (bare := [pair.name for pair in pairs if pair.lr is None]):
            raise InputError(f"{len(bare)} images have no LR file, and no degradation is given:{listing(bare)}")
        cache_dir = _writable(Path(cache_dir).expanduser())
        try:
            with naming_all(pairs, scale):
                folder = cache_dir / _key(pairs, scale, degradation, cache_dir)
            index = read_index(folder, len(pairs), scale)
            if index is None:
                remove_abandoned(cache_dir)
                _remove_damaged(folder, len(pairs), scale)
                index = build(folder, pairs, scale, degradation)
        except OSError as error:
            raise InputError(
                f"{error.filename or cache_dir}: the decoded images cannot be stored ({error.strerror}); make space or "
                "remove what is in the way, or set another cache_dir"
            ) from error
        sizes = np.array(index["hr_sizes"])
        hr_starts, lr_starts, _ = layout(sizes, scale)
        file = folder / "pixels"
        if residence == "memory":
            pixels = np.fromfile(file, np.uint8)
            pixels.flags.writeable = False
        else:
            pixels = _map(file)
        names = tuple(pair.name for pair in pairs)
        return cls(names, scale, pixels, sizes, sizes // scale, hr_starts, lr_starts, file)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) if self.file is None else vars(self) | {"pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state if state["file"] is None else state | {"pixels": _map(state["file"])})

    def __len__(self) -> int:
        return len(self.names)

    def hr(self, index: int) -> np.ndarray:
        """HR image (3, H, W) uint8, a read-only view that is not contiguous."""
        return self._image(self.hr_starts[index], self.hr_sizes[index])

    def lr(self, index: int) -> np.ndarray:
        """LR image (3, H/scale, W/scale) uint8, a read-only view that is not contiguous."""
        return self._image(self.lr_starts[index], self.lr_sizes[index])

    def _image(self, start: np.int64, size: np.ndarray) -> np.ndarray:
        height, width = size
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3).transpose(2, 0, 1)

    def check_patch_size(self, patch_size: int) -> None:
        """Check that no image is smaller than a patch.

        Args:
            patch_size: In LR pixels.

        Raises:
            InputError: Names the smaller images, and the largest patch_size that fits.
        """
        small = np.flatnonzero(self.lr_sizes.min(axis=1) < patch_size)
        if len(small) == 0:
            return
        named = [f"{self.names[i]}: LR of {self.lr_sizes[i, 0]}x{self.lr_sizes[i, 1]}" for i in small]
        raise InputError(
            f"patch_size={patch_size} (LR pixels) does not fit into {len(small)} of {len(self)} images; "
            f"set data.skip_small=true to leave them out, or data.patch_size to {self.lr_sizes.min()} or less:"
            f"{listing(named)}"
        )


def verify(pairs: Sequence[Pair], scale: int, degradation: Degradation | None, cache_dir: str | Path) -> bool:
    """Compare all pixels of a store with their checksum, and remove the store if they differ.

    `ImageStore.open`, with the same arguments, compares only what is cheap, the checksum of the index and the number of
    bytes. It decodes the images of a removed store again.

    Returns:
        False if the store was damaged, or made by an earlier version, without a checksum. True if it is whole, or there
        is none.

    Raises:
        InputError: Files of the images are missing.
    """
    folder = Path(cache_dir).expanduser() / _key(pairs, scale, degradation, None)
    if not os.path.lexists(folder):
        return True
    with one_at_a_time(f"{folder}.lock", f"the decoded images in {folder}"):
        index = read_index(folder, len(pairs), scale)
        if index is not None and _has_checksum(folder / "pixels", index, scale):
            return True
        log.warning("%s is damaged or has no checksum: it is removed, and the images are decoded again", folder)
        delete(folder)
    return False


def _has_checksum(file: Path, index: dict[str, Any], scale: int) -> bool:
    """Compare the pixels of a store with their checksums: one of each image, or, of an earlier version, of all."""
    expected = index.get("sha256")
    if isinstance(expected, list):
        bounds = pairwise(image_bounds(np.array(index["hr_sizes"]), scale))
        found = in_threads(lambda start_and_end: image_digest(file, *start_and_end), bounds)
        return all(digest == other for digest, other in zip(found, expected, strict=True))
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == expected


def _remove_damaged(folder: Path, images: int, scale: int) -> None:
    """Remove a store that cannot be opened, with a line in the log."""
    with one_at_a_time(f"{folder}.lock", f"the decoded images in {folder}"):
        if os.path.lexists(folder) and read_index(folder, images, scale) is None:
            log.warning("%s is damaged: the images are decoded again", folder)
            delete(folder)


def _map(file: Path) -> np.ndarray:
    return np.asarray(np.memmap(file, np.uint8, mode="r"))  # views of a plain array are cheaper to make


def _key(pairs: Sequence[Pair], scale: int, degradation: Degradation | None, cache_dir: Path | None) -> str:
    """Key of the store: a hash of everything that its bytes depend on, but not of paths and file names.

    Digests of files that are cached in `cache_dir` are not computed; None computes all.
    """
    files = [file for pair in pairs for file in (pair.hr, pair.lr) if file is not None]
    digest = file_digests(files, cache_dir)
    made = any(pair.lr is None for pair in pairs)
    content = {
        "format": FORMAT,
        "scale": scale,
        "degradation": degradation.key if made else None,
        "images": [[digest[pair.hr], pair.lr and digest[pair.lr]] for pair in pairs],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _writable(cache_dir: Path) -> Path:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache_dir}: cannot create this folder ({error.strerror}); set another cache_dir") from None
    if not os.access(cache_dir, os.W_OK):
        raise InputError(f"{cache_dir}: no permission to write into this folder; set another cache_dir")
    return cache_dir
