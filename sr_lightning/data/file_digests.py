"""Content of image files as SHA-256, computed once per file and cached."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from sr_lightning.errors import InputError
from sr_lightning.images.zip_member import ZipMember
from sr_lightning.utils.atomic_files import delete, replacing
from sr_lightning.utils.messages import listing
from sr_lightning.utils.progress import tracked
from sr_lightning.utils.threads import in_threads

SAVED_TOGETHER = 5_000  # digests of files

log = logging.getLogger(__name__)


def file_digests(files: Sequence[Path | ZipMember], cache_dir: Path | None) -> dict[Path | ZipMember, str]:
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
        delete(memory)
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
