"""Building of an image store by any number of processes, also of several machines that share the folder.

    KEY.partial/store/pixels   of its full size from the beginning, since headers tell the place of each image
    KEY.partial/0-104/         a part, images 0 to 103; one process at a time holds it, and decodes its images
        digests                SHA-256 of each image that is written, a line for each, and DONE once all are on the disk

When all parts are done, KEY.partial/store gets its index and is renamed to KEY, by whichever process comes first. A
process that was suspended, and whose part another one has taken meanwhile, writes the same bytes.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sr_lightning.data.pair_images import Degradation, hr_size, load_pair, naming_all
from sr_lightning.data.sources import Pair
from sr_lightning.data.store_index import checksum, image_bounds, image_digest, read_index
from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import delete, replacing
from sr_lightning.utils.held_folder import FolderInUseError, held, holder
from sr_lightning.utils.progress import tracked
from sr_lightning.utils.threads import in_threads

UNFINISHED_DAYS = 7  # after which an unfinished store that no process builds is removed
PART = 2**30  # bytes of a part, rounded to whole images
DONE = "done"
PAUSE = 0.2  # seconds between two looks at the parts of other processes

log = logging.getLogger(__name__)


def build(folder: Path, pairs: Sequence[Pair], scale: int, degradation: Degradation | None) -> dict[str, Any]:
    """Decode the images, together with all processes that build the same store, and return its index.

    Args:
        folder: Place of the finished store, which does not exist.
        pairs: The images.
        scale: The factor.
        degradation: Makes LR of pairs without it.

    Raises:
        InputError: Bad files, of which all are named, or too little space.
        OSError: The store cannot be written.
    """
    with naming_all(pairs, scale):
        sizes = np.array(list(in_threads(lambda pair: hr_size(pair, scale), pairs)), dtype=np.int64)
    work = UnfinishedStore(folder, pairs, scale, degradation, sizes)
    work.need_space()
    index = None
    while index is None:
        try:
            work.prepare()
            work.decode()
            index = work.publish()
        except Exception as error:  # of a process that is stopped, the images remain
            index = read_index(folder, len(pairs), scale)  # another process may have published it meanwhile
            if index is None and not work.was_removed(error):
                if not in_use(work.unfinished):
                    discard(work.unfinished)
                raise
    delete(work.unfinished)  # in place, so that a process that comes late deletes what it adds
    return index


@dataclass(frozen=True)
class Part:
    """Consecutive images of an unfinished store.

    Attributes:
        folder: Held by the process that decodes them.
        images: Their indices.
    """

    folder: Path
    images: range

    @property
    def digests(self) -> Path:
        return self.folder / "digests"

    def finished(self) -> list[str] | None:
        """Return the digests of all images; None unless all are on the disk."""
        try:
            *lines, last = self.digests.read_text().splitlines()
        except (OSError, ValueError):
            return None
        return lines if last == DONE and len(lines) == len(self.images) else None


@dataclass(frozen=True)
class UnfinishedStore:
    """A store while processes build it.

    Attributes:
        folder: Place of the finished store.
        pairs, scale, degradation: As for `ImageStore.open`.
        sizes: (N, 2) int64, height and width of cropped HR.
    """

    folder: Path
    pairs: Sequence[Pair]
    scale: int
    degradation: Degradation | None
    sizes: np.ndarray

    @property
    def unfinished(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def pixels(self) -> Path:
        return self.unfinished / "store" / "pixels"

    @cached_property
    def starts(self) -> list[int]:
        """First byte of each image, and the size of all."""
        return image_bounds(self.sizes, self.scale)

    @cached_property
    def parts(self) -> list[Part]:
        numbers = np.array(self.starts[:-1]) // PART
        firsts = [*np.flatnonzero(np.diff(numbers, prepend=-1)).tolist(), len(self.pairs)]
        return [Part(self.unfinished / f"{first}-{end}", range(first, end)) for first, end in pairwise(firsts)]

    def need_space(self) -> None:
        """Check that there is space for what is not written yet, if need be without other unfinished stores.

        Raises:
            InputError: There is not.
        """
        cache_dir = self.folder.parent
        written = getattr(self.pixels.stat(), "st_blocks", 0) * 512 if self.pixels.is_file() else 0
        size = max(0, self.starts[-1] - written)
        if size > shutil.disk_usage(cache_dir).free:
            remove_abandoned(cache_dir, days=0, but=self.unfinished)
        if size > (free := shutil.disk_usage(cache_dir).free):
            raise InputError(f"{cache_dir}: {size:,} bytes needed, {free:,} free; make space or set another cache_dir")

    def prepare(self) -> None:
        """Create the file of the pixels, unless it is there.

        It appears together with its folder: parts that are done never lie beside another file. Its full size keeps NFS
        from filling the page at which two parts meet with zeros.
        """
        while not self._is_prepared():
            new = scratch(self.unfinished)
            (new / "store").mkdir(parents=True)
            with (new / "store" / "pixels").open("xb") as file:
                file.truncate(self.starts[-1])
            try:
                new.replace(self.unfinished)
            except OSError as error:  # there is one: of another process, or a damaged one
                delete(new)
                if not self._is_prepared():
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    discard(self.unfinished)

    def _is_prepared(self) -> bool:
        return self.pixels.is_file() and self.pixels.stat().st_size == self.starts[-1]

    def check_place(self, pixels: BinaryIO) -> None:
        """Raise FileNotFoundError if an open file is not the file of the pixels any more."""
        if not os.path.samestat(os.fstat(pixels.fileno()), self.pixels.stat()):
            raise _gone(self.pixels)

    def was_removed(self, error: Exception) -> bool:
        """Return True if an error of this process is that another one, which has failed, has removed the folder."""
        missing = error.__cause__ or error
        return isinstance(missing, FileNotFoundError) and Path(missing.filename).is_relative_to(self.unfinished)

    def decode(self) -> None:
        """Decode all parts that no other process decodes, until all are done."""
        left = [part for part in self.parts if part.finished() is None]
        images = sum(len(part.images) for part in left)
        done = f"; {len(self.pairs) - images} are there" if images < len(self.pairs) else ""
        log.info("decoding %d images into %s, %.0f MB%s", len(self.pairs), self.folder, self.starts[-1] / 1e6, done)
        with closing(self._decode(left)) as decoded:
            for _ in tracked(decoded, images, "decoding images"):
                pass

    def _decode(self, left: list[Part]) -> Iterator[int]:
        """Yield each image of some parts when it is stored, by this process or another one."""
        begin = secrets.randbelow(len(left)) if left else 0  # processes that start together do not meet
        left, waits = left[begin:] + left[:begin], False
        while left:
            before = len(left)
            for part in tuple(left):
                if (self.folder / "index.json").is_file():
                    return  # published after this process had looked for it
                if part.finished() is not None:
                    yield from part.images
                elif not (yield from self._decode_unless_held(part)):
                    continue
                left.remove(part)
            if len(left) == before:
                if not waits:
                    log.info("another process is making the decoded images in %s: waiting for it", self.folder)
                waits = True
                time.sleep(PAUSE)

    def _decode_unless_held(self, part: Part) -> Generator[int, None, bool]:
        """Decode a part unless another process holds it; return True if it is done."""
        if holder(part.folder):
            return False
        try:
            with held(part.folder, patience=0, vital=False):
                yield from self._decode_part(part)
        except FolderInUseError:
            return False
        return True

    def _decode_part(self, part: Part) -> Iterator[int]:
        """Decode the images of a part that are not written yet."""
        digests = self._written(part)
        rest = part.images[len(digests) :]
        with (
            naming_all(self.pairs, self.scale),
            open(self.pixels, "wb", opener=_open_existing) as pixels,
            part.digests.open("w") as lines,
        ):
            self.check_place(pixels)  # the file beside `lines`, unless that folder has been discarded
            lines.writelines(f"{digest}\n" for digest in digests)
            yield from part.images[: len(digests)]
            for i, (image, digest) in zip(rest, in_threads(self._load, rest), strict=True):
                pixels.seek(self.starts[i])
                pixels.writelines(image)
                pixels.flush()
                print(digest, file=lines, flush=True)
                yield i
            os.fsync(pixels.fileno())
            print(DONE, file=lines, flush=True)
            os.fsync(lines.fileno())

    def _written(self, part: Part) -> list[str]:
        """Return the digests of the first images of a part, up to the first one that is not written as they say."""
        try:
            lines = part.digests.read_text().splitlines()
        except (OSError, ValueError):
            return []

        def is_written(line_and_image: tuple[str, int]) -> bool:
            line, i = line_and_image
            return image_digest(self.pixels, self.starts[i], self.starts[i + 1]) == line

        images = zip(lines, part.images, strict=False)
        return [line for line, _ in takewhile(is_written, images)]

    def _load(self, i: int) -> tuple[list[np.ndarray], str]:
        """Load the bytes of an image in their order, HR and LR, and their SHA-256."""
        digest, image = hashlib.sha256(), []
        for planes in load_pair(self.pairs[i], self.sizes[i], self.scale, self.degradation):
            image.append(np.ascontiguousarray(planes.transpose(1, 2, 0)))
            digest.update(image[-1])
        return image, digest.hexdigest()

    def publish(self) -> dict[str, Any]:
        """Put the store, whose parts are done, in its place; return its index.

        Raises:
            OSError, InputError: Another process has been faster, or the disk is full.
        """
        with self.pixels.open("rb") as pixels:
            digests = [line for part in self.parts for line in part.finished() or ()]
            if len(digests) < len(self.pairs):
                raise _gone(self.pixels)
            index = {"scale": self.scale, "bytes": self.starts[-1], "hr_sizes": self.sizes.tolist(), "sha256": digests}
            index["checksum"] = checksum(self.folder.name, index)
            place = self.unfinished / "index.json"
            with replacing(place) as temporary:
                temporary.write_text(json.dumps(index))
            self.check_place(pixels)
            place.replace(self.pixels.with_name("index.json"))
            self.pixels.parent.replace(self.folder)
        return index


def _gone(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _open_existing(path: str, flags: int) -> int:
    """Open a file to write into it; unlike "r+b", NFS then reads no page of it, which may be outdated."""
    return os.open(path, flags & ~(os.O_CREAT | os.O_TRUNC))


def scratch(unfinished: Path) -> Path:
    """Return a new name for an unfinished store that nobody uses."""
    return unfinished.with_name(f"{unfinished.stem}.{secrets.token_hex(4)}.partial")


def discard(unfinished: Path) -> None:
    """Delete an unfinished store, all at once for those who look at it."""
    with suppress(FileNotFoundError):
        delete(unfinished.replace(scratch(unfinished)))


def in_use(unfinished: Path) -> bool:
    """Return True if a process decodes a part of an unfinished store."""
    return any(holder(owner.parent) for owner in unfinished.glob("*/.owner"))


def remove_abandoned(cache_dir: Path, days: float = UNFINISHED_DAYS, but: Path | None = None) -> None:
    """Delete the unfinished stores that no process builds and that were last written to some days ago.

    Args:
        cache_dir: Folder of the stores.
        days: Those of earlier versions, in which nothing tells of a process, stay for a week in any case.
        but: Stays.
    """
    for unfinished in cache_dir.glob("*.partial"):
        try:
            files = [path for path in (unfinished, unfinished / "store/pixels", unfinished / "pixels") if path.exists()]
            patience = days if (unfinished / "store").exists() else UNFINISHED_DAYS
            if unfinished.with_suffix("").exists():  # its builder was killed after it had published the store
                patience = 0
            old = max(path.stat().st_mtime for path in files) < time.time() - patience * 86400
            if unfinished != but and old and not in_use(unfinished):
                discard(unfinished)
        except (OSError, ValueError):  # removed meanwhile
            continue
