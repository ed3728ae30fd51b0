"""Image files of a folder. Imports neither Pillow nor torch, so that paths are checked early."""

from pathlib import Path

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
