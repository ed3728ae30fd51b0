"""Means over the images of a data set as torchmetrics classes, exact on any number of processes.

Import these from here: `sr_lightning.metrics` does not re-export them, because importing torchmetrics takes seconds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from sr_lightning.errors import InputError
from sr_lightning.metrics.protocol import Protocol, all_left_out, differs_from_bicubic, score


class PerImage(Metric):
    """One value per image of a data set, and the mean over all images but those that are left out.

    The mean is exact in distributed runs: values of an image that a sampler repeats are averaged, and a process may
    have no images at all. The states stay float64 even if the module that holds the metric is cast.

    Only `update` and `compute` are supported, not `forward`: a batch has no score of its own.

    Args:
        num_images: Number of images in the data set; indices run from 0 to num_images - 1.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor
    left_out: Tensor

    def __init__(self, num_images: int):
        super().__init__()
        self.num_images = num_images
        for state in ("total", "count", "left_out"):
            self.add_state(state, torch.zeros(num_images, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, index: Tensor, counted: Tensor | None = None) -> None:
        """Add the values (N,) of the images with indices `index` (N,).

        Args:
            values: One per image.
            index: Of the images in the data set.
            counted: (N,) bool: False leaves an image out of the mean. None: all count.

        Raises:
            InputError: Shapes differ or are not (N,), or an index is out of range.
        """
        index = index.to(self.total.device)
        if values.ndim != 1 or values.shape != index.shape:
            raise InputError(
                f"values {tuple(values.shape)} and index {tuple(index.shape)} differ: give one value per image, (N,)"
            )
        if (outside := index[(index < 0) | (index >= self.num_images)]).numel():
            raise InputError(
                f"index {outside.tolist()} is out of range for a data set of {self.num_images} images "
                f"(0..{self.num_images - 1})"
            )
        counted = torch.ones_like(index, dtype=torch.bool) if counted is None else counted.to(index.device)
        self.total.index_add_(0, index[counted], values.detach().to(self.total)[counted])
        for state, included in ((self.count, counted), (self.left_out, ~counted)):
            state.index_add_(0, index, included.double())

    def compute(self) -> Tensor:
        """Return the mean over the images that count, () float64.

        Raises:
            InputError: No process has scored some of the images, or none of them counts.
        """
        values = self._values()
        counted = self.count > 0
        if not counted.any():
            raise InputError(all_left_out(self.num_images))
        return values[counted].mean()

    def per_image(self) -> Tensor:
        """Return the value of each image, (num_images,) float64; NaN if it is left out. Collective."""
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._values()

    def images_left_out(self) -> list[int]:
        """Return the indices of the images that are left out. Collective."""
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync):
            return (self.count == 0).nonzero().flatten().tolist()

    def _values(self) -> Tensor:
        if missing := int((self.count + self.left_out == 0).sum()):
            raise InputError(
                f"{missing} of {self.num_images} images were not scored, so there is no mean over the data set"
            )
        return self.total / self.count

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> Metric:
        """Move the states to the module's device, but keep their precision."""
        super()._apply(lambda state: state.to(fn(state.new_empty(0)).device), exclude_state)
        return self


class Score(MetricCollection):
    """Mean PSNR and SSIM of a data set: `update` per batch, then `compute`, or Lightning's `log_dict`.

    Images that bicubic reproduces are left out, see `differs_from_bicubic`; `reset` keeps which.

    Args:
        num_images: Number of images in the data set.
        scale: Super-resolution factor.
        protocol: Protocol of the scores.
        prefix: Prefix of the names, such as "val/".
    """

    def __init__(self, num_images: int, scale: int, protocol: Protocol, prefix: str | None = None):
        # Compute groups share states between metrics whose states are equal; PSNR and SSIM never share.
        super().__init__(
            {"psnr": PerImage(num_images), "ssim": PerImage(num_images)}, prefix=prefix, compute_groups=False
        )
        self.scale, self.protocol = scale, protocol
        self.counted: dict[int, bool] = {}  # by index

    def update(self, sr: Tensor, hr: Tensor, index: Tensor) -> None:
        """Score the images (N, C, H, W) with indices `index` (N,) in the data set, see `score`."""
        scores, numbers = score(sr, hr, self.scale, self.protocol), index.tolist()
        if not self.counted.keys() >= set(numbers):
            differs = differs_from_bicubic(hr, self.scale, self.protocol)
            self.counted |= zip(numbers, differs.tolist(), strict=False)  # `PerImage` compares the lengths
        counted = torch.tensor([self.counted.get(number, True) for number in numbers])
        for name, values in scores.items():
            self[name].update(values, index, counted)

    def per_image(self) -> dict[str, Tensor]:
        """Return {"psnr": (num_images,), "ssim": (num_images,)}, with the prefix. Collective."""
        # pyright does not know that the metrics are `PerImage`
        return {name: metric.per_image() for name, metric in self.items()}  # pyright: ignore[reportCallIssue]

    def images_left_out(self) -> list[int]:
        """Return the indices of the images that are left out. Collective."""
        metric, *_ = self.values()
        return metric.images_left_out()  # pyright: ignore[reportCallIssue]
