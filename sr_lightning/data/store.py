"""Image store: all images of a data set, decoded once into one file that every process maps into memory."""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from sr_lightning.data.sources import Pair
from sr_lightning.degradations.bicubic import crop_to_multiple, downscale
from sr_lightning.errors import InputError, raise_all
from sr_lightning.images.files import image_size, read_image
from sr_lightning.images.zip_member import ZipMember
from sr_lightning.utils.atomic_files import one_at_a_time, replacing
from sr_lightning.utils.messages import listing
from sr_lightning.utils.progress import tracked
from sr_lightning.utils.threads import in_threads

UNFINISHED_DAYS = 7  # after which the store of a killed builder is removed
SAVED_TOGETHER = 5_000  # digests of files
FORMAT = 1  # increase it when image files are decoded or stored in another way
RESIDENCES = ("mmap", "memory")

log = logging.getLogger(__name__)


class Degradation(Protocol):
    """Function from hr to lr.

    Attributes:
        key: Plain values on which the result depends besides HR and the scale: name, settings, version.
        lr_source: Name of its LR in the scoring protocol.
    """

    key: Any
    lr_source: str

    def __call__(self, hr: Tensor, scale: int) -> Tensor:
        """Map (3, H, W) uint8, multiples of the scale, to (3, H/scale, W/scale) uint8."""
        ...


@dataclass(frozen=True)
class ImageStore:
    """Images of a data set, HR cropped to a multiple of the scale, with their LR.

    A pickle has the path of the pixels, not the pixels: workers started by spawn or forkserver map the same pages.

    Attributes:
        names: Names of the N images.
        scale: The factor.
        pixels: uint8, flat: for each image HR as (H, W, 3), then LR as (H/scale, W/scale, 3). With interleaved colours
            a row of a patch is one piece of memory; in planes it would be three, and gathering patches, which is bound
            by memory, up to a third slower.
        hr_sizes, lr_sizes: (N, 2) int64, height and width.
        hr_starts, lr_starts: (N,) int64, index in `pixels` at which each image starts.
        file: The file of the pixels; None if they are only in memory.
    """

    names: tuple[str, ...]
    scale: int
    pixels: np.ndarray
    hr_sizes: np.ndarray
    lr_sizes: np.ndarray
    hr_starts: np.ndarray
    lr_starts: np.ndarray
    file: Path | None = None

    @classmethod
    def open(
        cls,
        pairs: Sequence[Pair],
        scale: int,
        degradation: Degradation | None,
        cache_dir: str | Path,
        residence: str = "mmap",
    ) -> "ImageStore":
        """Open the store of these images; build it if it is not in the cache.

        Its key is the content of the files and the settings, whatever the paths of the files. One process builds while
        others wait; the store of a killed process is continued after its last whole image.

        Args:
            pairs: The images. Of HR that is no multiple of the scale, the part that both show is stored (`crop_lr`).
            scale: The factor.
            degradation: Makes LR of whole cropped HR images for pairs without LR; None if every pair has LR.
            cache_dir: Folder of the stores.
            residence: "mmap": pages of the file, shared by all processes; "memory": a private copy.

        Raises:
            InputError: No images, bad files (all are named), LR that does not match its HR, neither LR nor a
                degradation, or a full disk.
        """
        if residence not in RESIDENCES:
            raise InputError(f"residence={residence}: choose {' or '.join(RESIDENCES)}")
        if not pairs:
            raise InputError("the data set has no images")
        if degradation is None and (bare := [pair.name for pair in pairs if pair.lr is None]):
            raise InputError(f"{len(bare)} images have no LR file, and no degradation is given:{listing(bare)}")
        cache_dir = _writable(Path(cache_dir).expanduser())
        try:
            with _naming_all(pairs, scale):
                folder = cache_dir / _key(pairs, scale, degradation, cache_dir)
            index = _read_index(folder, len(pairs), scale)
            if index is None:
                _remove_abandoned(cache_dir)
                with one_at_a_time(f"{folder}.lock", f"the decoded images in {folder}"):
                    index = _read_index(folder, len(pairs), scale)  # another process may have built it meanwhile
                    if index is None:
                        index = _build(folder, pairs, scale, degradation)
        except OSError as error:
            raise InputError(
                f"{error.filename or cache_dir}: the decoded images cannot be stored ({error.strerror}); make space or "
                "remove what is in the way, or set another cache_dir"
            ) from error
        sizes = np.array(index["hr_sizes"])
        hr_starts, lr_starts, _ = _layout(sizes, scale)
        file = folder / "pixels"
        if residence == "memory":
            pixels = np.fromfile(file, np.uint8)
            pixels.flags.writeable = False
        else:
            pixels = _map(file)
        names = tuple(pair.name for pair in pairs)
        return cls(names, scale, pixels, sizes, sizes // scale, hr_starts, lr_starts, file)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) if self.file is None else vars(self) | {"pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state if state["file"] is None else state | {"pixels": _map(state["file"])})

    def __len__(self) -> int:
        return len(self.names)

    def hr(self, index: int) -> np.ndarray:
        """HR image (3, H, W) uint8, a read-only view that is not contiguous."""
        return self._image(self.hr_starts[index], self.hr_sizes[index])

    def lr(self, index: int) -> np.ndarray:
        """LR image (3, H/scale, W/scale) uint8, a read-only view that is not contiguous."""
        return self._image(self.lr_starts[index], self.lr_sizes[index])

    def _image(self, start: np.int64, size: np.ndarray) -> np.ndarray:
        height, width = size
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3).transpose(2, 0, 1)

    def check_patch_size(self, patch_size: int) -> None:
        """Check that no image is smaller than a patch.

        Args:
            patch_size: In LR pixels.

        Raises:
            InputError: Names the smaller images, and the largest patch_size that fits.
        """
        small = np.flatnonzero(self.lr_sizes.min(axis=1) < patch_size)
        if len(small) == 0:
            return
        named = [f"{self.names[i]}: LR of {self.lr_sizes[i, 0]}x{self.lr_sizes[i, 1]}" for i in small]
        raise InputError(
            f"patch_size={patch_size} (LR pixels) does not fit into {len(small)} of {len(self)} images; "
            f"set data.skip_small=true to leave them out, or data.patch_size to {self.lr_sizes.min()} or less:"
            f"{listing(named)}"
        )


def verify(pairs: Sequence[Pair], scale: int, degradation: Degradation | None, cache_dir: str | Path) -> bool:
    """Compare all pixels of a store with their checksum, and remove the store if they differ.

    `ImageStore.open`, with the same arguments, compares only what is cheap, the checksum of the index and the number of
    bytes. It decodes the images of a removed store again.

    Returns:
        False if the store was damaged, or made by an earlier version, without a checksum. True if it is whole, or there
        is none.

    Raises:
        InputError: Files of the images are missing.
    """
    folder = Path(cache_dir).expanduser() / _key(pairs, scale, degradation, None)
    if not os.path.lexists(folder):
        return True
    with one_at_a_time(f"{folder}.lock", f"the decoded images in {folder}"):
        index = _read_index(folder, len(pairs), scale)
        if index is not None and "sha256" in index:
            with (folder / "pixels").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == index["sha256"]:
                    return True
        log.warning("%s is damaged or has no checksum: it is removed, and the images are decoded again", folder)
        _remove(folder)
    return False


def _map(file: Path) -> np.ndarray:
    return np.asarray(np.memmap(file, np.uint8, mode="r"))  # views of a plain array are cheaper to make


def _layout(hr_sizes: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the start of HR and of LR of each image, both (N,), and the size of all in bytes."""
    hr_bytes = 3 * hr_sizes.prod(axis=1)
    ends = np.cumsum(hr_bytes + hr_bytes // scale**2)
    lr_starts = ends - hr_bytes // scale**2
    return lr_starts - hr_bytes, lr_starts, int(ends[-1])


def _key(pairs: Sequence[Pair], scale: int, degradation: Degradation | None, cache_dir: Path | None) -> str:
    """Key of the store: a hash of everything that its bytes depend on, but not of paths and file names.

    Digests of files that are cached in `cache_dir` are not computed; None computes all.
    """
    files = [file for pair in pairs for file in (pair.hr, pair.lr) if file is not None]
    digest = _digests(files, cache_dir)
    made = any(pair.lr is None for pair in pairs)
    content = {
        "format": FORMAT,
        "scale": scale,
        "degradation": degradation.key if made else None,
        "images": [[digest[pair.hr], pair.lr and digest[pair.lr]] for pair in pairs],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _digests(files: Sequence[Path | ZipMember], cache_dir: Path | None) -> dict[Path | ZipMember, str]:
    """Hash the content of files; digests are cached by path, size and mtime so that a start does not read gigabytes."""
    memory = None if cache_dir is None else cache_dir / "digests.json"
    known = {} if memory is None else _load_digests(memory)
    stamps, missing = {}, []
    for file in files:
        try:
            status = file.stat()
            stamps[file] = [os.path.abspath(str(file)), status.st_size, status.st_mtime_ns]
        except OSError as error:
            missing.append(f"{file}: {error.strerror}")
    if missing:
        raise InputError(f"{len(missing)} of {len(files)} files cannot be used:{listing(missing)}")

    unknown = [file for file, (path, *stamp) in stamps.items() if known.get(path, [])[:2] != stamp]
    now = time.time_ns()
    found, fresh = {}, {}
    digests = tracked(in_threads(_digest, unknown, "files"), len(unknown), "hashing files")
    for file, digest in zip(unknown, digests, strict=True):
        found[file] = digest
        # A file changed just now could change again within one tick of the file system's clock.
        if memory is not None and abs(now - stamps[file][2]) > 2_000_000_000:
            fresh[stamps[file][0]] = [*stamps[file][1:], digest]
        if len(fresh) == SAVED_TOGETHER:
            _save_digests(memory, fresh)
            fresh = {}
    if fresh:
        _save_digests(memory, fresh)
    return {file: found[file] if file in found else known[path][2] for file, (path, *_) in stamps.items()}


def _load_digests(memory: Path) -> dict[str, list]:
    """Load absolute path -> [bytes, mtime in ns, digest]; lost and damaged entries are left out and computed again."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        known = None
    if isinstance(known, dict):
        return {path: entry for path, entry in known.items() if _is_digest_entry(entry)}
    if os.path.lexists(memory):
        log.warning("%s is damaged: the digests of all files are computed again", memory)
        _remove(memory)
    return {}


def _is_digest_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [int, int, str]


def _save_digests(memory: Path, fresh: dict[str, list]) -> None:
    """Add digests to the known ones. A failure only makes the next start longer."""
    try:
        with FileLock(f"{memory}.lock"), replacing(memory) as temporary:
            temporary.write_text(json.dumps(_load_digests(memory) | fresh))
    except (OSError, InputError) as error:
        log.warning("the digests of the files are computed again by the next start: %s", error)


def _digest(file: Path | ZipMember) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def _read_index(folder: Path, images: int, scale: int) -> dict[str, Any] | None:
    """Read the index of a store; None if there is no store, or it is damaged as far as its index and length tell."""
    try:
        index = json.loads((folder / "index.json").read_bytes())
        sizes = np.array(index["hr_sizes"])
        whole = sizes.dtype == np.int64 and sizes.shape == (images, 2) and sizes.min() >= scale
        whole = whole and not (sizes % scale).any() and _layout(sizes, scale)[2] == index["bytes"]
        whole = whole and (folder / "pixels").stat().st_size == index["bytes"]
        if whole and "checksum" in index:  # stores of earlier versions have none
            whole = index["checksum"] == _checksum(folder.name, index)
        return index if whole else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _checksum(key: str, index: dict[str, Any]) -> str:
    """Hash an index, with the key of its store."""
    content = [key, *(index[name] for name in ("scale", "bytes", "hr_sizes", "sha256"))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def _naming_all(pairs: Sequence[Pair], scale: int) -> Iterator[None]:
    """If a file cannot be used, read all files completely, so that one message names every such file."""
    try:
        yield
    except InputError:
        log.info("a file cannot be used: reading all files to name all such files")
        all(in_threads(lambda pair: _check(pair, scale), pairs))
        raise


def _build(folder: Path, pairs: Sequence[Pair], scale: int, degradation: Degradation | None) -> dict[str, Any]:
    """Decode all images into `folder`; the caller holds its lock. Returns the index."""
    if os.path.lexists(folder):
        log.warning("%s is damaged: the images are decoded again", folder)
    with _naming_all(pairs, scale):
        sizes = np.array(list(in_threads(lambda pair: _hr_size(pair, scale), pairs)), dtype=np.int64)
    starts, _, total = _layout(sizes, scale)
    ends = [*starts[1:].tolist(), total]
    unfinished = folder.with_name(f"{folder.name}.{_host()}.partial")
    done, digest = _continue(unfinished, ends)
    _need_space(folder, total - (ends[done - 1] if done else 0))
    earlier = f"; {done} were decoded by a run that was stopped" if done else ""
    log.info("decoding %d images into %s, %.2f GB%s", len(pairs), folder, total / 1e9, earlier)

    def load(job: tuple[Pair, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return _load(*job, scale, degradation)

    try:
        unfinished.mkdir(exist_ok=True)
        with (unfinished / "pixels").open("ab") as pixels, (unfinished / "digests").open("a") as digests:
            images = in_threads(load, zip(pairs[done:], sizes[done:], strict=True))
            for pair_of_images in tracked(images, len(pairs) - done, "decoding images"):
                for image in pair_of_images:  # HR, LR
                    interleaved = np.ascontiguousarray(image.transpose(1, 2, 0)).data
                    pixels.write(interleaved)
                    digest.update(interleaved)
                pixels.flush()
                print(digest.hexdigest(), file=digests, flush=True)
            os.fsync(pixels.fileno())
        index = {"scale": scale, "bytes": total, "hr_sizes": sizes.tolist(), "sha256": digest.hexdigest()}
        index["checksum"] = _checksum(folder.name, index)
        with replacing(unfinished / "index.json") as temporary:
            temporary.write_text(json.dumps(index))
        _publish(unfinished, folder, len(pairs), scale)
    except Exception:  # of a process that is stopped, the images remain
        _remove(unfinished)
        raise
    return index


def _host() -> str:
    """Return this machine in the name of an unfinished store: locks on shared storage may not reach other machines."""
    return re.sub(r"\W", "-", socket.gethostname())


def _publish(unfinished: Path, folder: Path, images: int, scale: int) -> None:
    """Put a finished store in its place, unless a machine that locks do not reach has put the same there meanwhile."""
    try:
        unfinished.replace(folder)
    except OSError:  # there is one
        if _read_index(folder, images, scale) is None:
            _remove(folder)  # a damaged one
            unfinished.replace(folder)
    _remove(unfinished)
    (folder / "digests").unlink(missing_ok=True)


def _continue(unfinished: Path, ends: Sequence[int]) -> tuple[int, Any]:
    """Cut the unfinished store of a killed builder after its last whole image; remove one without any.

    Line k of its file `digests` is the SHA-256 of all pixels up to the end of image k.

    Args:
        unfinished: The folder.
        ends: Number of bytes up to the end of each image.

    Returns:
        Number of whole images, and the hash of their pixels.
    """
    done, digest = 0, hashlib.sha256()
    try:
        lines = (unfinished / "digests").read_text().splitlines()
        with (unfinished / "pixels").open("r+b") as pixels:
            for line, end in zip(lines, ends, strict=False):
                longer = digest.copy()
                longer.update(pixels.read(end - pixels.tell()))
                if longer.hexdigest() != line:
                    break
                done, digest = done + 1, longer
            pixels.truncate(ends[done - 1] if done else 0)
        (unfinished / "digests").write_text("".join(f"{line}\n" for line in lines[:done]))
    except (OSError, ValueError):
        done, digest = 0, hashlib.sha256()
    if not done:
        _remove(unfinished)
    return done, digest


def _need_space(folder: Path, size: int) -> None:
    """Check that `size` bytes are free, if need be without the unfinished stores of killed processes.

    Raises:
        InputError: They are not.
    """
    if size > shutil.disk_usage(folder.parent).free:
        _remove_abandoned(folder.parent, days=0)
    if size > (free := shutil.disk_usage(folder.parent).free):
        raise InputError(f"{folder.parent}: {size:,} bytes needed, {free:,} free; make space or set another cache_dir")


def _remove(path: Path) -> None:
    """Delete a folder or file, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check(pair: Pair, scale: int) -> bool:
    """Decode both files of a pair; return True, or raise InputError with all that is wrong."""
    _read_pair(pair)
    _hr_size(pair, scale)
    return True


def crop_lr(lr: Tensor, hr: Tensor, scale: int, pair: Pair) -> Tensor:
    """Crop LR to the part that HR, cropped to a multiple of the scale, shows.

    MATLAB's `imresize(hr, 1/scale)` rounds sizes up and keeps the scale, so that the last row and column go beyond HR.
    Other tools stretch HR to the rounded size, which moves LR pixels by up to one pixel against HR.

    Args:
        lr: uint8 (1 or 3, h, w), HR's size divided by the scale, rounded down or up.
        hr: uint8 (1 or 3, H, W), not cropped.
        scale: The factor.
        pair: Named in the message.

    Raises:
        InputError: LR is more like a stretched HR.
    """
    height, width = (side // scale for side in hr.shape[-2:])
    cropped = lr[..., :height, :width]
    if cropped.shape == lr.shape:
        return lr
    hr_gray, lr_gray, cropped_gray = (image.double().mean(dim=0)[None, None] for image in (hr, lr, cropped))
    aligned = downscale(crop_to_multiple(hr_gray, scale), scale)
    stretched = interpolate(hr_gray, size=lr.shape[-2:], mode="bicubic", antialias=True)
    if mse_loss(stretched, lr_gray) < mse_loss(aligned, cropped_gray):
        raise InputError(
            f"{pair.lr}: {lr.shape[-2]}x{lr.shape[-1]} was not made by the factor {scale} from "
            f"{hr.shape[-2]}x{hr.shape[-1]}: its pixels are not aligned with those of {pair.hr}; "
            f"crop HR to a multiple of {scale} and make LR again"
        )
    return cropped


def _read_pair(pair: Pair) -> list[np.ndarray]:
    """Read HR and, if there is a file of it, LR, uint8 (3, H, W) each; gray is repeated."""
    images: list[np.ndarray] = []
    files = (file for file in (pair.hr, pair.lr) if file is not None)
    raise_all(*(partial(lambda file: images.append(read_image(file)), file) for file in files))
    return [image if len(image) == 3 else np.repeat(image, 3, axis=0) for image in images]


def _hr_size(pair: Pair, scale: int) -> tuple[int, int]:
    """Read height and width of the cropped HR from the headers, and check that LR matches."""
    height, width = image_size(pair.hr)
    expected, rounded_up = (height // scale, width // scale), (-(-height // scale), -(-width // scale))
    if min(expected) == 0:
        raise InputError(f"{pair.hr}: {height}x{width} has no pixel left at scale {scale}; exclude it")
    lr = expected if pair.lr is None else image_size(pair.lr)
    if not (lr[0] in (expected[0], rounded_up[0]) and lr[1] in (expected[1], rounded_up[1])):
        raise InputError(
            f"{pair.lr}: {lr[0]}x{lr[1]}, but HR of {height}x{width} at scale {scale} has LR of "
            f"{expected[0]}x{expected[1]}; is it the LR of {pair.hr}, and of this scale?"
        )
    return expected[0] * scale, expected[1] * scale


def _load(
    pair: Pair, hr_size: np.ndarray, scale: int, degradation: Degradation | None
) -> tuple[np.ndarray, np.ndarray]:
    """Load cropped HR and LR, uint8 (3, H, W) and (3, H/scale, W/scale)."""
    whole, *lr_file = (torch.from_numpy(image) for image in _read_pair(pair))
    hr = crop_to_multiple(whole, scale).contiguous()
    lr = crop_lr(lr_file[0], whole, scale, pair) if lr_file else degradation(hr, scale)
    hr, lr = hr.numpy(), lr.numpy()
    for file, image, size in ((pair.hr, hr, hr_size), (pair.lr or degradation, lr, hr_size // scale)):
        if image.dtype != np.uint8 or image.shape != (3, *size):
            raise InputError(f"{file}: has {image.dtype} of {image.shape}, expected uint8 of {(3, *size.tolist())}")
    return hr, lr


def _remove_abandoned(cache_dir: Path, days: float = UNFINISHED_DAYS) -> None:
    """Delete the unfinished stores of killed processes that were last written to some days ago.

    Those of other machines must be an hour old at least: their builders may hold locks that do not reach this one.
    """
    for unfinished in cache_dir.glob("*.partial"):
        key, _, host = unfinished.stem.partition(".")
        try:
            with FileLock(cache_dir / f"{key}.lock", timeout=0):
                patience = days if host in ("", _host()) else max(days, 1 / 24)
                written = [path.stat().st_mtime for path in (unfinished, *unfinished.glob("pixels"))]
                if max(written) < time.time() - patience * 86400:
                    _remove(unfinished)
        except (Timeout, OSError):  # still being built, or its lock is damaged
            continue


def _writable(cache_dir: Path) -> Path:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache_dir}: cannot create this folder ({error.strerror}); set another cache_dir") from None
    if not os.access(cache_dir, os.W_OK):
        raise InputError(f"{cache_dir}: no permission to write into this folder; set another cache_dir")
    return cache_dir
