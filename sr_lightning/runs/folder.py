"""Paths of the files in a run's directory."""

import os
import shutil
from pathlib import Path

from sr_lightning.errors import InputError
from sr_lightning.pretrained import hub, included, web
from sr_lightning.pretrained.published import PUBLISHED, published_weights
from sr_lightning.runs.wandb_artifact import PREFIX, artifact_checkpoint
from sr_lightning.utils.held_folder import holder

REMOTE = {PREFIX: artifact_checkpoint, hub.PREFIX: hub.hub_weights, web.ADDRESSES: web.web_weights}
STARTED = {".hydra", ".lock", ".owner", "train.log", "evaluate.log"}  # written before a command's work begins


class RunFolder:
    """A run's directory: paths of its files, whether they exist or not.

    Args:
        path: The directory.

    Attributes:
        config: The resolved settings, YAML.
        metrics: Logged values, one row per step, CSV.
        results: Scores per image of the best checkpoint, CSV.
        result: The outcome, JSON; written last, so its presence means that the run has ended.
        best: The checkpoint that is scored and used.
        last: The checkpoint from which training resumes.
        pictures: Comparison pictures.
        report: The page of an evaluation.
        log: Output of a sweep's cell.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.results = self.path / "results.csv"
        self.result = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.best, self.last = self.checkpoints / "best.ckpt", self.checkpoints / "last.ckpt"
        self.pictures = self.path / "pictures"
        self.report = self.path / "report.html"
        self.log = self.path / "train.log"

    def exists(self) -> bool:
        """Return True if the directory contains files of a run, finished or not."""
        return any(path.exists() for path in (self.result, self.config, self.checkpoints, self.log))


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Resolve a path to a file of trained weights: the file itself, or the best checkpoint of a run's directory.

    A name of `pretrained.included`, such as "luma_x2", is that of a network that comes with the package, and one of
    `published.PUBLISHED` that of a file to download, unless a file or folder is called so. Other files elsewhere, which
    are also downloaded once: `https://…/FILE`, with or without `#sha256=HEX`; `hf:USER/NAME[@REVISION]`, of a Hugging
    Face hub; `wandb:ENTITY/PROJECT/NAME:ALIAS`, of Weights & Biases.

    Raises:
        InputError: The path does not exist, or the directory or the artifact has no checkpoint; or as of
            `web.web_weights` and `hub.hub_weights`.
    """
    try:
        path = os.fspath(path)
    except TypeError:
        raise InputError(f"{path!r} is neither a path nor a name of weights") from None
    for prefixes, remote in REMOTE.items():
        if path.startswith(prefixes):
            return remote(path)
    if not path:
        raise InputError("'' is no file of weights; give a file, a run's directory, or a name such as luma_x2")
    path = Path(path).expanduser()
    if not path.exists():
        names = included()
        if str(path) in names:
            return names[str(path)]
        if str(path) in PUBLISHED:
            return published_weights(str(path))
        raise InputError(
            f"there is no file or folder {path}, and no network {path} among {', '.join(names)} and the published ones "
            "(sr-models --weights)"
        )
    if path.is_file():
        return path
    if not path.is_dir():  # such as /dev/zero, which has no end
        raise InputError(f"{path} is not a file of weights")
    if (path / hub.MANIFEST).is_file():
        return hub.weights_in(path)
    run = RunFolder(path)
    if run.best.is_file():
        return run.best
    others = [p for p in (path / "best.ckpt", run.last, path / "last.ckpt") if p.is_file()]
    hint = f"; name the file: {others[0]}" if others else " without a checkpoint"
    runs = sorted(checkpoint.parents[1] for checkpoint in path.glob("*/checkpoints/best.ckpt"))
    hint += f"; name a run in it, such as {runs[-1]}" if runs and not others else ""
    raise InputError(f"{path} is a folder{hint}")


def remove_failed_start(run_dir: str | Path) -> bool:
    """Remove the directory of a command that ended before its work began; return True if it was removed.

    That is one with nothing but a log, locks that no process holds, and Hydra's record. Parent directories below the
    working directory that are then empty are removed as well.
    """
    folder, here = Path(run_dir).absolute(), Path.cwd()
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names or not names <= STARTED or folder in (here, *here.parents):
        return False
    if holder(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)  # another process of the run may do the same
    for parent in folder.parents:
        if here not in parent.parents or any(parent.iterdir()):
            break
        parent.rmdir()
    return True
