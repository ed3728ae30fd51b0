"""Files in zip archives, read without unpacking them."""

import threading
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from sr_lightning.errors import InputError

_READING = threading.Lock()  # an archive is one open file


@dataclass(frozen=True)
class ZipMember:
    """File in a zip archive, with the methods of `Path` that reading an image needs.

    Attributes:
        archive: The zip file.
        member: Path of the file in the archive.
    """

    archive: Path
    member: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    def read_bytes(self) -> bytes:
        """Read the file.

        Raises:
            OSError: The archive cannot be read.
            InputError: The file is damaged.
        """
        try:
            with _READING:
                return _open(self.archive).read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self}: cannot be unpacked ({error}); download the archive again") from None

    def stat(self) -> SimpleNamespace:
        """Return `st_size` of the file and `st_mtime_ns` of the archive.

        Raises:
            OSError: The archive does not exist.
        """
        archive = _open(self.archive)
        return SimpleNamespace(st_size=archive.getinfo(self.member).file_size, st_mtime_ns=archive.mtime_ns)


def members(archive: Path) -> list[str]:
    """List the paths of the files in an archive.

    Raises:
        InputError: The archive is missing or damaged.
    """
    try:
        return [name for name in _open(archive).namelist() if not name.endswith("/")]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: not a readable zip archive ({error}); download it again") from None


def _open(archive: Path) -> zipfile.ZipFile:
    """Open the archive in its current version on disk; it stays open."""
    status = archive.stat()
    return _opened(archive, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _opened(archive: Path, mtime_ns: int, size: int) -> zipfile.ZipFile:
    opened = zipfile.ZipFile(archive)
    opened.mtime_ns = mtime_ns
    return opened
