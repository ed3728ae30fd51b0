"""Scoring of networks on sets of images under one protocol, one image in memory at a time."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.data.sources import Pair
from sr_lightning.data.store import crop_lr
from sr_lightning.degradations.bicubic import crop_to_multiple, downscale
from sr_lightning.errors import InputError
from sr_lightning.evaluation.images import EvaluationImages
from sr_lightning.evaluation.score_table import mean_row
from sr_lightning.images.files import read_image
from sr_lightning.inference import fuse_for_inference, super_resolve, to_channels
from sr_lightning.metrics.extra import Measure, SetMeasure, select_measures
from sr_lightning.metrics.perceptual import FID_MIN_IMAGES
from sr_lightning.metrics.protocol import Protocol, differs_from_bicubic, report_left_out, score
from sr_lightning.networks import Bicubic
from sr_lightning.utils.devices import best_device
from sr_lightning.utils.exact_float32 import exact_float32
from sr_lightning.utils.progress import tracked

Row = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One image to score, float32 in [0, 1].

    Attributes:
        name: As in tables.
        lr: (1, 1 or 3, h, w).
        hr: (1, 1 or 3, h*scale, w*scale).
        protocol: As applied to this image: `lr_source` records the origin of this LR.
    """

    name: str
    lr: Tensor
    hr: Tensor
    protocol: Protocol


@dataclass(frozen=True)
class ScoredModel:
    """A network and its name in tables.

    Attributes:
        name: Unique among the models scored together.
        network: Has `scale` and `num_channels`.
        source: The file of its weights, named in messages.
        step: Number of training batches; None: unknown.
    """

    name: str
    network: nn.Module
    source: Path | None = None
    step: int | None = None


class NotFiniteError(InputError):
    """Weights or outputs of a network are infinite or NaN.

    Attributes:
        model: Its name.
    """

    def __init__(self, message: str, model: str) -> None:
        super().__init__(message)
        self.model = model


def check_finite(model: ScoredModel, values: Mapping[str, Tensor]) -> None:
    """Check a network's weights or outputs, by name.

    Raises:
        NotFiniteError: Some are infinite or NaN.
    """
    if wrong := [name for name, value in values.items() if not value.isfinite().all()]:
        others = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise NotFiniteError(
            f"{model.source or model.name}: NaN or infinite values in {wrong[0]}{others}: its training diverged. "
            "Use an earlier checkpoint, or train with a smaller learning rate",
            model.name,
        )


def output_to_score(network: nn.Module, lr: Tensor, protocol: Protocol) -> Tensor:
    """Apply a network to lr (N, 3, h, w) in the channels that the protocol scores: its own for luma, else RGB."""
    if protocol.channel != "y":
        return super_resolve(network, lr)
    return network(to_channels(lr, network.num_channels))


def load_sample(pair: Pair, scale: int, protocol: Protocol, degradation: Any) -> Sample:
    """Read one image as the protocol requires.

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
        if any(abs(high - scale * low) >= scale for high, low in zip(hr.shape[1:], lr.shape[1:], strict=True)):
            raise InputError(
                f"{pair.lr} ({lr.shape[-2]}x{lr.shape[-1]}) is not {pair.hr} ({hr.shape[-2]}x{hr.shape[-1]}) "
                f"reduced by {scale}: give LR files made at x{scale} from these HR files"
            )
        lr, hr = crop_lr(lr, hr, scale, pair), crop_to_multiple(hr, scale)
    return Sample(pair.name, lr[None].float().mul_(1 / 255), hr[None].float().mul_(1 / 255), protocol)


@dataclass(frozen=True)
class Scorer:
    """Scorer of networks under one protocol.

    Attributes:
        protocol: Of all scores.
        degradation: Makes LR of images without an LR file.
        measures: Metrics beside PSNR and SSIM, by name.
        left_out: Names of the images that are not scored, by data set and scale, such as "Set5 x2".
    """

    protocol: Protocol
    degradation: Any
    measures: Mapping[str, Measure | SetMeasure]
    left_out: dict[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Scorer":
        """Build the scorer of a config of train.py or evaluate.py."""
        return cls(instantiate(cfg.protocol), instantiate(cfg.degradation), select_measures(cfg.measures))

    @property
    def facts(self) -> dict[str, str]:
        """Facts for a report: the images that are not scored."""
        sets = [f"{name}: {', '.join(images)}" for name, images in self.left_out.items() if images]
        return {"not scored, since bicubic reproduces them": "; ".join(sets)} if sets else {}

    @property
    def set_measures(self) -> dict[str, SetMeasure]:
        """Measures that a set has, and an image not."""
        return {name: measure for name, measure in self.measures.items() if isinstance(measure, type)}

    def check_sets(self, sets: Mapping[str, Sequence[Pair]]) -> None:
        """Check that sets are large enough for the measures.

        Raises:
            InputError: Names those that are not.
        """
        small = [f"{name} has {len(pairs)}" for name, pairs in sets.items() if len(pairs) < FID_MIN_IMAGES]
        if small and self.set_measures:
            raise InputError(
                f"{', '.join(self.set_measures)} needs at least {FID_MIN_IMAGES} images, {', '.join(small)}: leave it "
                "out of measures, or score other sets"
            )

    @exact_float32()
    def score_sets(
        self,
        models: Sequence[ScoredModel],
        sets: Mapping[str, Sequence[Pair]],
        images: EvaluationImages | None = None,
        baseline: bool = True,
    ) -> list[Row]:
        """Score bicubic and models of one scale on sets of images, except those that bicubic reproduces.

        Args:
            models: At least one, all of one scale.
            sets: Name -> images.
            images: Writes pictures of the first images; None: no pictures.
            baseline: Score bicubic as well.

        Returns:
            For each set, bicubic first: one row per model and image, and one with image "mean" per model. A row has
            model, scale, dataset, image, the scores (psnr_y and ssim_y, or of another channel), the measures and
            protocol. Measures of a set are in its "mean", and None in the others.

        Raises:
            InputError: Two models share a name, a network is not finite, or images cannot be scored.
        """
        self.check_sets(sets)
        scale = models[0].network.scale
        names = ["bicubic", *(model.name for model in models if not isinstance(model.network, Bicubic))]
        if len(set(names)) < len(names):
            raise InputError(f"models share a name, {', '.join(names)}: give each its own, other than bicubic")
        for model in models:
            check_finite(model, model.network.state_dict())
        device = best_device()
        networks = {"bicubic": Bicubic(scale=scale)} if baseline else {}
        networks |= {m.name: fuse_for_inference(m.network) for m in models if not isinstance(m.network, Bicubic)}
        source = {model.name: model.source for model in models}
        scored = [ScoredModel(name, network.to(device), source.get(name)) for name, network in networks.items()]
        rows: list[Row] = []
        for dataset, pairs in sets.items():
            left_out: list[str] = []
            self.left_out[f"{dataset} x{scale}"] = left_out
            samples = self.samples_to_score(pairs, scale, left_out)
            of_model: dict[str, list[Row]] = {model.name: [] for model in scored}
            of_set = {name: {key: measure() for key, measure in self.set_measures.items()} for name in of_model}
            scores = self.score_samples(scored, samples, device)
            for sample, outputs, new_rows in tracked(scores, len(pairs), f"scoring {dataset} x{scale}"):
                for name, row in new_rows.items():
                    of_model[name].append({"model": name, "scale": scale, "dataset": dataset} | row)
                    for measure in of_set[name].values():
                        measure.update(outputs[name], sample.lr, sample.hr, scale, sample.protocol)
                if images is not None:
                    images.add(dataset, scale, sample, outputs, new_rows)
            report_left_out(dataset, tuple(left_out), len(pairs))
            for name, part in of_model.items():
                rows += [*part, mean_row(part) | {key: measure.compute() for key, measure in of_set[name].items()}]
        return rows

    def samples_to_score(self, pairs: Sequence[Pair], scale: int, left_out: list[str]) -> Iterator[Sample]:
        """Yield the images that bicubic does not reproduce; append the names of the others to `left_out`."""
        for pair in pairs:
            sample = load_sample(pair, scale, self.protocol, self.degradation)
            if differs_from_bicubic(sample.hr, scale, sample.protocol).item():
                yield sample
            else:
                left_out.append(sample.name)

    @torch.inference_mode()
    def score_samples(
        self, models: Sequence[ScoredModel], samples: Iterable[Sample], device: torch.device
    ) -> Iterator[tuple[Sample, dict[str, Tensor], dict[str, Row]]]:
        """Score models on images, one at a time.

        Args:
            models: On the device.
            samples: The images, on the CPU.
            device: Where to compute.

        Yields:
            The image on the device; model -> output, in the channels that are scored; model -> row of scores.

        Raises:
            NotFiniteError: An output is infinite or NaN.
            InputError: An image is too small, or a measure is not defined on it.
        """
        for sample in samples:
            sample = replace(sample, lr=sample.lr.to(device), hr=sample.hr.to(device))
            protocol = sample.protocol
            outputs, rows = {}, {}
            for model in models:
                scale = model.network.scale
                sr = output_to_score(model.network, sample.lr, protocol)
                check_finite(model, {f"the output for {sample.name}": sr})
                row: Row = {"image": sample.name}
                scores = score(sr, sample.hr, scale, protocol)
                row |= {f"{key}_{protocol.channel}": value.item() for key, value in scores.items()}
                for key, measure in self.measures.items():
                    if isinstance(measure, type):
                        row[key] = None
                        continue
                    row[key] = value = measure(sr, sample.lr, sample.hr, scale, protocol).item()
                    if not math.isfinite(value):
                        raise InputError(f"{key} of {model.name} on {sample.name} is {value}: leave it out of measures")
                outputs[model.name], rows[model.name] = sr, row | {"protocol": protocol.name}
            yield sample, outputs, rows
