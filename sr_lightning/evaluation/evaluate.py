"""The task of evaluate.py: score checkpoints, or a model without weights, on benchmarks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from sr_lightning.checkpoints.checkpoint import Allow, is_checkpoint, read_checkpoint
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.checkpoints.interop import load_weights
from sr_lightning.data.public_sets import hint
from sr_lightning.data.sources import Pair, benchmark_path, benchmark_set
from sr_lightning.errors import InputError
from sr_lightning.evaluation.checks import NOTHING_TO_SCORE, paths_of
from sr_lightning.evaluation.images import EvaluationImages
from sr_lightning.evaluation.report import write_evaluation_report
from sr_lightning.evaluation.score_table import first_mean, report_scores
from sr_lightning.evaluation.scoring import Row, ScoredModel, Scorer
from sr_lightning.evaluation.subjects import subject
from sr_lightning.evaluation.wandb_scores import summary_scores, write_scores
from sr_lightning.inference import SelfEnsemble
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.runs.targets import allowed

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float:
    """Score checkpoints, or a model without parameters, on benchmarks.

    Returns:
        Mean PSNR of the first model on the first benchmark, in dB.

    Raises:
        InputError: Nothing to score, a missing checkpoint or benchmark, or the wrong scale.
    """
    scorer = Scorer.from_config(cfg)  # first: weights of measures may be missing
    network = cfg.model.network if "model" in cfg else None
    paths = [find_checkpoint(path) for path in paths_of(cfg.ckpt)]
    models = requested_models(paths, network, cfg.name, cfg.scale, cfg.self_ensemble, allowed(cfg))
    rows, images = score_models(models, cfg, scorer)
    report_scores(rows, images.comparisons, Path(cfg.run_dir))
    report = (Path(cfg.run_dir), rows, images.versions, scorer.protocol)
    write_evaluation_report(*report, facts=scorer.facts, subjects=[subject(model) for model in models])
    if cfg.wandb:
        for model in models:
            write_model_scores([row for row in rows if row["model"] == model.name], model, cfg)
    return first_mean(rows, models[0].name)


def score_models(models: Sequence[ScoredModel], cfg: DictConfig, scorer: Scorer) -> tuple[list[Row], EvaluationImages]:
    """Score networks of any scales on the benchmarks of a config, and write pictures below its run_dir.

    Raises:
        InputError: As of `Scorer.score_sets`, or a benchmark is missing.
    """
    images = EvaluationImages(cfg.run_dir, cfg.num_comparisons, cfg.report_images)
    rows: list[Row] = []
    for scale in dict.fromkeys(model.network.scale for model in models):
        of_scale = [model for model in models if model.network.scale == scale]
        sets = {name: benchmark_set(cfg.data_root, name, scale) for name in cfg.benchmarks}
        rows += scorer.score_sets(of_scale, sets, images)
    return rows, images


def write_model_scores(rows: Sequence[Row], model: ScoredModel, cfg: DictConfig) -> None:
    """Write the mean scores of a checkpoint into the summary of its run in Weights & Biases."""
    config = read_checkpoint(model.source)["hyper_parameters"]
    scores = summary_scores(rows, config, cfg, model.source.stem)
    write_scores(model.source.parents[1], config.get("logger"), scores)


def sets_of_run(
    held_out: Sequence[Pair], benchmarks: Sequence[str], data_root: str | Path, scale: int
) -> dict[str, Sequence[Pair]]:
    """Return the sets that a run is scored on: its validation images, and the benchmarks that exist in data_root.

    Raises:
        InputError: HR and LR files of a benchmark do not belong together.
    """
    sets = {"held-out": held_out}
    for name in benchmarks:
        folder = benchmark_path(data_root, name) / "HR"
        if folder.is_dir():
            sets[name] = benchmark_set(data_root, name, scale)
        else:
            log.info("%s is not scored: %s does not exist%s", name, folder, hint(folder))
    return sets


def score_run(
    scorer: Scorer, model: ScoredModel, sets: Mapping[str, Sequence[Pair]], images: EvaluationImages
) -> tuple[float, list[Row]]:
    """Score the network of a run on the sets of `sets_of_run`; write its table, pictures and report.

    Returns:
        Mean PSNR on the validation images in dB, and all rows.
    """
    rows = scorer.score_sets([model], sets, images)
    report_scores(rows, images.comparisons, images.run_dir, images_of="held-out")
    report = (images.run_dir, rows, images.versions, scorer.protocol)
    write_evaluation_report(*report, facts=scorer.facts, subjects=[subject(model)])
    return first_mean(rows, model.name), rows


def requested_models(
    paths: Sequence[Path],
    network: Mapping[str, Any] | None = None,
    name: str | None = None,
    scale: int | None = None,
    self_ensemble: bool = False,
    allow: Allow = None,
) -> list[ScoredModel]:
    """Build or load the networks to score.

    Args:
        paths: Checkpoints of this project, which describe their networks; or files of other projects.
        network: `model.network` of the config, for files of other projects or, without paths, a model without weights.
        name: Name of that network in tables.
        scale: The requested factor; None: that of the checkpoints.
        self_ensemble: Score self-ensembles of the networks.
        allow: Packages besides this project, or classes, that a checkpoint may name as its network.
    """
    if not paths:
        models = [_model_without_weights(network, name, scale)]
    elif network is None:
        models = _trained_models(paths, scale, allow)
    else:
        models = _published_models(paths, network, name, scale)
    if self_ensemble:
        models = [replace(model, name=f"{model.name}+", network=SelfEnsemble(model.network)) for model in models]
    return models


def _model_without_weights(network: Mapping[str, Any] | None, name: str, scale: int | None) -> ScoredModel:
    if network is None or scale is None:
        raise InputError(NOTHING_TO_SCORE)
    built: nn.Module = instantiate(network).eval()
    if next(built.parameters(), None) is not None:
        raise InputError(f"model={name} has weights to load: give its checkpoint, ckpt=FILE")
    return ScoredModel(name, built)


def _trained_models(paths: Sequence[Path], scale: int | None, allow: Allow) -> list[ScoredModel]:
    """Load the networks of files that describe or show them."""
    trained = [load_any(path, allow, {} if scale is None else {"scale": scale}) for path in paths]
    named = [(t.name, path.parent.parent.name, path.stem) for t, path in zip(trained, paths, strict=True)]
    for parts in ((0,), (0, 1), (0, 2), (0, 1, 2)):  # the name of the run's folder or of the file makes names unique
        names = [" ".join(one[part] for part in parts) for one in named]
        if len(set(names)) == len(names):
            break
    else:
        names = [str(path) for path in paths]
    return [ScoredModel(name, t.network, path, t.step) for name, t, path in zip(names, trained, paths, strict=True)]


def _published_models(
    paths: Sequence[Path], network: Mapping[str, Any], name: str, scale: int | None
) -> list[ScoredModel]:
    """Build the network of `model=`, with the weights of each file of another project."""
    if own := [str(path) for path in paths if is_checkpoint(path)]:
        raise InputError(
            f"leave model={name} out: a checkpoint of this project describes its network: {', '.join(own)}"
        )
    if scale is None:
        raise InputError(f"model={name} with ckpt needs the scale as well: add scale=x2, for example")
    models = []
    for path in paths:
        built: nn.Module = instantiate(network).eval()
        load_weights(built, path)
        models.append(ScoredModel(name if len(paths) == 1 else f"{name} {path.stem}", built, path))
    return models
