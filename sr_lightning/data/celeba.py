"""CelebA: 202,599 photos of faces, aligned and cropped to 178x218.

Liu, Luo, Wang, Tang, "Deep learning face attributes in the wild" (2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html).
The download needs a login, so the user provides the folder or zip archive.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sr_lightning.data.sources import Pair
from sr_lightning.errors import InputError
from sr_lightning.images.zip_member import ZipMember, members
from sr_lightning.utils.messages import listing

SPLITS = ("train", "valid", "test")  # 0, 1 and 2 in the split file: 162,770, 19,867 and 19,962 images
IMAGES = "img_align_celeba"
SPLIT_FILES = (
    "list_eval_partition.txt",
    "list_eval_partition.csv",
)  # official, and of copies on other sites

log = logging.getLogger(__name__)


def celeba(root: str | Path, split: str = "train", limit: int | None = None) -> list[Pair]:
    """List the images of one split, in the order of the split file.

    Files may be at any depth below `root`: a folder `img_align_celeba` of images or `img_align_celeba.zip`, which is
    read without unpacking, and `list_eval_partition.txt`.

    Args:
        root: Folder of the data set.
        split: "train", "valid" or "test".
        limit: Number of images to take from the beginning; None takes all.

    Raises:
        InputError: Missing files, invalid lines in the split file, or images in its list that do not exist.
    """
    root = Path(root).expanduser()
    if split not in SPLITS:
        raise InputError(f"CelebA: split={split}: choose {', '.join(SPLITS)}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"CelebA: limit={limit}: the number of images to take, or null for all")
    found = _search(root)
    if not found.split_files or not (found.folders or found.archives):
        raise InputError(_download_advice(root, found))
    listed = _read_split(found.split_files[0])
    names = [name for name, part in listed.items() if part == SPLITS.index(split)][:limit]
    if not names:
        raise InputError(f"{found.split_files[0]}: lists no {split} images")
    files = _locate(names, found)
    log.info("CelebA %s: %s of %s images (limit=%s)", split, f"{len(files):,}", f"{len(listed):,}", limit)
    return [Pair(Path(name).stem, file) for name, file in zip(names, files, strict=True)]


@dataclass
class _Found:
    """Files found below a root: split files, zip archives of images, and image folders with their file names."""

    split_files: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    folders: dict[Path, set[str]] = field(default_factory=dict)


def _search(root: Path) -> _Found:
    found = _Found()
    if not root.is_dir() and root.parent.is_dir():  # another spelling, such as celeba
        root = next((path for path in sorted(root.parent.iterdir()) if path.name.lower() == root.name.lower()), root)
    for top, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folder, names = Path(top), set(files)
        found.split_files += [folder / name for name in SPLIT_FILES if name in names]
        if f"{IMAGES}.zip" in names:
            found.archives.append(folder / f"{IMAGES}.zip")
        if folder.name == IMAGES and any(name.endswith(".jpg") for name in names):
            found.folders[folder] = names
    return found


def _read_split(file: Path) -> dict[str, int]:
    """Read image -> 0, 1 or 2, in the order of the lines `000001.jpg 0`."""
    listed: dict[str, int] = {}
    problems = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or (number == 1 and words == ["image_id", "partition"]):
            continue
        if len(words) != 2 or not re.fullmatch(r"[\w.-]+\.\w+", words[0]) or words[1] not in ("0", "1", "2"):
            problems.append(f"line {number}: {line.strip()[:60]!r}")
        elif words[0] in listed:
            problems.append(f"line {number}: {words[0]} is listed twice")
        else:
            listed[words[0]] = int(words[1])
    if problems:
        raise InputError(
            f"{file}: {len(problems)} lines are not an image and its split (0 train, 1 valid, 2 test), such as "
            f"'000001.jpg 0'; download the file again:{listing(problems)}"
        )
    return listed


def _locate(names: list[str], found: _Found) -> list[Path | ZipMember]:
    """Locate the images in the first folder or archive that has all of them."""
    fewest: tuple[list[str], Path] | None = None
    for place, there in _places(found):
        missing = [name for name in names if name not in there]
        if not missing:
            return [there[name] for name in names]
        if fewest is None or len(missing) < len(fewest[0]):
            fewest = missing, place
    missing, place = fewest
    raise InputError(
        f"{place}: {len(missing):,} of {len(names):,} images of the split file are missing; unpack or copy it again, "
        f"or take fewer with data.train.limit (data.val.limit):{listing(missing)}"
    )


def _places(found: _Found) -> Iterator[tuple[Path, dict[str, Path | ZipMember]]]:
    """Yield folders, then archives, with their files by name."""
    for folder, names in found.folders.items():
        yield folder, {name: folder / name for name in names}
    for archive in found.archives:
        yield archive, {PurePosixPath(member).name: ZipMember(archive, member) for member in members(archive)}


def _download_advice(root: Path, found: _Found) -> str:
    lines = [f"CelebA is not complete below {root}{'' if root.is_dir() else ', which is not a folder'}. It needs"]
    if not (found.folders or found.archives):
        lines.append(f"  {root / IMAGES}/000001.jpg and the others, or {root / IMAGES}.zip")
    if not found.split_files:
        lines.append(f"  {root / SPLIT_FILES[0]}")
    lines.append(
        "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Align&Cropped Images, Eval); download them by hand, "
        "into subfolders if you like. For another folder: data.train.root=DIR"
    )
    return "\n".join(lines)
