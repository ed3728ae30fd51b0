"""Places for a shared network: a folder, or a repository of a hub."""

import json
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.pretrained.hub import MANIFEST, endpoint, parsed, token
from sr_lightning.utils.atomic_files import check_writable, replacing
from sr_lightning.utils.messages import reason

UNMARKED = (".gitattributes", "README.md")  # what a hub may put into a new repository


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder can be written.

    Raises:
        InputError: It or a parent is a file, or may not be written into; or it holds files that may not be replaced.
    """
    if not folder.exists():
        check_writable(folder.absolute().parent, f"--to {folder}")
        return
    if not folder.is_dir():
        raise InputError(f"--to {folder} is a file: name a folder")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    if others := sorted(names - files_of_manifest(folder / MANIFEST)):
        raise InputError(f"--to {folder} holds what this command did not write, such as {others[0]}: name a new folder")
    if not overwrite:
        raise InputError(f"--to {folder} exists: add --overwrite, or name a new folder")


def files_of_manifest(path: Path) -> set[str]:
    """Return the names of the files that were shared together; none without a whole manifest."""
    try:
        content = json.loads(path.read_bytes())
        are_digests = all(re.fullmatch("[0-9a-f]{64}", digest) for digest in content.values())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return set()
    return {*content, path.name} if are_digests else set()


def put_folder(source: Path, folder: Path) -> str:
    """Copy a folder to a new name, or to that of the one that it replaces, completely or not at all.

    Returns:
        The folder and the command that uses it.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sr_lightning_", dir=folder.parent) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            for path in source.iterdir():
                with replacing(new / path.name) as temporary:
                    shutil.copyfile(path, temporary)
            if folder.exists():
                folder.replace(old)
            try:
                new.replace(folder)
            except OSError:
                if old.exists():
                    old.replace(folder)
                raise
    except OSError as error:
        raise InputError(f"--to {folder} cannot be written: {error.strerror or reason(error)}") from error
    return f"{folder} (sr-upscale photo.jpg -c {folder})"


def check_repository(reference: str) -> None:
    """Check that a reference and the installed packages allow an upload.

    Raises:
        InputError: The reference is malformed or has a revision, there is no package huggingface_hub, or HF_TOKEN or
            HF_ENDPOINT is malformed.
    """
    parsed(reference)
    if "@" in reference:
        raise InputError(f"--to {reference}: leave @{reference.partition('@')[2]} out; a new commit of main is written")
    token(), endpoint()
    if find_spec("huggingface_hub") is None:
        raise InputError("--to hf: needs huggingface_hub: pip install 'sr_lightning[hub]'")


def upload(source: Path, reference: str, *, overwrite: bool) -> str:
    """Upload the files of a folder in one commit to a repository, which is created if it does not exist.

    Returns:
        The repository, its commit, and the command that uses it.

    Raises:
        InputError: The hub does not answer or refuses; or the repository has files, without `overwrite`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repository = "/".join(parsed(reference)[:2])
    api = HfApi(endpoint=endpoint(), token=token())
    try:
        api.create_repo(repository, exist_ok=True)
        there = {entry.rfilename for entry in api.model_info(repository).siblings or ()}
        if not overwrite and there - set(UNMARKED):
            raise InputError(f"{reference} has files: add --overwrite for a commit that replaces them, or name another")
        new = {path.name: path for path in sorted(source.iterdir())}
        weights = [name for name in there - new.keys() if name.endswith(".safetensors")]
        operations: list[Any] = [CommitOperationDelete(name) for name in weights]
        operations += [CommitOperationAdd(name, path) for name, path in new.items()]
        commit = api.create_commit(repository, operations, commit_message="Share with sr_lightning").oid
    except InputError:
        raise
    except Exception as error:  # httpx's, the hub's and ValueError of the package
        told = reason(error).replace(token() or "\0", "HF_TOKEN")
        raise InputError(f"{reference}: nothing was written to the hub at {endpoint()}: {told}") from None
    return f"{reference}, commit {commit} (sr-upscale photo.jpg -c {reference})"
