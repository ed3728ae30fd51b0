"""Files of weights at an address: `https://…/FILE`, with or without `#sha256=HEX`."""

import hashlib
import logging
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.download import download
from sr_lightning.utils.timings import cache_dir

log = logging.getLogger(__name__)

ADDRESSES = ("https://", "http://")


def host_of(address: str) -> str | None:
    """Return host and port of an http or https address; None if it is none."""
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return None
    return parts.netloc if is_valid else None


def with_digest(address: str, sha256: str) -> str:
    """Append a digest to an address.

    Raises:
        InputError: It is no address, or has a digest.
    """
    if not address.startswith(ADDRESSES) or "#" in address:
        raise InputError(f"{address}: sha256= is for an address without #, https://…/FILE")
    return f"{address}#sha256={sha256}"


def web_weights(address: str) -> Path:
    """Return the file at an address, downloaded once and verified at each use.

    Without a digest, the one of the file that was downloaded is noted, shown, and verified later.

    Args:
        address: `https://…/FILE`; `#sha256=HEX` at its end is the digest of the file.

    Raises:
        InputError: As of `download`; or the digest is malformed.
    """
    url, _, fragment = address.partition("#")
    if host_of(url) is None or not (url.isascii() and url.isprintable()) or " " in url:
        raise InputError(f"{url} is no address: give https://HOST/FILE, with %20 for a space")
    if fragment and not re.fullmatch("sha256=[0-9a-fA-F]{64}", fragment):
        raise InputError(f"{address}: after # give the digest of the file, sha256= and 64 digits of 0-9 and a-f")
    folder = cache_dir() / "weights" / hashlib.sha256(address.encode(errors="replace")).hexdigest()[:32]
    name = re.sub(r"[^\w.+-]", "_", unquote(urlsplit(url).path).rpartition("/")[2]).lstrip(".")[-100:] or "weights"
    noted = folder / "sha256"
    known = fragment.removeprefix("sha256=") or (noted.read_text().strip() if noted.is_file() else None)
    path = download(url, folder / name, known)
    if known is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        write_text(noted, f"{digest}\n")
        log.warning(
            "%s was downloaded without a digest to compare. To fix this version: %s#sha256=%s", url, url, digest
        )
    return path
