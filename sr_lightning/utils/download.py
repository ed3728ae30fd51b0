"""Files from the net and out of archives: complete and verified, or not there."""

import gzip
import hashlib
import logging
import lzma
import os
import shutil
import ssl
import tarfile
import time
import zipfile
import zlib
from contextlib import AbstractContextManager
from http.client import HTTPException, InvalidURL
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import one_at_a_time

log = logging.getLogger(__name__)

RETRIES = 4  # in a row without a new byte; pauses of 1, 2, 4, 8 s
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers worth another try
BROKEN = (
    EOFError,
    RuntimeError,  # an encrypted zip
    NotImplementedError,  # an unknown compression
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetches `url` to `path`, going on where an earlier attempt stopped.

    Bytes arrive in `<path>.part`, which survives a kill and is renamed only when everything is right. A lock beside it
    makes several processes fetch once. A file already at `path` is verified and used, so one fetched by hand will do.

    Args:
        url: http, https or file.
        path: The file to make.
        sha256: Expected digest, hexadecimal.
        md5: Expected digest, hexadecimal.
        size: Expected length in bytes.
        timeout: Seconds of silence that count as a broken connection.

    Returns:
        `path`.

    Raises:
        InputError: No connection, a refusal, a web page in place of the file, a wrong length or digest, a full disk, or
            a folder that cannot be made or written to.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise InputError(f"{url} is no address: it must begin with https://, http:// or file://")
    by_hand = f"Or fetch {url} by hand, put it at {path} and run again."
    with _alone(path):
        if path.exists():
            if wrong := _mismatch(path, sha256, md5, size):
                raise InputError(f"{path}: {wrong}. Delete or replace it, then run again to fetch {url}")
            return path
        part = path.with_name(f"{path.name}.part")
        old_part = part.exists()
        _fetch_all(url, part, size, timeout, by_hand)
        wrong = _mismatch(part, sha256, md5, size)
        if wrong and old_part:  # its beginning may be of another version of the file
            log.warning("%s: %s. Its beginning was from an earlier run: fetching all of it again", part, wrong)
            part.unlink()
            _fetch_all(url, part, size, timeout, by_hand)
            wrong = _mismatch(part, sha256, md5, size)
        if wrong:
            part.unlink()
            raise InputError(
                f"{url}: what arrived is not the expected file: {wrong}. It has been removed. "
                f"The server or a proxy may have changed it: run again. {by_hand}"
            )
        os.replace(part, path)
    return path


def extract(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks a zip or tar archive as `folder`, all of it or nothing.

    Outer folders that hold nothing else are dropped: `set/X2/1.png`, `set/X2/2.png` become `<folder>/1.png` and
    `<folder>/2.png`. A folder that already has content is taken as done (another process may have been quicker).

    Returns:
        `folder`.

    Raises:
        InputError: Not a zip or tar file, damaged, with members that point outside the folder, or a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    temporary = folder.with_name(f".{folder.name}.extracting")
    with _alone(folder):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        temporary.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, temporary)
            elif tarfile.is_tarfile(archive):
                _untar(archive, temporary)
            else:
                raise InputError(f"{archive} is neither a zip nor a tar file. Delete it and fetch it again")
            content = temporary
            while len(inside := [entry for entry in content.iterdir() if entry.name != "__MACOSX"]) == 1:
                if not inside[0].is_dir():
                    break
                content = inside[0]
            if folder.is_dir():
                folder.rmdir()  # empty; Windows renames onto no folder
            os.replace(content, folder)
        except BROKEN as error:
            raise InputError(f"{archive} cannot be unpacked ({error}). Delete it and fetch it again") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _alone(path: Path) -> AbstractContextManager[None]:
    """Only one process makes `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot make this folder ({error.strerror}); choose another") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: no permission to write into this folder; choose another")
    return one_at_a_time(path.with_name(f".{path.name}.lock"), str(path))


def _mismatch(path: Path, sha256: str | None, md5: str | None, size: int | None) -> str | None:
    """What is wrong with a file, cheapest check first."""
    length = path.stat().st_size
    if size is not None and length != size:
        return f"expected {size} bytes, got {length}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, name).hexdigest()
            if digest != expected.lower():
                return f"expected {name} {expected}, got {digest}"
    return None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch_all(url: str, part: Path, size: int | None, timeout: float, by_hand: str) -> None:
    """`_fetch` until the file is complete; gives up after RETRIES connections in a row that bring nothing new."""
    failures = 0
    while True:
        before = _length(part)
        try:
            return _fetch(url, part, size, timeout)
        except HTTPError as error:
            if error.code not in PASSING:
                raise InputError(f"{url}: the server answers {error.code} {error.reason}. {by_hand}") from error
            problem = error
        except InvalidURL as error:
            raise InputError(f"{url} is no address: {error}") from error
        except (URLError, ConnectionError, TimeoutError, HTTPException, ssl.SSLError) as error:
            problem = error
        failures = 0 if _length(part) > before else failures + 1
        if failures > RETRIES:
            raise InputError(
                f"{url}: no connection ({problem}). What has arrived, {_length(part)} bytes, is kept for the next run. "
                f"{by_hand}"
            ) from problem
        log.warning("%s: %s. Trying again", url, problem)
        time.sleep(2 ** max(0, failures - 1))


def _fetch(url: str, part: Path, size: int | None, timeout: float) -> None:
    """One connection. Appends what is missing, or starts over where the server cannot go on."""
    have = _length(part)
    if size is not None and have == size:
        return
    if size is not None and have > size:
        have = 0
    resume = {"Range": f"bytes={have}-"} if have else {}
    request = Request(url, headers={"User-Agent": "sr_lightning", **resume})
    try:
        response = urlopen(request, timeout=timeout)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing is missing
            return
        part.unlink()
        raise ConnectionError("the server cannot continue the partial file, which has been dropped") from error
    with response:
        if not (response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            have = 0
        if response.headers.get_content_type() == "text/html" and not part.stem.endswith((".html", ".htm")):
            raise InputError(
                f"{url}: the server sent a web page in place of the file (a login, a notice, or a page with the real "
                "link). Open it in a browser and fetch the file by hand"
            )
        total = response.headers.get("Content-Length")
        total = size if total is None else have + int(total)
        if size is not None and total != size:
            raise InputError(f"{url}: the server offers {total} bytes, expected {size}: another file, or a broken one")
        if total is not None:
            _need_space(part.parent, total - have, f"fetching {url}")
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while (total is None or have < total) and (chunk := response.read1(2**20)):
                have += file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _need_space(folder: Path, size: int, action: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(f"{action} needs {size / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free")


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    """Names that would be written outside the folder; zipfile mends them silently, but such an archive is not ours."""
    bad = [
        name
        for name in names
        if ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\")) or name[1:2] == ":"
    ]
    if bad:
        raise InputError(f"{archive} has members that point outside of it, nothing was unpacked: {', '.join(bad[:5])}")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _refuse_escapes(archive, [member.filename for member in members])
        _need_space(folder, sum(member.file_size for member in members), f"unpacking {archive}")
        for member in tqdm(members, desc=f"unpacking {archive.name}", disable=None):
            file.extract(member, folder)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _refuse_escapes(archive, [member.name for member in members])
        _need_space(folder, sum(member.size for member in members), f"unpacking {archive}")
        for member in tqdm(members, desc=f"unpacking {archive.name}", disable=None):
            file.extract(member, folder, filter="data")  # refuses links to the outside and devices
