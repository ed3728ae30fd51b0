"""Scores in the summaries of the runs in Weights & Biases that they belong to."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.evaluation.score_table import NOT_SCORES
from sr_lightning.runs.wandb_record import has_record, not_uploaded, record_path, sync_command
from sr_lightning.utils.wandb_server import REPLY_TIMEOUT, connection_problem

log = logging.getLogger(__name__)


def check_connection() -> None:
    """Raise InputError if Weights & Biases cannot be reached, or has no key."""
    if problem := connection_problem(REPLY_TIMEOUT):
        raise InputError(f"wandb=true: {problem}")


def check_record(run_dir: Path) -> None:
    """Check that the scores of a run can be written.

    Raises:
        InputError: The run was not logged to W&B, or is not uploaded yet.
    """
    if not has_record(run_dir):
        raise InputError(
            f"{run_dir} has no run in Weights & Biases for wandb=true: it was trained without logger=wandb"
        )
    if not_uploaded(run_dir):
        raise InputError(
            f"{run_dir} is not in Weights & Biases yet, for wandb=true; upload it first: {sync_command(run_dir)}"
        )


def summary_scores(
    rows: Iterable[Mapping[str, Any]], config: Mapping[str, Any], cfg: DictConfig, checkpoint: str = "best"
) -> dict[str, float]:
    """Select the means of one network, {"test/Set5/psnr_y": 32.6, ...}, under the names that its run writes at its end.

    Scores of other conditions have other names: "last/…" of last.ckpt, "test+/…" of a self-ensemble; and with another
    protocol or degradation than the run's the protocol follows the name of the data set.

    Args:
        rows: With dataset, image, the scores and protocol.
        config: The run's config, in plain containers.
        cfg: The config of evaluate.py.
        checkpoint: The name of the file without its suffix.
    """
    same = all(config.get(key) == OmegaConf.to_container(cfg[key], resolve=True) for key in ("protocol", "degradation"))
    prefix = ("test" if checkpoint == "best" else checkpoint) + "+" * cfg.self_ensemble
    scores = {}
    for row in rows:
        if row["image"] == "mean":
            name = row["dataset"] if same else f"{row['dataset']} {row['protocol']}"
            scores |= {f"{prefix}/{name}/{key}": value for key, value in row.items() if key not in NOT_SCORES}
    return scores


def write_scores(run_dir: Path, logger: Mapping[str, Any] | None, scores: Mapping[str, float]) -> None:
    """Write scores into the summary of a run.

    Args:
        run_dir: Its directory, of a run that `check_record` accepts.
        logger: `logger` of its config.
        scores: By the names in the summary.

    Raises:
        InputError: W&B does not know the run, or refuses.
    """
    import wandb

    path = record_path(logger, run_dir)
    try:
        run = wandb.Api().run(path)
        run.summary.update(dict(scores))
    except Exception as error:  # whatever W&B raises: the scores are already written to the disk
        raise InputError(f"{run_dir}: its run in Weights & Biases, {path}: {' '.join(str(error).split())}") from error
    log.info("Weights & Biases: %d scores of %s written to %s", len(scores), run_dir, run.url)
