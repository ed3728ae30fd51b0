"""provenance.json: by which command, code and machine a run was made; its checkpoints have it as well."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

import sr_lightning
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.messages import reason

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy", "pillow")
MAX_DIFF = 20_000  # characters of uncommitted changes that are kept
MAX_NAMES = 100  # files that git does not track
GIT_SECONDS = 5  # after which a large repository is given up

Part = dict[str, Any]


@contextmanager
def recorded(run_dir: Path, **facts: Any) -> Iterator[list[Part]]:
    """Record a part of a run in its provenance.json: at the beginning of the block, and its outcome at the end.

    Args:
        run_dir: The run's directory.
        **facts: Further facts, such as the device and the step at which it begins.

    Yields:
        The parts of the run, this one last: command, host, versions, code, start and end (null after SIGKILL).
    """
    path = run_dir / "provenance.json"
    part = {"command": shlex.join(sys.argv), "started": now(), "ended": None, "outcome": None} | facts | environment()
    parts = [*earlier_parts(path), part]
    write(path, parts)
    try:
        yield parts
    except BaseException as error:
        part["outcome"] = reason(error)
        raise
    else:
        part["outcome"] = "finished"
    finally:
        part["ended"] = now()
        with suppress(OSError):  # the error of the block, such as a full disk, matters more
            write(path, parts)


def earlier_parts(path: Path) -> list[Part]:
    """Read the parts of a run so far; none if the file is missing or damaged, since nothing depends on it."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return parts if isinstance(parts, list) and all(isinstance(part, dict) for part in parts) else []


def kills_in_a_row(parts: Sequence[Part]) -> int:
    """Count the parts just before the last one that were killed after they had begun at the same step as it does."""
    *earlier, last = parts
    killed = takewhile(lambda part: part.get("ended") is None and part.get("step") == last["step"], reversed(earlier))
    return len(list(killed))


def write(path: Path, parts: list[Part]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> Part:
    """Describe the machine, the versions of packages, and the state of the code."""
    versions = {"python": platform.python_version(), "sr_lightning": sr_lightning.__version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    package, here = Path(sr_lightning.__file__).parent, Path.cwd()
    code = {"sr_lightning": state_of(package) if git(package, "ls-files", "__init__.py") else None}
    if (own := state_of(here)) != code["sr_lightning"]:
        code["working directory"] = own
    return {"host": platform.node(), "platform": platform.platform(), "versions": versions, "code": code}


def state_of(folder: Path) -> Part | None:
    """Return commit, uncommitted changes and untracked files of a folder's git repository; None if it has none."""
    commit = git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    top = Path(git(folder, "rev-parse", "--show-toplevel") or folder)
    diff = git(top, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color") or ""
    cut = f"\n... {len(diff) - MAX_DIFF} more characters" if len(diff) > MAX_DIFF else ""
    untracked = (git(top, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    return {"commit": commit, "diff": diff[:MAX_DIFF] + cut, "untracked": untracked[:MAX_NAMES]}


def git(folder: Path, *words: str) -> str | None:
    """Return what git prints, without the last newline; None if it fails, is missing or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").rstrip("\n")
