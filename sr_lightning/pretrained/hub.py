"""Weights of a Hugging Face hub, `hf:USER/NAME[@REVISION]`, that `python -m sr_lightning.share` has written.

The hub is HF_ENDPOINT, or https://huggingface.co. It gets HF_TOKEN if that is set.
"""

import hashlib
import json
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

from sr_lightning.errors import InputError
from sr_lightning.pretrained.web import host_of
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.download import download, open_url
from sr_lightning.utils.messages import reason
from sr_lightning.utils.timings import cache_dir

PREFIX = "hf:"
MANIFEST = "manifest.json"  # file name -> sha256, of all other files
TIMEOUT = 20.0  # seconds without data
MAX_REPLY = 2**22  # bytes
NAME = r"[A-Za-z0-9_-][\w.-]*"


def hub_weights(reference: str) -> Path:
    """Return the weights of a repository, downloaded once and verified at each use.

    The commit that a branch, a tag or no revision stands for is noted at the first use and stays: later uses need no
    network. Another one is had by its name.

    Args:
        reference: `hf:USER/NAME`, or `hf:USER/NAME@REVISION` with a branch, a tag or a commit.

    Raises:
        InputError: The reference is malformed; the hub does not answer, lacks or refuses the repository; or it has no
            manifest with weights, or they differ from it.
    """
    user, name, revision = parsed(reference)
    folder = cache_dir() / "hub" / quote(host_of(endpoint()) or "", safe="") / user / name
    pin = folder / "revisions" / quote(revision, safe="")
    commit = revision if _is_commit(revision) else pin.read_text().strip() if pin.is_file() else None
    if commit is None or not (folder / commit / MANIFEST).is_file():
        commit = commit or _commit_of(reference, f"{user}/{name}", revision)
        _fetch(reference, f"{user}/{name}", commit, folder / commit)
    if commit != revision:
        write_text(pin, f"{commit}\n")
    return weights_in(folder / commit)


def parsed(reference: str) -> tuple[str, str, str]:
    """Return user, name and revision of a reference; the revision is `main` unless it has one.

    Raises:
        InputError: It is malformed.

    Example:
        >>> parsed("hf:me/espcn@v2")
        ('me', 'espcn', 'v2')
    """
    match = re.fullmatch(rf"{PREFIX}({NAME})/({NAME})(?:@({NAME}(?:/{NAME})*))?", reference, re.ASCII)
    if match is None:
        raise InputError(f"{reference}: give hf:USER/NAME or hf:USER/NAME@REVISION")
    return match[1], match[2], match[3] or "main"


def weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder that `share` has written, verified by the manifest.

    Raises:
        InputError: The manifest is damaged or names not one file of weights; or the file is missing or differs from it.
    """
    name, digest = weights_of_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    path = folder / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), and {MANIFEST} names it: {_way_out(folder)}"
        ) from None
    if found != digest:
        raise InputError(f"{path} is not the file that {MANIFEST} names: its sha256 differs. {_way_out(folder)}")
    return path


def weights_of_manifest(content: bytes, source: str) -> tuple[str, str]:
    """Return name and sha256 of the only file of weights in a manifest.

    Raises:
        InputError: It is damaged, or names none or several.
    """
    try:
        files = dict(json.loads(content))
        (found,) = [(name, digest) for name, digest in files.items() if name.endswith(".safetensors")]
        if not (re.fullmatch(rf"{NAME}", found[0]) and re.fullmatch("[0-9a-f]{64}", found[1])):
            raise ValueError(f"its entry {found[0]} is not a file name and a sha256")
    except (ValueError, TypeError) as error:
        raise InputError(f"{source} is not a manifest with one file of weights, as share writes it") from error
    return found


def endpoint() -> str:
    """Return the address of the hub.

    Raises:
        InputError: HF_ENDPOINT is no address.
    """
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if host_of(address) is None:
        raise InputError(f"HF_ENDPOINT={address} is no address: give https://HOST, or unset it")
    return address


def token() -> str | None:
    """Return HF_TOKEN; None if it is not set.

    Raises:
        InputError: It cannot be sent. The message does not contain it.
    """
    text = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch("[!-~]*", text):
        raise InputError("HF_TOKEN is no token: it has spaces or other characters that no token has")
    return text or None


def _way_out(folder: Path) -> str:
    return f"Delete {folder}, and get it again"


def _is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def _commit_of(reference: str, repository: str, revision: str) -> str:
    """Ask the hub for the commit of a revision."""
    url = f"{endpoint()}/api/models/{repository}/revision/{quote(revision, safe='')}"
    missing = f"the hub at {endpoint()} has no repository {repository}, or no revision {revision} of it"
    content = _get(reference, url, missing)
    try:
        commit = json.loads(content)["sha"]
    except (ValueError, LookupError, TypeError):
        commit = None
    if not isinstance(commit, str) or not _is_commit(commit):
        raise InputError(f"{reference}: {url} does not answer as a hub does; is HF_ENDPOINT right?")
    return commit


def _fetch(reference: str, repository: str, commit: str, folder: Path) -> None:
    """Download the weights of a commit, then write the manifest, which shows that they are complete."""
    place = f"{endpoint()}/{repository}/resolve/{commit}"
    content = _get(
        reference,
        f"{place}/{MANIFEST}",
        f"there is no {MANIFEST} in commit {commit}, so `python -m sr_lightning.share` did not write it. Give the "
        f"address of its file of weights: {place}/FILE",
    )
    name, digest = weights_of_manifest(content, f"{reference}: {MANIFEST}")
    download(f"{place}/{name}", folder / name, digest, token=token())
    write_text(folder / MANIFEST, content.decode())


def _get(reference: str, url: str, missing: str) -> bytes:
    """Return a short reply of the hub.

    Args:
        reference: Named in messages.
        url: The address.
        missing: Message if there is nothing at the address.

    Raises:
        InputError: The hub does not answer, refuses access, or has no such thing.
    """
    try:
        with open_url(url, TIMEOUT, token()) as reply:
            return reply.read(MAX_REPLY)
    except HTTPError as error:
        if error.code == 404:
            problem = missing
        elif error.code in (401, 403):
            way_out = "the token in HF_TOKEN may not read it" if token() else "set HF_TOKEN to a token that may read it"
            problem = f"the hub at {endpoint()} refuses access: it is private or gated, or does not exist; {way_out}"
        else:
            problem = f"the hub at {endpoint()} responds {error.code} {error.reason}; try again later"
        raise InputError(f"{reference}: {problem}") from None
    except (OSError, HTTPException) as error:
        cause = reason(error.reason if isinstance(getattr(error, "reason", None), Exception) else error)
        raise InputError(f"{reference}: the hub at {endpoint()} does not answer ({cause}); try again later") from None
