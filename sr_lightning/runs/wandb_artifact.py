"""Checkpoints in Weights & Biases: `wandb:ENTITY/PROJECT/NAME:ALIAS` names one wherever a file can be given."""

import functools
import hashlib
import logging
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sr_lightning.errors import InputError
from sr_lightning.runs.wandb_record import ID_FILE
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.timings import cache_dir
from sr_lightning.utils.wandb_server import REPLY_TIMEOUT, connection_problem

log = logging.getLogger(__name__)

PREFIX = "wandb:"
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


@functools.cache
def artifact_checkpoint(reference: str) -> Path:
    """Return the checkpoint in an artifact, downloaded once: files are cached by the digest of the artifact.

    Without a key or a network the version that the reference named last is used. A version such as v3 never changes:
    once it is cached, no network is used.

    Args:
        reference: `wandb:ENTITY/PROJECT/NAME`, with or without `:ALIAS`; W&B's default is `latest`.

    Raises:
        InputError: The reference is malformed; the artifact does not exist or has not one checkpoint; or it is not
            cached and there is no wandb, no key or no network.
    """
    name = reference.removeprefix(PREFIX)
    if not (name.isprintable() and re.fullmatch(r"[^/:]+/[^/:]+/[^/:]+(:[^/:]+)?", name)):
        raise InputError(f"{reference}: give wandb:ENTITY/PROJECT/NAME or wandb:ENTITY/PROJECT/NAME:ALIAS")
    name = name if ":" in name else f"{name}:latest"
    folder = cache_dir() / "wandb"
    known = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.txt"  # path of the checkpoint it stood for
    cached = folder / known.read_text(encoding="utf-8") if known.is_file() else None
    if cached is not None and not cached.is_file():
        cached = None
    if cached is not None and re.search(r":v\d+$", name):
        return cached
    if problem := connection_problem(REPLY_TIMEOUT):
        if cached is None:
            raise InputError(f"{reference} cannot be read: {problem}")
        log.warning("%s: %s. Using the version downloaded before, %s", reference, problem, cached)
        return cached
    path = _download(name, folder)
    write_text(known, str(path.relative_to(folder)))
    return path


def _download(name: str, folder: Path) -> Path:
    """Download the checkpoint of an artifact to `folder`, unless it is there.

    Raises:
        InputError: As of `artifact_checkpoint`.
    """
    import wandb

    try:
        artifact = wandb.Api().artifact(name)
        entry = _checkpoint_entry(artifact)
        run_name = quote(f"{artifact.name.partition(':')[0]}_{artifact.digest}", safe="")
        place = folder / run_name / "checkpoints" / Path(entry.path).name
        if not place.is_file():
            log.info("downloading %s%s, %.1f MB", PREFIX, name, (entry.size or 0) / 1e6)
            _note_run(artifact.metadata, place.parents[1])
            _fetch(entry, place)
    except InputError:
        raise
    except Exception as error:  # W&B raises nearly anything
        raise InputError(f"{PREFIX}{name} cannot be read: {' '.join(str(error).split())}") from error
    return place


def _checkpoint_entry(artifact: Any) -> Any:
    """Return the manifest's entry of best.ckpt, or of the only file of weights.

    Raises:
        InputError: There is none, or several.
    """
    files = [path for path in artifact.manifest.entries if path.endswith(SUFFIXES)]
    found = ["best.ckpt"] if "best.ckpt" in files else files
    if len(found) != 1:
        listed = ", ".join(sorted(files or artifact.manifest.entries)[:10]) or "nothing"
        raise InputError(f"{PREFIX}{artifact.qualified_name} has {len(files)} files of weights: it has {listed}")
    return artifact.get_entry(*found)


def _fetch(entry: Any, place: Path) -> None:
    """Download one file of an artifact, complete or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
        path = Path(entry.download(temporary, skip_cache=True))
        if entry.size not in (None, path.stat().st_size):
            raise OSError(f"{path.stat().st_size} of {entry.size} bytes arrived; run again")
        path.replace(place)


def _note_run(metadata: dict[str, Any], run_dir: Path) -> None:
    """Note the run that an artifact is of, as in a run's directory."""
    if isinstance(run := metadata.get("run"), str):
        write_text(run_dir / ID_FILE, f"{run}\n")
