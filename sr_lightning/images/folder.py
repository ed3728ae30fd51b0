"""Image files of a folder. Imports neither Pillow nor torch, so that paths are checked early."""

from collections import Counter
from pathlib import Path

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


def ignored_files(folder: str | Path) -> str:
    """Count the files of a folder that `image_files` leaves out, by kind: "3 .txt, 1 .DS_Store"; empty without any."""
    kinds = Counter(_kind(file) for file in Path(folder).iterdir() if not _is_image(file) and not file.is_dir())
    return ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds, key=lambda kind: (-kinds[kind], kind)))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in DATA_SUFFIXES and not file.name.startswith(".")


def _kind(file: Path) -> str:
    hidden = "hidden " if file.name.startswith(".") and file.suffix else ""
    return hidden + (file.suffix.lower() or file.name)
