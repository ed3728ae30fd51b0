"""Image files of a folder. Imports neither Pillow nor torch, so that paths are checked early."""

from collections import Counter
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
    files = [file for file in folder.iterdir() if _is_image(file)]
    if not files:
        others = ignored_files(folder)
        raise InputError(
            f"{folder}: no image in this folder{f' but {others}' if others else ''}; {looked_for}, not in subfolders"
        )
    return sorted(files)


def ignored_files(folder: str | Path) -> str:
    """Count the files of a folder that `image_files` leaves out, by kind: "3 .txt, 1 .DS_Store"; empty without any."""
    files = [file for file in Path(folder).iterdir() if not _is_image(file) and not file.is_dir()]
    kinds = Counter(file.suffix.lower() or file.name for file in files)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
