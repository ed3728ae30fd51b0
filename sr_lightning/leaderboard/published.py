"""Published scores, and the systems that runs are compared with: published.csv and systems.yaml."""

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sr_lightning.runs.fingerprint import flatten

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        system: As in published.csv.
        psnr: In dB.
        differs: Settings in which the run differs from that system, "num_features [64, 64, 32] (published: [64, 32])".
    """

    system: str
    psnr: float
    differs: tuple[str, ...]


def published_score(config: Mapping[str, Any], scale: int, benchmark: str, protocol: str) -> Published | None:
    """Find the published score to compare a run with; None if there is none.

    Args:
        config: The run's config, in plain containers.
        scale: The factor.
        benchmark: Such as "Set5".
        protocol: Name of the run's protocol; scores with other pixels, border, rounding or SSIM are not compared.
    """
    own = flatten(config)
    for entry in _systems():
        wanted = flatten(entry["settings"])
        by_name = own.get("choices.experiment") in entry.get("recipes", ())
        if by_name or all(own.get(key) == value for key, value in wanted.items()):
            psnr = _scores(entry["system"], scale, benchmark, protocol)
            if psnr is not None:
                wanted |= flatten(entry.get("beside", {}))
                differs = [
                    f"{_short(key)} {own.get(key)} (published: {value})"
                    for key, value in wanted.items()
                    if own.get(key) != value
                ]
                return Published(entry["system"], psnr, tuple(differs))
    return None


def _short(key: str) -> str:
    return key.removeprefix("choices.").removeprefix("model.").removeprefix("network.")


def _scores(system: str, scale: int, benchmark: str, protocol: str) -> float | None:
    for row in _table():
        same = (row["system"], row["scale"], row["dataset"]) == (system, str(scale), benchmark)
        if same and protocol in [f"{row['protocol']}_lr-{source}" for source in ("files", "made", "luma")]:
            return float(row["psnr"])
    return None


@functools.cache
def _table() -> list[dict[str, str]]:
    with (FOLDER / "published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def _systems() -> list[dict[str, Any]]:
    return OmegaConf.to_container(OmegaConf.load(FOLDER / "systems.yaml"))
