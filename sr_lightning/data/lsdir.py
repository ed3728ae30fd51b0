"""LSDIR: 84,991 training and 250 validation photos.

Li et al., "LSDIR: A large scale dataset for image restoration" (CVPR workshops 2023, https://ofsoundof.github.io/lsdir-data).
The download needs a login, so the user provides the folders.
"""

import os
import re
from pathlib import Path

from sr_lightning.data.sources import Pair
from sr_lightning.errors import InputError
from sr_lightning.utils.messages import listing

NUM_IMAGES = {"train": 84_991, "val": 250}
ADVICE = (
    "Download shard-00.tar.gz to shard-16.tar.gz and val1.tar.gz by hand from https://huggingface.co/ofsoundof/LSDIR "
    "(with a login) and unpack them there. For another folder: data.train.root=DIR"
)


def lsdir(root: str | Path, split: str = "train", limit: int | None = None) -> list[Pair]:
    """List the HR images of one split by their number, without LR, which is made from them.

    The folders of the archives may be at any depth below `root`: `0001000/0000001.png` of a shard, also in `shard-00/`
    or `HR/train/`, and `val1/HR/val/0000001.png`.

    Args:
        root: Folder of the data set.
        split: "train" or "val".
        limit: Number of images to take from the beginning; None takes all.

    Raises:
        InputError: An invalid choice, or missing images.
    """
    root = Path(root).expanduser()
    if split not in NUM_IMAGES:
        raise InputError(f"LSDIR: split={split}: choose {' or '.join(NUM_IMAGES)}")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"LSDIR: limit={limit}: the number of images to take, or null for all")
    found = find_images(root, split)
    numbers = range(1, min(limit or NUM_IMAGES[split], NUM_IMAGES[split]) + 1)
    missing = [f"{number:07}.png" for number in numbers if number not in found]
    if missing:
        raise InputError(
            f"LSDIR: {len(missing):,} of {len(numbers):,} {split} images are missing below {root}. {ADVICE}. Or take "
            f"fewer with data.train.limit (data.val.limit); a shard has 5,000{':' + listing(missing) if found else ''}"
        )
    return [Pair(found[number].stem, found[number]) for number in numbers]


def find_images(root: Path, split: str) -> dict[int, Path]:
    """Find image number -> HR file of a split; of two files of one number that of the first folder by name."""
    pattern, found = re.compile(r"(\d{7})\.png"), {}
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        parts = Path(folder).relative_to(root).parts
        if ("val" in parts) == (split == "val") and "test" not in parts:
            for file in files:
                if match := pattern.fullmatch(file):
                    found.setdefault(int(match[1]), Path(folder, file))
    return found
