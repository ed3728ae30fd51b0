"""Image files of a folder and their names. Imports neither Pillow nor torch, so that paths are checked early."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from sr_lightning.errors import InputError
from sr_lightning.images.formats import IMAGE_SUFFIXES


def image_files(folder: str | Path) -> list[Path]:
    """List the image files of a folder by name, without subfolders and hidden files.

    Raises:
        InputError: No such folder, or no image in it.
    """
    folder = Path(folder).expanduser()
    looked_for = f"looked for {' '.join(IMAGE_SUFFIXES)}"
    if not folder.is_dir():
        raise InputError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; {looked_for} in a folder")
    files = [
        file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise InputError(f"{folder}: no image in this folder; {looked_for}, not in subfolders")
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
