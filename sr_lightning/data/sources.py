"""Where images come from: lists of (HR, LR) files that a data set is made of.

Yaml points at these functions. They look at names only; what is in the files is checked when they are read.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sr_lightning.errors import InputError
from sr_lightning.images.files import image_files, listing
from sr_lightning.images.zip_member import ZipMember

# Photos in scikit-image's package, file by name. Both motorcycles are one scene, so they stay on one side.
TRAIN_PHOTOS = {
    "rocket": "rocket.jpg",
    "motorcycle_left": "motorcycle_left.png",
    "motorcycle_right": "motorcycle_right.png",
    "ihc": "ihc.png",
    "retina": "retina.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "coins": "coins.png",
    "moon": "moon.png",
    "camera": "camera.png",
}
HELD_OUT_PHOTOS = {"astronaut": "astronaut.png", "chelsea": "chelsea.png", "coffee": "coffee.png"}
PHOTOS = TRAIN_PHOTOS | HELD_OUT_PHOTOS


@dataclass(frozen=True)
class Pair:
    """One image of a data set.

    Attributes:
        name: How tables and error messages call it: the stem of the HR file.
        hr: The high-resolution file; it may be one in an archive.
        lr: The low-resolution file that belongs to it; None where LR is made from HR.
    """

    name: str
    hr: Path | ZipMember
    lr: Path | None = None


def image_folder(
    hr: str | Path | Sequence[str],
    lr: str | Path | None = None,
    exclude: str | Iterable[str] = (),
    scale: int | None = None,
) -> list[Pair]:
    """All images of one or more folders, by name within each.

    Args:
        hr: Folder or folders, without their subfolders.
        lr: Folder of the LR files, if LR is not made from HR. To `<stem>` of an HR file belongs `<stem>` or
            `<stem>x<scale>`, also with a letter behind as in `0001x4m`; suffixes may differ.
        exclude: Stems of images to leave out. One that is not there is no error: the list says what must not be
            used, wherever it lies.
        scale: The factor in the names of LR files; None accepts any.

    Raises:
        InputError: A missing or empty folder, HR without LR, LR without HR, two files for one name, nothing left.
    """
    folders = _strings(hr)
    excluded = set(_strings(exclude))
    files = [file for folder in folders for file in image_files(folder) if file.stem not in excluded]
    if not files:
        raise InputError(f"{', '.join(folders)}: no image left, all are excluded")
    if lr is None:
        return [Pair(file.stem, file) for file in files]
    return _pair_up(files, image_files(lr), excluded, scale)


def split_folder(
    hr: str | Path | Sequence[str],
    lr: str | Path | None = None,
    part: str = "train",
    fraction: float = 0.1,
    scale: int | None = None,
) -> list[Pair]:
    """One part of a folder that is cut in two, for training and for validation.

    Which image falls where depends on the stems alone: it is the same on every machine and at every call, and images
    that are added later move few of the others.

    Args:
        hr: As for `image_folder`.
        lr: Likewise.
        part: "train" or "val".
        fraction: Share of the images in "val", between 0 and 1; each part has at least one image.
        scale: As for `image_folder`.

    Raises:
        InputError: As `image_folder`, and for fewer than two images or a part or fraction that does not exist.
    """
    if part not in ("train", "val"):
        raise InputError(f"part={part}: choose train or val")
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction}: the share of images to validate on lies between 0 and 1")
    pairs = image_folder(hr, lr, scale=scale)
    if len(pairs) < 2:
        raise InputError(f"{hr}: {len(pairs)} image cannot be split; add images, or name a folder for validation")
    count = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    # A file's place in the order of hashes, not the hash itself, so that the share is exact.
    by_hash = sorted(range(len(pairs)), key=lambda i: hashlib.sha256(pairs[i].name.encode()).digest())
    held_out = set(by_hash[:count])
    return [pair for i, pair in enumerate(pairs) if (i in held_out) == (part == "val")]


def bundled_photos(names: str | Iterable[str]) -> list[Pair]:
    """Photos that come with scikit-image, so nothing needs to be downloaded.

    Args:
        names: Of `PHOTOS`; `TRAIN_PHOTOS` and `HELD_OUT_PHOTOS` have no scene in common.

    Raises:
        InputError: An unknown name, or scikit-image is not there.
    """
    names = _strings(names)
    unknown = [name for name in names if name not in PHOTOS]
    if unknown:
        raise InputError(f"no bundled photo is called {', '.join(unknown)}; choose from {', '.join(PHOTOS)}")
    package = find_spec("skimage")  # finds it without importing it, which takes long
    if package is None:
        raise InputError('the bundled photos are those of scikit-image: pip install "scikit-image>=0.25,<0.27"')
    folder = Path(package.submodule_search_locations[0], "data")
    missing = [PHOTOS[name] for name in names if not (folder / PHOTOS[name]).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}, another version has them: "
            'pip install --force-reinstall "scikit-image>=0.25,<0.27"'
        )
    return [Pair(name, folder / PHOTOS[name]) for name in names]


def benchmark_set(root: str | Path, name: str, scale: int) -> list[Pair]:
    """A test set in the layout of the EDSR benchmark archive.

    `<root>/benchmark/<name>/HR/<stem>.png` and, where that folder exists,
    `<root>/benchmark/<name>/LR_bicubic/X<scale>/<stem>x<scale>.png`; else LR is to be made.

    Args:
        root: Folder of `benchmark`.
        name: Such as "Set5"; folders there are the choices.
        scale: The factor.

    Raises:
        InputError: No such set, or HR and LR files that do not belong together.
    """
    folder = Path(root).expanduser() / "benchmark"
    if not (folder / name / "HR").is_dir():
        there = sorted(path.parent.name for path in folder.glob("*/HR"))
        choices = f"there: {', '.join(there)}" if there else "there is no <name>/HR at all"
        raise InputError(f"{folder}: no test set {name} ({choices}); set data_root to the folder of `benchmark`")
    lr = folder / name / "LR_bicubic" / f"X{scale}"
    return image_folder(folder / name / "HR", lr if lr.is_dir() else None, scale=scale)


def _strings(values: object) -> list[str]:
    """One value or several; yaml makes numbers of names like 302003."""
    return [str(value) for value in ([values] if isinstance(values, str | int | Path) else values)]


def _pair_up(hr_files: Sequence[Path], lr_files: Sequence[Path], excluded: set[str], scale: int | None) -> list[Pair]:
    """One pair per HR file. LR files of excluded HR files are left out as well."""
    stems = {file.stem: file for file in hr_files}
    ending = re.compile(rf"x{scale or '[0-9]+'}[a-z]?$")
    problems = [f"{file}: the same name as {stems[file.stem]}" for file in hr_files if stems[file.stem] != file]
    found: dict[str, Path] = {}
    for file in lr_files:
        whole, stem = file.stem, ending.sub("", file.stem)
        owner = whole if whole in stems or whole in excluded else stem
        if owner in found:
            problems.append(f"{file}: belongs to {owner} as does {found[owner]}")
        elif owner in stems:
            found[owner] = file
        elif owner not in excluded:
            problems.append(f"{file}: LR without HR")
    problems += [f"{file}: HR without LR" for stem, file in stems.items() if stem not in found]
    if problems:
        names = f"<stem> or <stem>x{scale or '<scale>'}"
        raise InputError(f"HR and LR files do not belong together one to one, LR is called {names}:{listing(problems)}")
    return [Pair(file.stem, file, found[file.stem]) for file in hr_files]
