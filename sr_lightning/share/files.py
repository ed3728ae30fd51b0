"""The files of a shared network, without paths and names of this machine."""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sr_lightning.api.scores import Scores, read_scores
from sr_lightning.checkpoints.checkpoint import Trained, load_best
from sr_lightning.checkpoints.interop import save_weights
from sr_lightning.configs import CONF
from sr_lightning.evaluation.score_table import csv_text
from sr_lightning.export.writers import metadata
from sr_lightning.pretrained.hub import MANIFEST, PREFIX
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.metrics_csv import read_metrics
from sr_lightning.runs.provenance import earlier_parts
from sr_lightning.runs.result import finished_result
from sr_lightning.runs.saved_config import read_config
from sr_lightning.share.card import card
from sr_lightning.utils.atomic_files import replacing, write_text

SETTINGS = (  # of config.yaml and the command that are shared; all others are paths, output, devices, or the user's own
    *("name", "seed", "max_steps", "val_every", "choices", "scale", "model", "data", "degradation", "protocol"),
    *("trainer", "early_stopping"),
)
GROUPS = ("gan", "experiment")  # options on the command line that are no keys of the config
LOCAL = ("cache_dir", "residence", "num_workers", "root", "devices", "strategy", "num_nodes", "profiler", "log_every")
NUM_PICTURES = 3
HELD_OUT = "held-out"  # the validation images, in scores and names of pictures


@dataclass(frozen=True)
class Facts:
    """All that is shared of a run.

    Attributes:
        run: Its directory.
        trained: The network of its best checkpoint.
        name: Of the file of weights, without a suffix.
        config: Its settings.
        recipe: The command that trains it; None if it is not known.
        commit: Of the code; None if it was no repository.
        changed: The code had changes that were not committed.
        seconds: Of training.
        data: Names of the training sets; none if they are the user's own images.
        scores: Rows of public test sets, and the means of others.
        pictures: Comparisons on public images.
        licence: Of the weights.
        reference: By which others name it: a folder, or `hf:USER/NAME`.
    """

    run: RunFolder
    trained: Trained
    name: str
    config: dict[str, Any]
    recipe: str | None
    commit: str | None
    changed: bool
    seconds: float | None
    data: list[str]
    scores: Scores
    pictures: list[Path]
    licence: str
    reference: str


def facts_of(run: RunFolder, licence: str, reference: str) -> Facts:
    """Collect what is shared of a run.

    Raises:
        InputError: It is no run, has not ended, has no scores, or a file of it is damaged.
    """
    result = finished_result(run)
    config = read_config(run.config)
    root, trained, scores = str(config.data_root).rstrip("/"), load_best(run.best), read_scores(run.path)
    first = next(iter(earlier_parts(run.path / "provenance.json")), {})
    code = (first.get("code") or {}).get("sr_lightning") or {}
    own_images = is_own(config.choices.data)
    public = [row for row in scores if row["image"] == "mean" or not (own_images and row["dataset"] == HELD_OUT)]
    settings = OmegaConf.to_container(OmegaConf.masked_copy(config, [key for key in SETTINGS if key in config]))
    return Facts(
        run=run,
        trained=trained,
        name=re.sub(r"[^\w.-]+", "_", trained.name, flags=re.ASCII).strip(".-_")[:100] or "network",
        config=without_places(settings, root),
        recipe=recipe(first.get("command"), root),
        commit=code.get("commit"),
        changed=bool(code.get("diff")),
        seconds=result.get("seconds"),
        data=[] if own_images else sorted(set(training_sets(OmegaConf.to_container(config.data), root))),
        scores=Scores(sorted(public, key=lambda row: row["dataset"] == HELD_OUT)),
        pictures=pictures_of(run, own_images=own_images),
        licence=licence,
        reference=reference,
    )


def is_own(data: str | None) -> bool:
    """Return True if the option of `data=` is not one of the public sets of conf/data."""
    return data in (None, "base", "folder") or not (CONF / "data" / f"{data}.yaml").is_file()


def pictures_of(run: RunFolder, *, own_images: bool) -> list[Path]:
    """Return the first comparisons, of test sets before held-out images, which are left out if they are the user's."""
    found = sorted(run.pictures.glob("*.png"), key=lambda path: (path.name.startswith(HELD_OUT), path.name))
    return [path for path in found if not (own_images and path.name.startswith(HELD_OUT))][:NUM_PICTURES]


def without_places(value: Any, root: str) -> Any:
    """Leave out settings of this machine, and replace paths and addresses by the name at their end.

    Args:
        value: Of a config, in plain containers.
        root: data_root; paths below it become relative to it.

    Example:
        >>> without_places({"hr": ["/data/T91", "/home/me/photos"], "num_workers": 2}, "/data")
        {'hr': ['T91', 'photos']}
    """
    if isinstance(value, dict):
        return {key: without_places(item, root) for key, item in value.items() if key not in LOCAL}
    if isinstance(value, list):
        return [without_places(item, root) for item in value]
    if not isinstance(value, str) or value.startswith(PREFIX):
        return value
    if value.startswith(f"{root}/"):
        return value.removeprefix(f"{root}/")
    return re.split(r"[/\\]", re.sub(r"[?#].*|[/\\]+$", "", value))[-1] if re.search(r"[/\\]", value) else value


def training_sets(data: Any, root: str) -> Iterator[str]:
    """Yield the names of the data sets in the training part of a config: folders of data_root, and DIV2K."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key != "val":
                yield from training_sets(value, root)
    elif isinstance(data, list):
        for value in data:
            yield from training_sets(value, root)
    elif isinstance(data, str) and data.startswith(f"{root}/"):
        yield data.removeprefix(f"{root}/").partition("/")[0]
    elif data == "sr_lightning.data.div2k.div2k":
        yield "DIV2K"
    elif data == "sr_lightning.data.bundled_photos":
        yield "photos of scikit-image"


def recipe(command: str | None, root: str) -> str | None:
    """Return the command of a training with the settings that are shared; None if it is not known.

    Example:
        >>> recipe("/home/me/train.py model=espcn data_root=/data data.hr=[/data/T91]", "/data")
        'python train.py model=espcn data.hr=[T91]'
    """
    try:
        words = shlex.split(command or "")[1:]
    except ValueError:
        words = []
    kept = []
    for word in words:
        key, equals, value = word.partition("=")
        parts = key.lstrip("+~").split(".")
        if equals and parts[0] in (*SETTINGS, *GROUPS) and not set(parts) & set(LOCAL):
            value = re.sub(r"[^][{},'\"]+", lambda match: without_places(match[0], root), value)
            kept.append(shlex.quote(f"{key}={value}") if re.search(r"['\"\s()$&;|<>]", value) else f"{key}={value}")
    return " ".join(["python train.py", *kept]) if command else None


def write_files(facts: Facts, folder: Path) -> list[str]:
    """Write all files of a shared network into an empty folder, the manifest last; return their names."""
    weights = folder / f"{facts.name}.safetensors"
    save_weights(facts.trained.network, weights, metadata=metadata(facts.trained))
    write_text(folder / "config.yaml", OmegaConf.to_yaml(facts.config))
    write_text(folder / "scores.csv", csv_text(facts.scores))
    write_text(folder / "metrics.csv", csv_text(read_metrics(facts.run.metrics)))
    for picture in facts.pictures:
        with replacing(folder / picture.name) as temporary:
            shutil.copyfile(picture, temporary)
    write_text(folder / "README.md", card(facts))
    names = sorted(path.name for path in folder.iterdir())
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    write_text(folder / MANIFEST, json.dumps(digests, indent=1) + "\n")
    return [*names, MANIFEST]
