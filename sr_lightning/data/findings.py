"""Examination of the images of a training and its test sets: damage, sizes, copies, LR that does not belong to HR."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sr_lightning.data.copies import WORKING_SIDE, Corners, describe, find_copies
from sr_lightning.data.lr_origin import MATLAB, mismatch, origin
from sr_lightning.data.sources import Pair
from sr_lightning.data.store import ImageStore
from sr_lightning.errors import InputError
from sr_lightning.images.files import read_image
from sr_lightning.images.folder import ignored_files, image_files
from sr_lightning.utils.progress import tracked
from sr_lightning.utils.threads import in_threads

TRAINING = "training"
VALIDATION = "validation"
UNKNOWN = "unknown"
QUICK, MIDDLE = 20, 96  # images of a set, and LR pixels of each, that are compared with HR before a run
MANY = 5000  # images of a set, more than which are not compared before a run


@dataclass(frozen=True)
class Finding:
    """Something to correct or to know about an image.

    Attributes:
        is_error: True if a training would fail or its numbers would be wrong.
        place: Name of the set, or of both sets.
        image: The image or the file.
        text: Description.
    """

    is_error: bool
    place: str
    image: str
    text: str


@dataclass
class Examined:
    """One image of a set, and the findings about it alone.

    Attributes:
        place: Name of the set.
        pair: The files.
        findings: About this image alone.
        size: (H, W); None if it cannot be read.
        is_gray: True for a file of one channel.
        digest: Of the pixels.
        described: Of `copies.describe`.
        lr_origin: A key of `lr_origin.WAYS`, or UNKNOWN; None without an LR file.
    """

    place: str
    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    is_gray: bool = False
    digest: str = ""
    described: tuple[Tensor, Corners] | None = None
    lr_origin: str | None = None

    def add(self, is_error: bool, text: str, image: object = None) -> None:
        self.findings.append(Finding(is_error, self.place, str(image or self.pair.hr), text))


def examine(
    sets: Mapping[str, Sequence[Pair]], scale: int, patch_size: int = 1
) -> tuple[list[Examined], list[Finding]]:
    """Examine all images and compare them with one another.

    Args:
        sets: Name -> images; those of TRAINING are trained on, all others are held out.
        scale: The factor.
        patch_size: Least side of a training image in LR pixels.

    Returns:
        The images, each with its findings; and the findings about two images.
    """
    jobs = [(place, pair, patch_size if place == TRAINING else 1) for place, pairs in sets.items() for pair in pairs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images are examined in threads
    try:
        results = in_threads(partial(_examine, scale=scale), jobs)
        images = list(tracked(results, len(jobs), "examining images"))
    finally:
        torch.set_num_threads(threads)
    return images, list(_copies([image for image in images if image.described is not None]))


def summary(images: Sequence[Examined]) -> list[list[str]]:
    """Return the rows of a table of the sets, the header first."""
    rows = [["set", "images", "smallest", "largest", "gray", "LR files"]]
    for place in dict.fromkeys(image.place for image in images):
        read = [image for image in images if image.place == place and image.size is not None]
        sizes = sorted((image.size for image in read), key=lambda size: size[0] * size[1])
        ends = [f"{height}x{width}" for height, width in (sizes[0], sizes[-1])] if sizes else ["", ""]
        made = Counter(image.lr_origin for image in read if image.lr_origin is not None)
        origins = ", ".join(f"{name} ({count})" for name, count in made.most_common())
        rows.append([place, str(len(read)), *ends, str(sum(image.is_gray for image in read)), origins or "none"])
    return rows


def _examine(job: tuple[str, Pair, int], scale: int) -> Examined:
    place, pair, patch_size = job
    image = Examined(place, pair)
    try:
        hr = read_image(pair.hr)
    except InputError as error:
        image.add(True, _without_path(error, pair.hr))
        return image
    image.size, image.is_gray = hr.shape[-2:], len(hr) == 1
    image.digest = hashlib.sha256(f"{hr.shape}".encode() + hr.tobytes()).hexdigest()
    image.described = describe(hr)
    height, width = image.size
    lr_size = height // scale, width // scale
    if min(lr_size) < patch_size:
        least = patch_size * scale
        image.add(True, f"{height}x{width} is smaller than {'a patch' if patch_size > 1 else 'scale'}, {least}x{least}")
    elif (hr == hr[:, :1, :1]).all():
        image.add(False, "all pixels are equal: nothing can be learned or scored")
    if pair.lr is not None and min(lr_size) > 0:
        _examine_lr(image, hr, lr_size, scale)
    return image


def _examine_lr(image: Examined, hr: np.ndarray, lr_size: tuple[int, int], scale: int) -> None:
    file = image.pair.lr
    try:
        lr = read_image(file)
    except InputError as error:
        image.add(True, _without_path(error, file), file)
        return
    height, width = lr.shape[-2:]
    # MATLAB's imresize gives ceil(size / scale), of which the common part is used.
    sides = zip((height, width), lr_size, image.size, strict=True)
    if not all(0 <= side - least <= (whole % scale > 0) for side, least, whole in sides):
        turned = " (HR rotated?)" if (width, height) == lr_size else ""
        image.add(True, f"LR of {height}x{width}, expected {lr_size[0]}x{lr_size[1]}{turned}", file)
        return
    hr, lr = (np.repeat(part, 3, axis=0) if len(part) == 1 else part for part in (hr, lr))
    lr = np.ascontiguousarray(lr[:, : lr_size[0], : lr_size[1]])
    image.lr_origin = origin(hr, lr, scale) or UNKNOWN
    if image.lr_origin == UNKNOWN and (problem := mismatch(hr, lr, scale)):
        image.add(True, problem, file)
    elif image.lr_origin not in MATLAB:
        made = "of unknown origin" if image.lr_origin == UNKNOWN else image.lr_origin
        image.add(False, f"LR is not MATLAB's bicubic but {made}", file)


def _without_path(error: InputError, path: object) -> str:
    return str(error).removeprefix(f"{path}: ")


def _copies(images: Sequence[Examined]) -> Iterator[Finding]:
    """Yield the findings about two images that show the same picture."""
    first: dict[str, Examined] = {}
    for image in images:
        other = first.setdefault(image.digest, image)
        same_file = image.pair.hr == other.pair.hr and image.place == other.place  # one HR with several LR
        if other is not image and not same_file:
            yield from _copy(other, image, "every pixel is equal")
    unique = list(first.values())
    if not unique:
        return
    for copy in find_copies([image.described for image in unique]):
        earlier, later = unique[copy.second], unique[copy.first]
        factor = copy.scale * _reduction(later) / _reduction(earlier)
        facts = [f"{copy.share:.0%} of the smaller one", f"correlation {copy.correlation:.2f}"]
        facts += [f"{1 / factor:.2f} times its size"] if abs(factor - 1) > 0.02 else []
        facts += ["flipped or rotated"] if copy.symmetry else []
        yield from _copy(earlier, later, ", ".join(facts))


def _copy(earlier: Examined, later: Examined, facts: str) -> Iterator[Finding]:
    """Yield a finding if it matters: an error between training and a test set; nothing within test sets."""
    text = f"shows the same picture as {later.pair.hr} ({facts})"
    if earlier.place == TRAINING:
        is_error = later.place != TRAINING
        place = f"{TRAINING}, {later.place}" if is_error else TRAINING
        yield Finding(is_error, place, str(earlier.pair.hr), text)
    elif earlier.place == VALIDATION != later.place:
        yield Finding(False, f"{VALIDATION}, {later.place}", str(earlier.pair.hr), text)


def _reduction(image: Examined) -> float:
    """Return the factor from the image to its thumbnail."""
    return min(1.0, WORKING_SIDE / max(image.size))


def examine_folders(sets: Mapping[str, Sequence[Pair]]) -> list[Finding]:
    """Name the files that are no images, by kind and number, in folders of which most images are used."""
    findings = []
    for place, pairs in sets.items():
        files = {file for pair in pairs for file in (pair.hr, pair.lr) if isinstance(file, Path)}
        for folder, used in sorted(Counter(file.parent for file in files).items()):
            ignored = ignored_files(folder)
            if ignored and used > len(image_files(folder)) / 2:
                findings.append(Finding(False, place, str(folder), f"ignored: {ignored}"))
    return findings


def quick_findings(sets: Mapping[str, tuple[ImageStore, Sequence[Pair]]]) -> list[Finding]:
    """Find what is found in well under a second: equal images in two sets, LR that is not of its HR, ignored files.

    Args:
        sets: Name -> the decoded images, and their files. The LR of up to QUICK of them is compared with HR.
    """
    findings = examine_folders({place: pairs for place, (_, pairs) in sets.items()})
    first: dict[bytes, tuple[str, ImageStore, int]] = {}
    for place, (store, pairs) in sets.items():
        for index, pair in enumerate(pairs if len(pairs) <= MANY else ()):
            other_place, *other = first.setdefault(_rows(store, index), (place, store, index))
            if other_place != place and np.array_equal(other[0].hr(other[1]), store.hr(index)):
                findings.append(Finding(True, f"{other_place}, {place}", str(pair.hr), "is in both sets"))
        with_lr = [index for index, pair in enumerate(pairs) if pair.lr is not None]
        for index in with_lr[:: -(-len(with_lr) // QUICK) or 1]:
            if problem := mismatch(*_middle(store, index), store.scale):
                findings.append(Finding(True, place, str(pairs[index].lr), problem))
    return findings


def _rows(store: ImageStore, index: int) -> bytes:
    """Return size and a few rows of HR: different for different images, equal for equal ones."""
    hr = store.hr(index)
    return f"{hr.shape}".encode() + hr[:, :: hr.shape[1] // 4 + 1].tobytes()


def _middle(store: ImageStore, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of HR and LR, up to MIDDLE pixels of LR a side."""
    hr, lr = store.hr(index), store.lr(index)
    starts = [max(0, (side - MIDDLE) // 2) for side in lr.shape[1:]]
    parts = []
    for image, factor in ((hr, store.scale), (lr, 1)):
        top, left = (factor * start for start in starts)
        parts.append(np.array(image[:, top : top + factor * MIDDLE, left : left + factor * MIDDLE]))
    return parts[0], parts[1]
