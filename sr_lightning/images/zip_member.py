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
    """As much of a `Path` as reading an image takes.

    Attributes:
        archive: The zip file.
        member: The file's path inside.
    """

    archive: Path
    member: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            OSError: The archive cannot be read.
            InputError: It is damaged there.
        """
        try:
            with _READING:
                return _open(self.archive).read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self}: cannot be unpacked ({error}); get the archive again") from None

    def stat(self) -> SimpleNamespace:
        """`st_size` of the file and `st_mtime_ns` of the archive.

        Raises:
            OSError: The archive is not there.
        """
        archive = _open(self.archive)
        return SimpleNamespace(st_size=archive.getinfo(self.member).file_size, st_mtime_ns=archive.mtime_ns)


def members(archive: Path) -> list[str]:
    """Paths of the files in an archive.

    Raises:
        InputError: No archive, or a damaged one.
    """
    try:
        return [name for name in _open(archive).namelist() if not name.endswith("/")]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: no zip archive that can be read ({error}); get it again") from None


def _open(archive: Path) -> zipfile.ZipFile:
    """The archive as it is on the disk now; it stays open."""
    status = archive.stat()
    return _opened(archive, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _opened(archive: Path, mtime_ns: int, size: int) -> zipfile.ZipFile:
    opened = zipfile.ZipFile(archive)
    opened.mtime_ns = mtime_ns
    return opened
