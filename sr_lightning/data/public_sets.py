"""Public data sets that need no login: where they come from, and where they lie below the data root.

Imports neither torch nor Pillow until something is fetched.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sr_lightning.errors import InputError
from sr_lightning.images.folder import image_files
from sr_lightning.utils.atomic_files import one_at_a_time
from sr_lightning.utils.download import download, extract


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        file: Its name in the data root; a file put there by hand is used instead of a download.
        url: Its address.
        size: Length in bytes, where a public source states it.
        sha256, md5: Digests, where a public source states them.
    """

    file: str
    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Folder:
    """A folder of a data set.

    Attributes:
        place: Where it lies, relative to the data root.
        inside: Where it is in the archive, without outer folders that contain nothing else.
        num_images: Number of images in it.
        images: Subfolder of the HR images.
        pixels: Digest of all images by `pixel_digest`, for an archive without one.
    """

    place: str
    inside: str
    num_images: int
    images: str = "."
    pixels: str | None = None

    def count(self, root: Path) -> int:
        """Count its HR images below `root`; 0 without the folder."""
        try:
            return len(image_files(root / self.place / self.images))
        except InputError:
            return 0


@dataclass(frozen=True)
class PublicSet:
    """A data set, as `python -m sr_lightning.data` names it.

    Attributes:
        name: Name on the command line.
        use: The setting that uses it.
        archive: What is downloaded; sets may share an archive.
        folders: What is taken from it.
    """

    name: str
    use: str
    archive: Archive
    folders: tuple[Folder, ...]


# Size and digest as stated by YeapJieShen/single-image-super-resolution.
EDSR = Archive(
    "benchmark.tar",
    "https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
    250112000,
    "80c21c333bbf6ceb5308b7243761f8284478274413a97b96f1d63e9045fd93e8",
)
# Size as stated by tensorpack; digest by one of several projects that state the size.
BERKELEY = Archive(
    "BSR_bsds500.tgz",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
    70763455,
    "97e49d31764f3912f0c4122707d53062ac9e783ba0f095e447a4d53c1a41af8e",
)
# Digest as stated by data set classes of several projects.
FLICKR2K = Archive(
    "Flickr2K.tar", "https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar", md5="5d3f39443d5e9489bff8963f8f26cb03"
)
# GitHub makes its archives when asked, so that only the pixels can be verified.
SRCNN = Archive("SRCNN-Tensorflow.zip", "https://github.com/tegg89/SRCNN-Tensorflow/archive/refs/heads/master.zip")
T91_PIXELS = "2a09a8529fbf8c5a05fba4f3f99eac6e37e4ac7c4a52888df9fc851d86d6533c"

PUBLIC_SETS = {
    each.name: each
    for each in (
        PublicSet("t91", "data=t91", SRCNN, (Folder("T91", "Train", 91, pixels=T91_PIXELS),)),
        PublicSet(
            "bsds500",
            "data=bsds",
            BERKELEY,
            tuple(Folder(f"BSDS500/{part}", f"BSDS500/data/images/{part}", 200) for part in ("train", "test")),
        ),
        PublicSet(
            "bsd100",
            "benchmarks=[BSD100]",
            BERKELEY,
            (Folder("benchmark/BSD100/HR", "BSDS500/data/images/val", 100),),
        ),
        PublicSet("flickr2k", "data=flickr2k", FLICKR2K, (Folder("Flickr2K", ".", 2650, "Flickr2K_HR"),)),
        *(
            PublicSet(name.lower(), f"benchmarks=[{name}]", EDSR, (Folder(f"benchmark/{name}", name, count, "HR"),))
            for name, count in (("Set5", 5), ("Set14", 14), ("B100", 100), ("Urban100", 100))
        ),
    )
}


def fetch(sets: Sequence[PublicSet], root: str | Path) -> list[Path]:
    """Download data sets, verify them, and put their folders in place; folders that exist are left alone.

    What an archive has beside the wanted sets is put in place as well, if it is a set of this module. An archive that
    was put into `root` by hand is used instead of a download; archives are kept.

    Args:
        sets: The sets.
        root: The data root.

    Returns:
        The folders that are new.

    Raises:
        InputError: A failed download, an archive that does not hold what it should, or a folder that exists with fewer
            images.
    """
    root = Path(root).expanduser()
    missing = []
    for each in sets:
        for folder in each.folders:
            found = folder.count(root)
            if found < folder.num_images and _has_content(root / folder.place):
                raise InputError(
                    f"{root / folder.place / folder.images}: {found} of {folder.num_images} images of {each.name}. "
                    "Move the folder away, then fetch it again"
                )
            if not found:
                missing.append(each.archive)
    archives = dict.fromkeys(missing)
    return [place for archive in archives for place in _fetch_archive(archive, root)]


def hint(folder: str | Path) -> str:
    """Return the sentence for the error of a missing folder, ". To download it: ..."; empty for other folders."""
    given = Path(folder).as_posix()
    for each in PUBLIC_SETS.values():
        for known in each.folders:
            if any(given.endswith(f"/{place}") for place in (known.place, f"{known.place}/{known.images}")):
                return f". To download it: python -m sr_lightning.data fetch {each.name}"
    return ""


def pixel_digest(folder: str | Path) -> str:
    """Return the SHA-256 of names, sizes and pixels of the images of a folder, whatever their lossless format."""
    from PIL import Image

    digest = hashlib.sha256()
    for file in sorted(image_files(folder), key=lambda file: file.stem):
        with Image.open(file) as image:
            digest.update(f"{file.stem} {image.width}x{image.height}\n".encode())
            digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def _fetch_archive(archive: Archive, root: Path) -> list[Path]:
    """Download an archive and put the known folders in it that do not exist in place; return them."""
    file = download(archive.url, root / archive.file, archive.sha256, archive.md5, archive.size)
    with one_at_a_time(root / ".fetch.lock", f"the folders of {file.name}"):
        content = extract(file, root / f".{file.stem}.unpacked")
        try:
            folders = [
                folder
                for each in PUBLIC_SETS.values()
                if each.archive == archive
                for folder in each.folders
                if not _has_content(root / folder.place)
            ]
            for folder in folders:
                _verify(folder, content, file)
            for folder in folders:
                (root / folder.place).parent.mkdir(parents=True, exist_ok=True)
                (content / folder.inside).replace(root / folder.place)
        finally:
            shutil.rmtree(content, ignore_errors=True)
    return [root / folder.place for folder in folders]


def _has_content(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _verify(folder: Folder, content: Path, archive: Path) -> None:
    """Check number and pixels of the images of an unpacked folder.

    Raises:
        InputError: They are not those of the set.
    """
    inside = content / folder.inside / folder.images
    found = len(image_files(inside)) if inside.is_dir() else 0
    if found != folder.num_images:
        problem = f"has {found} images in {folder.inside} where {folder.num_images} should be"
    elif folder.pixels is not None and pixel_digest(inside) != folder.pixels:
        problem = f"has other images in {folder.inside} than those known as {folder.place}"
    else:
        return
    raise InputError(
        f"{archive} {problem}; nothing was put in place. Delete it and fetch again, or get the set by hand"
    )
