"""Facts on the networks of a report: the run that trained each, and its validation curve."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sr_lightning.errors import InputError
from sr_lightning.inference import SelfEnsemble
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.metrics_csv import validation_psnr
from sr_lightning.runs.saved_config import read_config

if TYPE_CHECKING:
    from sr_lightning.evaluation.scoring import ScoredModel

log = logging.getLogger(__name__)

MAX_POINTS = 300  # of a curve
Point = TypeVar("Point", bound=tuple[Any, ...])


def subject(model: "ScoredModel") -> dict[str, Any]:
    """Describe a network: `model`, its name; `facts`, name -> text; `curve`, step and PSNR of each validation in dB."""
    network = model.network.network if isinstance(model.network, SelfEnsemble) else model.network
    facts = {"network": type(network).__name__, "scale": f"×{network.scale}"}
    facts["parameters"] = f"{sum(parameter.numel() for parameter in model.network.parameters()):,}"
    if model.step is not None:
        facts["steps"] = f"{model.step:,}"
    if model.source is None:
        return {"model": model.name, "facts": facts, "curve": []}
    facts["weights"] = model.source.name
    try:
        of_run, curve = _of_run(RunFolder(model.source.absolute().parent.parent))
    except (InputError, OSError, ValueError, AttributeError) as error:
        log.warning("%s: the report lacks the facts on its run: %s", model.source, error)
        of_run, curve = {}, []
    if model.step is not None and "max_steps" in of_run:
        facts["steps"] += f" of {of_run.pop('max_steps')}"
    return {"model": model.name, "facts": facts | of_run, "curve": curve}


def _of_run(run: RunFolder) -> tuple[dict[str, str], list[tuple[int, float]]]:
    """Return facts and curve of a run; none if the folder is not that of a run.

    Raises:
        InputError, OSError, ValueError, AttributeError: The run's files are damaged.
    """
    if not run.config.is_file():
        return {}, []
    config = read_config(run.config)
    choices = config.get("choices") or {}
    facts = {
        "max_steps": f"{config.max_steps:,}",
        "run": run.path.name,
        "trained on": choices.get("data"),
        "experiment": choices.get("experiment"),
        "seed": config.get("seed"),
    }
    curve = validation_psnr(run.metrics)
    return {key: str(value) for key, value in facts.items() if value is not None}, thinned(curve)


def thinned(curve: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Leave out points of a curve, each ending in its PSNR; about `most` remain, among them the best and the last."""
    every = -(-len(curve) // most) or 1
    best = max(range(len(curve)), key=lambda i: curve[i][-1], default=0)
    return [point for i, point in enumerate(curve) if i % every == 0 or i in (best, len(curve) - 1)]
