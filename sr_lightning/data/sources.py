"""Lists of the (HR, LR) files of a data set. Needs no torch: paths are checked before it is imported.

The config names these functions. They look at file names only; the contents are checked when files are read.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from sr_lightning.data import public_sets
from sr_lightning.errors import InputError
from sr_lightning.images.folder import distinct, image_files, possible_names
from sr_lightning.images.zip_member import ZipMember
from sr_lightning.utils.messages import listing

# Photos in scikit-image's package, name -> file. Both motorcycles show one scene, so both are for training.
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
MEAN = "mean"  # name of the row of means in tables of scores


@dataclass(frozen=True)
class Pair:
    """One image of a data set.

    Attributes:
        name: Used in tables, pictures and error messages: the stem of the HR file; its whole name, if needed with the
            folder's, if another image of the list has the same stem, or if the stem is that of the row of means.
        hr: The high-resolution file, on disk or in a zip archive.
        lr: The matching low-resolution file; None if LR is made from HR.
    """

    name: str
    hr: Path | ZipMember
    lr: Path | None = None


class UnpairedError(InputError):
    """Missing or unmatched files. `pairs` are the complete ones."""

    def __init__(self, message: str, pairs: Sequence[Pair]) -> None:
        super().__init__(message)
        self.pairs = list(pairs)


def image_folder(
    hr: str | Path | Sequence[str],
    lr: str | Path | None = None,
    exclude: str | Iterable[str] = (),
    scale: int | None = None,
) -> list[Pair]:
    """List the images of one or more folders, sorted by name within each.

    Args:
        hr: Folder or folders; subfolders are not searched.
        lr: Folder of the LR files, or with a subfolder `X<scale>` of them, if LR is not made from HR. An HR file
            `<stem>` matches the LR file `<stem>` or `<stem>x<scale>`, optionally followed by a letter as in `0001x4m`,
            or named as other projects do: `<stem>_x4`, `<stem>X4`, `<stem>_LRBI_x4`, `<stem>_LR`, for HR also
            `<stem>_HR`, `<stem>_SRF_4_HR`. Suffixes may differ.
        exclude: Stems of images to leave out. Stems that do not exist are ignored: the list names images that must
            not be used, whichever folder holds them.
        scale: The factor in the names of LR files; None accepts any.

    Raises:
        InputError: A missing or empty folder, HR without LR, LR without HR, two files of one name, or no image left.
    """
    folders = _strings(hr, "hr")
    excluded = set(_strings(exclude, "exclude"))
    everything = [file for folder in folders for file in _image_files(folder)]
    _check_zeros(exclude, {file.stem for file in everything})
    files = [file for file in everything if file.stem not in excluded]
    if not files:
        raise InputError(f"{', '.join(folders)}: no image left, all are excluded")
    if lr is None:
        return _named([Pair(file.stem, file) for file in files])
    return _pair_up(files, _lr_files(lr, scale), excluded, scale)


def split_folder(
    hr: str | Path | Sequence[str],
    lr: str | Path | None = None,
    part: str = "train",
    fraction: float = 0.1,
    scale: int | None = None,
) -> list[Pair]:
    """List the training or validation part of a folder.

    The split depends on the file stems only, so it is the same on every machine and in every call, and adding images
    moves few of the others.

    Args:
        hr: As for `image_folder`.
        lr: As for `image_folder`.
        part: "train" or "val".
        fraction: Share of the images in "val", between 0 and 1; each part has at least one image.
        scale: As for `image_folder`.

    Raises:
        InputError: As `image_folder`; also fewer than two images, or an invalid part or fraction.
    """
    if part not in ("train", "val"):
        raise InputError(f"part={part}: choose train or val")
    if not (isinstance(fraction, int | float) and 0 < fraction < 1):
        raise InputError(f"fraction={fraction}: the share of images for validation must be between 0 and 1")
    pairs = image_folder(hr, lr, scale=scale)
    if len(pairs) < 2:
        raise InputError(f"{hr}: {len(pairs)} image cannot be split; add images, or give a folder for validation")
    count = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    # A file's place in the order of hashes, not the hash itself, so that the share is exact.
    by_hash = sorted(range(len(pairs)), key=lambda i: hashlib.sha256(os.fsencode(pairs[i].hr.stem)).digest())
    held_out = set(by_hash[:count])
    return [pair for i, pair in enumerate(pairs) if (i in held_out) == (part == "val")]


def folder_pairs(
    hr: str,
    lr: str | None = None,
    val_hr: str | None = None,
    val_lr: str | None = None,
    val_fraction: float = 0.1,
    scale: int | None = None,
) -> tuple[list[Pair], list[Pair]]:
    """List the training and validation images of `FolderDataModule`.

    Args:
        hr: Folder of HR images.
        lr: Folder of their LR images; None if LR is made from HR.
        val_hr: Folder to validate on; None holds out `val_fraction` of `hr`.
        val_lr: Folder of the LR images of `val_hr`.
        val_fraction: Share of the images of `hr` that is held out, at least one.
        scale: The factor in the names of LR files.

    Raises:
        InputError: As `image_folder` and `split_folder`, or `val_lr` without `val_hr`.
    """
    if val_hr is None and val_lr is not None:
        raise InputError(f"data.val_lr={val_lr} needs data.val_hr, the folder of its HR images")
    if val_hr is None:
        train, val = (split_folder(hr, lr, part, val_fraction, scale) for part in ("train", "val"))
        return train, val
    return image_folder(hr, lr, scale=scale), image_folder(val_hr, val_lr, scale=scale)


def joined(**sets: Sequence[Pair]) -> list[Pair]:
    """Join the images of several data sets into one list, in the order of the arguments.

    Args:
        **sets: Images by the name of the set. Images of two sets with one name get those of their sets before it.

    Raises:
        InputError: No set, or one that is no list of images.
    """
    if wrong := [name for name, pairs in sets.items() if not (isinstance(pairs, list | tuple) and pairs)]:
        raise InputError(f"joined sets: {', '.join(wrong)} has no images; give each a _target_ that lists some")
    if not sets:
        raise InputError("joined sets: none is given; add one, such as data=df2k does")
    choices = [(pair, [pair.name, f"{name}_{pair.name}"]) for name, pairs in sets.items() for pair in pairs]
    names = distinct([names for _, names in choices])
    return [replace(pair, name=name) for (pair, _), name in zip(choices, names, strict=True)]


def bundled_photos(names: str | Iterable[str]) -> list[Pair]:
    """List photos that are part of scikit-image, so nothing needs to be downloaded.

    Args:
        names: Keys of `PHOTOS`; `TRAIN_PHOTOS` and `HELD_OUT_PHOTOS` have no scene in common.

    Raises:
        InputError: An unknown name, or scikit-image is not installed.
    """
    names = _strings(names, "names")
    unknown = [name for name in names if name not in PHOTOS]
    if unknown:
        raise InputError(f"no bundled photo is named {', '.join(unknown)}; choose from {', '.join(PHOTOS)}")
    package = find_spec("skimage")  # importing it would take seconds
    if package is None:
        raise InputError('the bundled photos are part of scikit-image: pip install "scikit-image>=0.25,<0.27"')
    folder = Path(package.submodule_search_locations[0], "data")
    missing = [PHOTOS[name] for name in names if not (folder / PHOTOS[name]).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; install a version that has them: "
            'pip install --force-reinstall "scikit-image>=0.25,<0.27"'
        )
    return [Pair(name, folder / PHOTOS[name]) for name in names]


def benchmark_set(root: str | Path, name: str, scale: int) -> list[Pair]:
    """List a test set in the layout of the EDSR benchmark archive.

    `<root>/benchmark/<name>/HR/<stem>.png` and, if that folder exists,
    `<root>/benchmark/<name>/LR_bicubic/X<scale>/<stem>x<scale>.png`; otherwise LR is made from HR.

    Args:
        root: Folder that contains `benchmark`.
        name: A folder of `benchmark`, such as "Set5".
        scale: The factor.

    Raises:
        InputError: No such set, or HR and LR files that do not match.
    """
    folder = benchmark_folder(root, name)
    lr = folder / "LR_bicubic" / f"X{scale}"
    return image_folder(folder / "HR", lr if lr.is_dir() else None, scale=scale)


def check_benchmarks(names: object, at_least: int = 0) -> None:
    """Check the value of the config key `benchmarks`.

    Raises:
        InputError: It is not a list, or too short.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        shown = "null" if names is None else names
        raise InputError(f"benchmarks={shown}: give a list, such as benchmarks=[Set5]")
    if len(names) < at_least:
        raise InputError("benchmarks=[]: name at least one, such as benchmarks=[Set5]")


def benchmark_folder(root: str | Path, name: str) -> Path:
    """The folder of a test set, with at least HR images in it.

    Raises:
        InputError: No such set; the message lists the available ones.
    """
    found = benchmark_path(root, name)
    folder = found.parent
    if not (found / "HR").is_dir():
        there = benchmark_names(root)
        choices = f"available: {', '.join(there)}" if there else "it has no <name>/HR at all"
        raise InputError(
            f"{folder}: no test set {name} ({choices}); set data_root to the folder that contains `benchmark`"
            f"{public_sets.hint(found)}"
        )
    return found


def benchmark_names(root: str | Path) -> list[str]:
    """List the test sets below a data root."""
    return sorted(path.parent.name for path in benchmark_path(root, "").glob("*/HR"))


def benchmark_path(root: str | Path, name: str) -> Path:
    """Return the place of a test set below a data root, whether it exists or not."""
    return Path(str(root)).expanduser() / "benchmark" / str(name)


def _image_files(folder: str) -> list[Path]:
    """List the image files of a folder.

    Raises:
        InputError: As of `image_files`; with the command that downloads the folder, if there is one.
    """
    try:
        return image_files(folder)
    except InputError as error:
        raise InputError(f"{error}{public_sets.hint(folder)}") from None


def _strings(values: object, key: str) -> list[str]:
    """Make a list of one value or several; yaml reads names like 302003 as numbers.

    Raises:
        InputError: A value that yaml has changed, such as 1e3 to 1000.0.
    """
    several = [values] if isinstance(values, str | float | int | Path) else list(values)
    if changed := [value for value in several if not isinstance(value, str | Path) and type(value) is not int]:
        shown = ", ".join("null" if value is None else str(value).lower() for value in changed)
        raise InputError(
            f"{key}: {shown} is not a name: yaml changes unquoted names such as on, yes, no, 1e3, 1_0; "
            f"write them in quotes, such as '{key}=\"1e3\"'"
        )
    return [str(value) for value in several]


def _check_zeros(exclude: object, stems: set[str]) -> None:
    """Check that no excluded number stands for a name with zeros in front, which yaml drops, or reads as octal.

    Raises:
        InputError: Names the number and the image.
    """
    numbers = [value for value in ([exclude] if isinstance(exclude, int) else exclude) if isinstance(value, int)]
    padded = [stem for stem in sorted(stems) if stem.isdecimal() and stem.startswith("0")] if numbers else []
    for number in numbers:
        alike = [stem for stem in padded if int(stem) == number or f"{number:o}" == stem.lstrip("0")]
        if alike and str(number) not in stems:
            raise InputError(f'exclude: there is no image {number}; for {alike[0]}, write it in quotes: "{alike[0]}"')


def _lr_files(lr: str | Path, scale: int | None) -> list[Path]:
    """List the LR files of a folder, or of its subfolder of this scale."""
    (folder,) = map(Path, _strings(lr, "lr"))
    try:
        return image_files(folder)
    except InputError:
        for name in (f"X{scale}", f"x{scale}"):
            if (folder.expanduser() / name).is_dir():
                return image_files(folder / name)
        if others := sorted(each.name for each in folder.expanduser().glob("[Xx][0-9]") if each.is_dir()):
            raise InputError(
                f"{folder}: no image in this folder for scale {scale}, only {', '.join(others)}; "
                "set lr to null to make LR from HR"
            ) from None
        raise


def _pair_up(hr_files: Sequence[Path], lr_files: Sequence[Path], excluded: set[str], scale: int | None) -> list[Pair]:
    """Match each HR file with its LR file. LR files of excluded HR files are ignored."""
    stems = {file.stem: file for file in hr_files}
    problems = [f"{file}: the same name as {stems[file.stem]}" for file in hr_files if stems[file.stem] != file]
    find_owner = _owners(stems.keys() | excluded, scale)
    found: dict[str, Path] = {}
    for file in lr_files:
        owner = find_owner(file.stem)
        if owner in found:
            problems.append(f"{file}: matches {owner}, as does {found[owner]}")
        elif owner in stems:
            found[owner] = file
        elif owner is None:
            problems.append(f"{file}: LR without HR")
    problems += [f"{file}: HR without LR" for stem, file in stems.items() if stem not in found]
    pairs = _named([Pair(file.stem, file, found[file.stem]) for file in hr_files if file.stem in found])
    if problems:
        names = "<stem> or <stem>x{0} (or <stem>_x{0}, <stem>_LRBI_x{0})".format(scale or "<scale>")
        message = f"HR and LR files do not match one to one; LR is named {names}:{listing(problems)}"
        raise UnpairedError(message, pairs)
    return pairs


def _named(pairs: Sequence[Pair]) -> list[Pair]:
    """Give images of one list different names; none is called "mean", as the row of means is."""
    names = distinct([[name for name in possible_names(pair.hr) if name != MEAN] for pair in pairs])
    return [replace(pair, name=name) for pair, name in zip(pairs, names, strict=True)]


def _owners(stems: Collection[str], scale: int | None) -> Callable[[str], str | None]:
    """Return the function from the stem of an LR file to that of its HR file, None if there is none.

    Names nearest to `<stem>x<scale>` come first.
    """
    factor, kind = scale or "[0-9]+", "(?:[_-](?:LRBI|LRBD|LRDN|LR|HR|GT|bicubic))?"
    usual = re.compile(rf"x{factor}[a-z]?$")
    other = re.compile(rf"{kind}(?:[_-]?(?:x|SRF_){factor}[a-z]?)?{kind}$", re.IGNORECASE)
    times = Counter(other.sub("", stem, count=1) for stem in stems)
    bare = {key: stem for stem in stems if times[key := other.sub("", stem, count=1)] == 1}

    def owner(stem: str) -> str | None:
        short = other.sub("", stem, count=1)
        return next((name for name in (stem, usual.sub("", stem), short) if name in stems), bare.get(short))

    return owner
