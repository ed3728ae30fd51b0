"""Downloads and archives: a file or folder is complete and verified, or it does not exist."""

import hashlib
import logging
import os
import shutil
import ssl
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException, InvalidURL
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import FULL, one_at_a_time
from sr_lightning.utils.messages import reason

log = logging.getLogger(__name__)

RETRIES = 4  # in a row without a new byte; pauses of 1, 2, 4, 8 s
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes worth a retry


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    timeout: float = 30.0,
    token: str | None = None,
) -> Path:
    """Download `url` to `path`, resuming an interrupted attempt.

    Bytes are written to `<path>.part`, which is renamed after verification. A lock lets several processes download
    once. A file already at `path` is verified and used, also one downloaded by hand.

    Args:
        url: http, https or file.
        path: The file to write.
        sha256: Expected digest, hexadecimal; or its first digits, at least 8.
        md5: Expected digest, hexadecimal.
        size: Expected length in bytes.
        timeout: Seconds without data after which a connection counts as broken.
        token: As of `open_url`.

    Returns:
        `path`.

    Raises:
        InputError: No connection, an HTTP error, a web page instead of the file, a wrong length or digest, a full disk,
            or a folder that cannot be created or written to.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise InputError(f"{url} is not a URL: it must begin with https://, http:// or file://")
    by_hand = f"Or download {url} by hand to {path} and run again."
    with _alone(path):
        if path.exists():
            if wrong := _mismatch(path, sha256, md5, size):
                raise InputError(f"{path}: {wrong}. Delete or replace it, then run again to download {url}")
            return path
        part = path.with_name(f"{path.name}.part")
        old_part = part.exists()
        _fetch_all(url, part, size, timeout, by_hand, token)
        wrong = _mismatch(part, sha256, md5, size)
        if wrong and old_part:  # its first part may be of another version of the file
            log.warning("%s: %s. Its first part is from an earlier run: downloading all of it again", part, wrong)
            part.unlink()
            _fetch_all(url, part, size, timeout, by_hand, token)
            wrong = _mismatch(part, sha256, md5, size)
        if wrong:
            part.unlink()
            raise InputError(
                f"{url}: the downloaded file is not the expected one: {wrong}. It has been removed. "
                f"The server or a proxy may have changed it: run again. {by_hand}"
            )
        part.replace(path)
    return path


def extract(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a zip or tar archive to `folder`, completely or not at all.

    Outer folders that contain nothing else are dropped: `set/X2/1.png`, `set/X2/2.png` become `<folder>/1.png` and
    `<folder>/2.png`. A folder that already has content is used (another process may have unpacked it).

    Returns:
        `folder`.

    Raises:
        InputError: Not a zip or tar file, damaged, with members that point outside the folder or cannot be unpacked, or
            a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    temporary = folder.with_name(f".{folder.name}.extracting")
    with _alone(folder):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        try:
            with _naming(archive):
                temporary.mkdir()
                if zipfile.is_zipfile(archive):
                    _unzip(archive, temporary)
                elif tarfile.is_tarfile(archive):
                    _untar(archive, temporary)
                else:
                    raise InputError(f"{archive} is neither a zip nor a tar file. Delete it and download it again")
                content = temporary
                while len(inside := [entry for entry in content.iterdir() if entry.name != "__MACOSX"]) == 1:
                    if not inside[0].is_dir():
                        break
                    content = inside[0]
                if folder.is_dir():
                    folder.rmdir()  # empty; Windows cannot replace a folder
                content.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _alone(path: Path) -> AbstractContextManager[None]:
    """Let only one process at a time create `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot create this folder ({error.strerror}); choose another") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: no permission to write into this folder; choose another")
    return one_at_a_time(path.with_name(f".{path.name}.lock"), str(path))


def _mismatch(path: Path, sha256: str | None, md5: str | None, size: int | None) -> str | None:
    """Describe the mismatch of a file with its expected size or digest, cheapest check first; None without one."""
    if path.is_dir():
        return "a folder, not a file"
    length = path.stat().st_size
    if size is not None and length != size:
        return f"expected {size} bytes, got {length}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, name).hexdigest()
            if not digest.startswith(expected.lower()) or len(expected) < 8:
                return f"expected {name} {expected}, got {digest}"
    return None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Redirects(HTTPRedirectHandler):
    def redirect_request(self, req: Request, *place: Any) -> Request | None:
        new = super().redirect_request(req, *place)
        if new is not None and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def open_url(url: str, timeout: float, token: str | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """Open a connection, as urllib.request.urlopen does.

    Args:
        url: http, https or file.
        timeout: Seconds without data after which a connection counts as broken.
        token: Sent to the host of `url` alone: not to another one that it redirects to.
        headers: Of the request.

    Raises:
        InvalidURL: `url`, or an address that it redirects to, is malformed.
        OSError, HTTPException: As of urlopen.
    """
    sent = {"User-Agent": "sr_lightning"} | dict(headers or {})
    request = Request(url, headers=sent | ({"Authorization": f"Bearer {token}"} if token else {}))
    try:
        return build_opener(_Redirects).open(request, timeout=timeout)
    except ValueError as error:  # also UnicodeError, of a host that cannot be looked up
        raise InvalidURL(reason(error)) from error


def status_line(error: HTTPError) -> str:
    """Return status and reason of a reply on one line."""
    return " ".join(f"{error.code} {error.reason}".split())


def _fetch_all(url: str, part: Path, size: int | None, timeout: float, by_hand: str, token: str | None) -> None:
    """Repeat `_fetch` until the file is complete; give up after RETRIES connections in a row without new data."""
    failures = 0
    while True:
        before = _length(part)
        try:
            return _fetch(url, part, size, timeout, token)
        except HTTPError as error:
            if error.code not in TRANSIENT:
                raise InputError(f"{url}: the server responds {status_line(error)}. {by_hand}") from error
            problem = error
        except InvalidURL as error:
            raise InputError(f"{url} is not a URL: {error}") from error
        except (URLError, ConnectionError, TimeoutError, HTTPException, ssl.SSLError) as error:
            problem = error
        failures = 0 if _length(part) > before else failures + 1
        if failures > RETRIES:
            received = _length(part)
            kept = f"The {received} bytes received are kept for the next run. " if received else ""
            raise InputError(f"{url}: no connection ({reason(problem)}). {kept}{by_hand}") from problem
        log.warning("%s: %s. Retrying", url, problem)
        time.sleep(2 ** max(0, failures - 1))


def _fetch(url: str, part: Path, size: int | None, timeout: float, token: str | None) -> None:
    """Open one connection; append the missing bytes, or start over if the server cannot resume."""
    have = _length(part)
    if size is not None and have == size:
        return
    if size is not None and have > size:
        have = 0
    resume = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = open_url(url, timeout, token, resume)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # complete
            return
        part.unlink()
        raise ConnectionError("the server cannot continue the partial file, which has been dropped") from error
    with response:
        if not (response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            have = 0
        if response.headers.get_content_type() == "text/html" and not part.stem.endswith((".html", ".htm")):
            raise InputError(
                f"{url}: the server sent a web page instead of the file (a login, a notice, or a page with the real "
                "link). Open it in a browser and download the file by hand"
            )
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else size
        if size is not None and total != size:
            raise InputError(f"{url}: the server offers {total} bytes, expected {size}: another or damaged file")
        if total is not None:
            _need_space(part.parent, total - have, f"downloading {url}")
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
    """Refuse members outside of the folder. zipfile renames them silently, but no archive used here has any."""
    bad = [
        name
        for name in names
        if ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\")) or name[1:2] == ":"
    ]
    if bad:
        raise InputError(f"{archive} has members outside of its folder, nothing was unpacked: {', '.join(bad[:5])}")


@contextmanager
def _naming(archive: Path, member: str | None = None) -> Iterator[None]:
    """Turn errors of unpacking into InputErrors that name the archive and the member."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged archives raise nearly anything: EOFError, RuntimeError, UnicodeError, ...
        named = f"{archive}" if member is None else f"{archive}: its member {member}"
        problem, way_out = reason(error), "Delete the archive and download it again, or unpack it by hand"
        if isinstance(error, OSError) and error.strerror:
            problem, way_out = error.strerror, "Solve that, then run again" if error.errno in FULL else way_out
        raise InputError(f"{named} cannot be unpacked ({problem}). {way_out}") from error


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _refuse_escapes(archive, [member.filename for member in members])
        _need_space(folder, sum(member.file_size for member in members), f"unpacking {archive}")
        for member in tqdm(members, desc=f"unpacking {archive.name}", disable=None):
            with _naming(archive, member.filename):
                file.extract(member, folder)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _refuse_escapes(archive, [member.name for member in members])
        _need_space(folder, sum(member.size for member in members), f"unpacking {archive}")
        for member in tqdm(members, desc=f"unpacking {archive.name}", disable=None):
            with _naming(archive, member.name):
                file.extract(member, folder, filter="data")  # refuses devices, and links out of the folder
