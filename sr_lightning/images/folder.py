"""Image files of a folder and their names. Imports neither Pillow nor torch, so that paths are checked early."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from sr_lightning.errors import InputError
from sr_lightning.images.formats import DATA_SUFFIXES


def image_files(folder: str | Path) -> list[Path]:
    """List the image files of a folder by name, without subfolders and hidden files.

    Raises:
        InputError: No such folder, or no image in it.
    """
    folder = Path(folder).expanduser()
    looked_for = "looked for .png .jpg .tif .webp and all others that Pillow reads"
    if not folder.is_dir():
        raise InputError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; {looked_for} in a folder")
    files = [file for file in folder.iterdir() if _is_image(file)]
    if not files:
        others = ignored_files(folder)
        raise InputError(
            f"{folder}: no image in this folder{f', but {others}' if others else ''}; {looked_for}, not in subfolders"
        )
    return sorted(files)


def possible_names(file: PurePath) -> list[str]:
    """List names for an image, the shortest first: stem, file name, folder and file name.

    >>> possible_names(Path("photos/a.png"))
    ['a', 'a.png', 'photos_a.png']
    """
    return [file.stem, file.name, f"{file.parent.name}_{file.name}"]


def distinct(choices: Sequence[Sequence[str]]) -> list[str]:
    """Select the first of each element's names that no other element has; the last if all are taken.

    >>> distinct([["a", "a.png"], ["b", "b.png"], ["a", "a.jpg"]])
    ['a.png', 'b', 'a.jpg']
    """
    chosen = [0] * len(choices)
    while True:
        names = [names[i] for names, i in zip(choices, chosen, strict=True)]
        times = Counter(names)
        longer = [times[name] > 1 and i + 1 < len(c) for name, i, c in zip(names, chosen, choices, strict=True)]
        if not any(longer):
            return names
        chosen = [i + more for i, more in zip(chosen, longer, strict=True)]


def short_name(name: str, limit: int = 160) -> str:
    """Shorten a name to `limit` bytes for use in file names, most of which are limited to 255; a hash replaces the end.

    >>> short_name("a" * 300, 16)
    'aaaaaaa-98835646'
    """
    data = os.fsencode(name)
    if len(data) <= limit:
        return name
    return os.fsdecode(data[: limit - 9]) + "-" + hashlib.sha256(data).hexdigest()[:8]


def ignored_files(folder: str | Path) -> str:
    """Count the files of a folder that `image_files` leaves out, by kind: "3 .txt, 1 .DS_Store"; empty without any."""
    kinds = Counter(_kind(file) for file in Path(folder).iterdir() if not _is_image(file) and not file.is_dir())
    return ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds, key=lambda kind: (-kinds[kind], kind)))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in DATA_SUFFIXES and not file.name.startswith(".")


def _kind(file: Path) -> str:
    hidden = "hidden " if file.name.startswith(".") and file.suffix else ""
    return hidden + (file.suffix.lower() or file.name)
