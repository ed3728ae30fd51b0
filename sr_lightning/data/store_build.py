"""Building of image stores."""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sr_lightning.data.pair_images import Degradation, hr_size, load_pair, naming_all
from sr_lightning.data.sources import Pair
from sr_lightning.data.store_index import checksum, layout, read_index
from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import delete, replacing
from sr_lightning.utils.progress import tracked
from sr_lightning.utils.threads import in_threads

UNFINISHED_DAYS = 7  # after which the store of a killed builder is removed

log = logging.getLogger(__name__)


def build(folder: Path, pairs: Sequence[Pair], scale: int, degradation: Degradation | None) -> dict[str, Any]:
    """Decode all images into `folder`; the caller holds its lock. Returns the index."""
    if os.path.lexists(folder):
        log.warning("%s is damaged: the images are decoded again", folder)
    with naming_all(pairs, scale):
        sizes = np.array(list(in_threads(lambda pair: hr_size(pair, scale), pairs)), dtype=np.int64)
    starts, _, total = layout(sizes, scale)
    ends = [*starts[1:].tolist(), total]
    unfinished = folder.with_name(f"{folder.name}.{_host()}.partial")
    done, digest = _continue(unfinished, ends)
    _need_space(folder, total - (ends[done - 1] if done else 0))
    earlier = f"; {done} were decoded by a run that was stopped" if done else ""
    log.info("decoding %d images into %s, %.2f GB%s", len(pairs), folder, total / 1e9, earlier)

    def load(job: tuple[Pair, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return load_pair(*job, scale, degradation)

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
        index["checksum"] = checksum(folder.name, index)
        with replacing(unfinished / "index.json") as temporary:
            temporary.write_text(json.dumps(index))
        _publish(unfinished, folder, len(pairs), scale)
    except Exception:  # of a process that is stopped, the images remain
        delete(unfinished)
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
        if read_index(folder, images, scale) is None:
            delete(folder)  # a damaged one
            unfinished.replace(folder)
    delete(unfinished)
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
        delete(unfinished)
    return done, digest


def _need_space(folder: Path, size: int) -> None:
    """Check that `size` bytes are free, if need be without the unfinished stores of killed processes.

    Raises:
        InputError: They are not.
    """
    if size > shutil.disk_usage(folder.parent).free:
        remove_abandoned(folder.parent, days=0)
    if size > (free := shutil.disk_usage(folder.parent).free):
        raise InputError(f"{folder.parent}: {size:,} bytes needed, {free:,} free; make space or set another cache_dir")


def remove_abandoned(cache_dir: Path, days: float = UNFINISHED_DAYS) -> None:
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
                    delete(unfinished)
        except (Timeout, OSError):  # still being built, or its lock is damaged
            continue
