"""Scores: networks on sets of images, in one table, under one protocol."""

import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import is_checkpoint, load_network
from sr_lightning.checkpoints.interop import load_weights
from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.data.sources import Pair, benchmark_set
from sr_lightning.degradations.bicubic import crop_to_multiple, downscale
from sr_lightning.errors import InputError
from sr_lightning.evaluation.comparison import save_comparison
from sr_lightning.evaluation.report import Versions, save_versions, write_report
from sr_lightning.evaluation.score_table import first_mean, mean_row, report
from sr_lightning.images.files import read_image
from sr_lightning.inference import SelfEnsemble, inference_form, super_resolve, to_channels, with_chroma
from sr_lightning.metrics.extra import Measure, select_measures
from sr_lightning.metrics.protocol import Protocol, score
from sr_lightning.networks import Bicubic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image to score, float32 in [0, 1].

    Attributes:
        name: Of the image.
        lr: (1, 1 or 3, h, w).
        hr: (1, 1 or 3, h*scale, w*scale).
        protocol: As it was carried out: `lr_source` says where this LR came from.
    """

    name: str
    lr: Tensor
    hr: Tensor
    protocol: Protocol


def load_sample(pair: Pair, scale: int, protocol: Protocol, degradation: Any) -> Sample:
    """Read one image as the protocol wants it.

    Raises:
        InputError: Unreadable, or LR and HR do not fit together.
    """
    hr = torch.from_numpy(read_image(pair.hr))
    if protocol.lr_source == "luma":
        hr = hr.double() / 255
        luma = crop_to_multiple(quantize(rgb_to_y(hr)) if len(hr) == 3 else hr, scale)
        return Sample(pair.name, downscale(luma, scale)[None].float(), luma[None].float(), protocol)
    if pair.lr is None or protocol.lr_source != "files":
        hr = crop_to_multiple(hr, scale)
        lr, protocol = degradation(hr, scale), replace(protocol, lr_source=degradation.lr_source)
    else:
        lr = torch.from_numpy(read_image(pair.lr))
        height, width = (side * scale for side in lr.shape[-2:])
        if not (0 <= hr.shape[-2] - height < scale and 0 <= hr.shape[-1] - width < scale):
            raise InputError(
                f"{pair.lr} ({lr.shape[-2]}x{lr.shape[-1]}) is not {pair.hr} ({hr.shape[-2]}x{hr.shape[-1]}) "
                f"reduced by {scale}"
            )
        hr = hr[:, :height, :width]
    return Sample(pair.name, lr[None].float().mul_(1 / 255), hr[None].float().mul_(1 / 255), protocol)


@dataclass(frozen=True)
class Model:
    """What is scored.

    Attributes:
        name: In tables.
        network: Has `scale` and `num_channels`.
    """

    name: str
    network: nn.Module


@dataclass(frozen=True)
class Shown:
    """What is written to look at while images are scored.

    Attributes:
        run_dir: Where.
        num_pictures: How many images of a data set get a comparison picture, the first ones.
        num_reported: How many are in report.html, likewise.
        pictures: The comparisons, in run_dir/pictures.
        crops: The place that each comparison shows: dataset, scale and image; lr and hr, pictures of Pillow; and
            models, name -> picture. The place depends on bicubic and HR alone, so it is that of every run.
        versions: The images in all versions, in run_dir/report_files.
    """

    run_dir: Path
    num_pictures: int
    num_reported: int
    pictures: list[Path] = field(default_factory=list)
    crops: list[dict[str, Any]] = field(default_factory=list)
    versions: list[Versions] = field(default_factory=list)


@torch.inference_mode()
def score_images(
    models: Sequence[Model],
    dataset: str,
    samples: Iterable[Sample],
    measures: dict[str, Measure],
    shown: Shown,
    device: str,
) -> list[dict[str, Any]]:
    """Score models of one scale on the same images, one image in memory at a time.

    Args:
        models: Comparison pictures show the place where the first is furthest from HR.
        dataset: Its name.
        samples: The images.
        measures: What is measured beside PSNR and SSIM, by name.
        shown: The files written are appended.
        device: Where the networks are.

    Returns:
        One row per model and image, and one with image "mean" per model: model, scale, dataset, image, the scores
        (psnr_y and ssim_y, or with another channel), the measures and protocol.
    """
    rows: dict[str, list[dict[str, Any]]] = {model.name: [] for model in models}
    for i, sample in enumerate(samples):
        lr, hr = sample.lr.to(device), sample.hr.to(device)
        compared: dict[str, Tensor] = {}
        whole: dict[str, np.ndarray] = {}
        for model in models:
            scale, channels = model.network.scale, model.network.num_channels
            if sample.protocol.channel != "y":
                sr = super_resolve(model.network, lr)
            else:
                sr = model.network(to_channels(lr, channels))
            scores = score(sr, hr, scale, sample.protocol)
            row = {"model": model.name, "scale": scale, "dataset": dataset, "image": sample.name}
            row |= {f"{key}_{sample.protocol.channel}": value.item() for key, value in scores.items()}
            row |= {key: measure(sr, lr, hr, scale, sample.protocol).item() for key, measure in measures.items()}
            rows[model.name].append(row | {"protocol": sample.protocol.name})
            if i < max(shown.num_pictures, shown.num_reported):
                colour = with_chroma(sr, lr, scale) if sr.shape[1] < lr.shape[1] else sr
                if i < shown.num_pictures:
                    compared[f"{model.name} {scores['psnr'].item():.2f} dB"] = colour[0]
                if i < shown.num_reported:
                    whole[model.name] = to_levels(colour)
        if compared:
            shown.pictures.append(shown.run_dir / "pictures" / f"{dataset}_x{scale}_{sample.name}.png")
            low, *versions, high = save_comparison(shown.pictures[-1], lr[0], compared, hr[0])
            crop = {"dataset": dataset, "scale": scale, "image": sample.name, "lr": low, "hr": high}
            shown.crops.append(crop | {"models": dict(zip(rows, versions, strict=True))})
        if whole:
            folder, border = shown.run_dir / "report_files", sample.protocol.border_for(scale)
            named = (folder, dataset, sample.name, scale)
            shown.versions.append(save_versions(*named, to_levels(lr), whole, to_levels(hr), border))
    return [row for part in rows.values() for row in [*part, mean_row(part)]]


def to_levels(image: Tensor) -> np.ndarray:
    """(1, C, H, W) in [0, 1] -> uint8 (C, H, W); values outside are clamped."""
    return quantize(image[0].float()).mul_(255).round_().to(torch.uint8).cpu().numpy()


def score_sets(
    models: Sequence[Model], sets: Mapping[str, Sequence[Pair]], cfg: DictConfig, baseline: bool = True
) -> tuple[list[dict[str, Any]], Shown]:
    """Score bicubic and models of one scale on sets of images.

    Args:
        models: At least one, all of one scale.
        sets: Name -> images.
        cfg: Gives protocol, degradation (for images without LR), run_dir, num_pictures, report, measures.
        baseline: Whether bicubic is to be scored.

    Returns:
        The rows of `score_images`, bicubic's first in each set, and the pictures written.
    """
    names = ["bicubic", *(m.name for m in models if not isinstance(m.network, Bicubic))]
    if len(set(names)) < len(names):
        raise InputError(f"several models have one name, {', '.join(names)}: each needs its own (and not bicubic)")
    scale = models[0].network.scale
    protocol, degradation = instantiate(cfg.protocol), instantiate(cfg.degradation)
    others = [Model(m.name, inference_form(m.network)) for m in models if not isinstance(m.network, Bicubic)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = [Model("bicubic", Bicubic(scale=scale))] if baseline else []
    models = [Model(m.name, m.network.to(device)) for m in (*first, *others)]
    rows: list[dict[str, Any]] = []
    # runs of before these two have no such keys
    shown, measures = (
        Shown(Path(cfg.run_dir), cfg.num_pictures, cfg.get("report", 0)),
        select_measures(cfg.get("measures")),
    )
    for name, pairs in sets.items():
        samples = (load_sample(pair, scale, protocol, degradation) for pair in pairs)
        rows += score_images(models, name, samples, measures, shown, device)
    return rows, shown


def report_page(
    rows: Sequence[dict[str, Any]],
    versions: Sequence[Versions],
    cfg: DictConfig,
    leaderboard: Sequence[dict[str, Any]] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write run_dir/report.html, if there is an image to show; see `write_report`."""
    if versions:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        made = {
            "in words": instantiate(cfg.protocol).description,
            "computed on": f"{device}, PyTorch {torch.__version__}",
        }
        facts = {**(facts or {}), **made}
        command = shlex.join(["python", *sys.argv])
        path = Path(cfg.run_dir, "report.html")
        write_report(path, rows, versions, leaderboard=leaderboard, facts=facts, commands=[command])


def sets_of_run(cfg: DictConfig, held_out: Sequence[Pair]) -> dict[str, Sequence[Pair]]:
    """The sets a run is scored on: its validation images, and those benchmarks that are under data_root.

    Raises:
        InputError: A benchmark's HR and LR files do not belong together.
    """
    sets = {"held-out": held_out}
    for name in cfg.benchmarks:
        folder = Path(cfg.data_root).expanduser() / "benchmark" / name / "HR"
        if folder.is_dir():
            sets[name] = benchmark_set(cfg.data_root, name, cfg.scale)
        else:
            log.info("%s will not be scored: there is no %s", name, folder)
    return sets


def score_run(
    cfg: DictConfig, network: nn.Module, sets: dict[str, Sequence[Pair]]
) -> tuple[float, list[dict[str, Any]], Shown]:
    """Score what a run has trained on `sets_of_run`.

    Returns:
        Mean PSNR on the validation images in dB, all rows, all pictures.
    """
    rows, shown = score_sets([Model(cfg.name, network)], sets, cfg)
    report(rows, shown.pictures, Path(cfg.run_dir), images_of="held-out")
    report_page(rows, shown.versions, cfg)
    return first_mean(rows, cfg.name), rows, shown


def evaluate(cfg: DictConfig) -> float:
    """Score checkpoints, or a model without parameters, on benchmarks.

    Returns:
        Mean PSNR of the first model on the first benchmark, in dB.

    Raises:
        InputError: Nothing to score, a checkpoint or benchmark that is not there, or a scale that does not fit.
    """
    check_report(cfg)
    models = requested_models(cfg)
    rows, pictures, versions = [], [], []
    for scale in dict.fromkeys(model.network.scale for model in models):
        of_scale = [model for model in models if model.network.scale == scale]
        sets = {name: benchmark_set(cfg.data_root, name, scale) for name in cfg.benchmarks}
        new_rows, shown = score_sets(of_scale, sets, cfg)
        rows += new_rows
        pictures += shown.pictures
        versions += shown.versions
    report(rows, pictures, Path(cfg.run_dir))
    report_page(rows, versions, cfg)
    return first_mean(rows, models[0].name)


def check_report(cfg: DictConfig) -> None:
    """Raise InputError unless `report` is a number of images."""
    if isinstance(cfg.report, bool) or not isinstance(cfg.report, int) or cfg.report < 0:
        raise InputError(f"report={cfg.report}: how many images of each data set report.html shows, 0 for no report")


def requested_models(cfg: DictConfig) -> list[Model]:
    """The networks of `ckpt=`, or the one of `model=` if it has nothing to train; their self-ensembles if asked for.

    Files of other projects do not say which network they hold: `model=` says it beside them.
    """
    if cfg.ckpt is None:
        models = [model_without_weights(cfg)]
    else:
        paths = [Path(path) for path in ([cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt)]
        models = published_models(cfg, paths) if "model" in cfg else trained_models(cfg, paths)
    return [Model(f"{m.name}+", SelfEnsemble(m.network)) for m in models] if cfg.self_ensemble else models


def model_without_weights(cfg: DictConfig) -> Model:
    """The network of `model=`, if it is bicubic."""
    if "model" not in cfg or cfg.scale is None:
        raise InputError("say what to score: ckpt=FILE (or a list), or model=bicubic scale=x3")
    network = instantiate(cfg.model.network).eval()
    if next(network.parameters(), None) is not None:
        raise InputError(f"model={cfg.name} has weights to load: give its checkpoint, ckpt=FILE")
    return Model(cfg.name, network)


def trained_models(cfg: DictConfig, paths: Sequence[Path]) -> list[Model]:
    """The networks of this project's checkpoints, each as it says itself."""
    trained = [load_network(path) for path in paths]
    if wrong := [
        f"{p} is x{t.network.scale}"
        for p, t in zip(paths, trained, strict=True)
        if cfg.scale not in (None, t.network.scale)
    ]:
        raise InputError(f"scale=x{cfg.scale} was asked, but {', '.join(wrong)}; leave scale out")
    named = [(t.name, path.parent.parent.name, path.stem) for t, path in zip(trained, paths, strict=True)]
    for parts in ((0,), (0, 1), (0, 2), (0, 1, 2)):  # the run's folder or the file's name tell them apart
        names = [" ".join(one[part] for part in parts) for one in named]
        if len(set(names)) == len(names):
            break
    else:
        names = [str(path) for path in paths]
    return [Model(name, t.network) for name, t in zip(names, trained, strict=True)]


def published_models(cfg: DictConfig, paths: Sequence[Path]) -> list[Model]:
    """The network of `model=` with the weights of other projects' files."""
    if own := [str(path) for path in paths if is_checkpoint(path)]:
        raise InputError(f"model={cfg.name}: {', '.join(own)} says which network it holds; leave model out")
    if cfg.scale is None:
        raise InputError(f"model={cfg.name} beside ckpt: say the scale as well, such as scale=x2")
    models = []
    for path in paths:
        network = instantiate(cfg.model.network).eval()
        load_weights(network, path)
        models.append(Model(cfg.name if len(paths) == 1 else f"{cfg.name} {path.stem}", network))
    return models
