"""Degradations that differ from image to image: chains of random steps, reproducible from seed and batch number."""

import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sr_lightning.degradations.padded_batch import (
    PaddedBatch,
    as_int64,
    check,
    constant,
    luma,
    per_image,
    to_levels,
    uniform,
)
from sr_lightning.errors import InputError

# What is processed at once, which does not change the result: few images on a CPU, where they are padded to the largest
# of them and should fit into the cache; many pixels on a GPU, to keep it busy (64 HR images of 128 x 128 need 1 GB).
_CPU_IMAGES, _GPU_PIXELS = 8, 64 * 128**2
_WHOLE_IMAGE = threading.Lock()  # whole images are degraded one at a time: each needs many times its own size


class Step(Protocol):
    """Interface of a step of a chain.

    Attributes:
        num_draws: Number of random 64-bit values that the step uses per image.
    """

    @property
    def num_draws(self) -> int: ...

    def __call__(self, batch: PaddedBatch, random_bits: Tensor, lr_size: tuple[int, int]) -> PaddedBatch:
        """Apply the step: `batch._replace(images=...)`, with `sizes=...` if it changes them.

        Args:
            batch: N images.
            random_bits: (N, num_draws) int64, where `batch.sizes` are.
            lr_size: Height and width of the LR images at the end of the chain.
        """
        ...


@dataclass(frozen=True)
class EitherOrder:
    """Random step: two chains in random order, each order with probability 1/2.

    Attributes:
        one: Steps by name.
        other: Steps by name.

    Example:
        >>> from sr_lightning.degradations import JPEG, Noise
        >>> step = EitherOrder({"noise": Noise()}, {"jpeg": JPEG()})
        >>> step.num_draws  # one for the order, five for the noise, two for JPEG
        8
    """

    one: Mapping[str, Step]
    other: Mapping[str, Step]

    @property
    def num_draws(self) -> int:
        return 1 + _num_draws(self.one) + _num_draws(self.other)

    def __call__(self, batch: PaddedBatch, random_bits: Tensor, lr_size: tuple[int, int]) -> PaddedBatch:
        draws = [_num_draws(self.one), _num_draws(self.other)]
        order, *bits = random_bits.split([1, *draws], dim=1)
        chains = list(zip((self.one, self.other), bits, strict=True))
        one_first = uniform(order[:, 0]) < 0.5
        if batch.fixed_shapes:
            results = [_apply_chains(turned, batch, lr_size) for turned in (chains, chains[::-1])]
            images = torch.where(per_image(one_first, batch.images), *_of_one_shape(results))
            sizes = torch.where(one_first[:, None], *(result.sizes for result in results))
            return batch._replace(images=images, sizes=sizes)
        indices, parts = [], []
        for mask, turned in ((one_first, chains), (~one_first, chains[::-1])):
            (index,) = mask.nonzero(as_tuple=True)
            if len(index):
                part = PaddedBatch(batch.images[index.to(batch.images.device)], batch.sizes[index])
                parts.append(_apply_chains([(steps, bits[index]) for steps, bits in turned], part, lr_size))
                indices.append(index)
        if len(parts) == 1:
            return parts[0]
        original_order = torch.cat(indices).argsort()
        images = torch.cat(_of_one_shape(parts))[original_order.to(batch.images.device)]
        return PaddedBatch(images, torch.cat([part.sizes for part in parts])[original_order])


@dataclass(frozen=True)
class RandomDegradation:
    """A chain of random steps from HR to 8-bit LR.

    Training patches are degraded in batches on their device, with random bits that `draw` derives from the seed and the
    batch number. A whole image, passed as `degradation(hr, scale)`, is degraded with random bits derived from its
    pixels, so its LR image is the same in every run.

    Attributes:
        name: Letters, digits and underscores; part of the scoring protocol's name.
        steps: Steps by name. The last one that resizes must produce LR's size.

    Raises:
        InputError: The name or the steps are invalid.

    Example:
        >>> from sr_lightning.degradations import JPEG, Resize
        >>> degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "jpeg": JPEG()})
        >>> hr = torch.rand(2, 3, 16, 16)
        >>> degradation.degrade(hr, scale=4, random_bits=degradation.draw(seed=0, batch_number=0, batch_size=2)).shape
        torch.Size([2, 3, 4, 4])
        >>> degradation(torch.zeros(3, 16, 16, dtype=torch.uint8), scale=4).dtype
        torch.uint8
    """

    name: str
    steps: Mapping[str, Step]
    version: ClassVar[int] = 1  # raise it when a pixel of the result changes

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and self.name.replace("_", "").isalnum()
        check(
            "its name and steps",
            {
                f"name={self.name!r}: use letters, digits and underscores": not named,
                f"steps={self.steps!r}: give one or more": not self.steps,
            },
        )

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that LR depends on besides HR and the scale."""
        steps = [_plain(step) for step in self.steps.values()]
        return {"degradation": self.name, "version": self.version, "steps": steps}

    @cached_property
    def lr_source(self) -> str:
        """The protocol's `lr_source` for LR made by this: `made-second_order-5c0a3e`, ending in a hash of `key`."""
        return f"made-{self.name}-{hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:6]}"

    def draw(self, seed: int, batch_number: int, batch_size: int) -> np.ndarray:
        """Draw the random bits of a batch: (batch_size, num_draws) uint64.

        From Philox, with another counter than the bits that choose the patches.
        """
        generator = np.random.Philox(key=[seed, batch_number], counter=[0, 0, 0, 1])
        return generator.random_raw(batch_size * _num_draws(self.steps)).reshape(batch_size, -1)

    @torch.no_grad()
    def degrade(self, hr: Tensor, scale: int, random_bits: np.ndarray | Tensor) -> Tensor:
        """Degrade a batch; each image depends only on itself and its random bits.

        Args:
            hr: (N, 3, H, W) float32 in [0, 1], H and W multiples of the scale.
            scale: Super-resolution factor.
            random_bits: (N, num_draws) from `draw`, or a selection of its rows. As int64 on the device of `hr`: in
                fixed shapes, so that it can be recorded as a CUDA graph.

        Returns:
            (N, 3, H/scale, W/scale) float32, multiples of 1/255, on the device of `hr`. In fixed shapes, NaN where the
            steps produce a smaller image.

        Raises:
            InputError: The steps do not produce LR's size.
        """
        chunk = _CPU_IMAGES if hr.device.type == "cpu" else max(1, _GPU_PIXELS // hr[0, 0].numel())
        starts = range(0, len(hr), chunk)
        return torch.cat([self._degrade_chunk(hr[i : i + chunk], scale, random_bits[i : i + chunk]) for i in starts])

    def _degrade_chunk(self, hr: Tensor, scale: int, random_bits: np.ndarray | Tensor) -> Tensor:
        fixed_shapes = isinstance(random_bits, Tensor)
        bits = random_bits if fixed_shapes else as_int64(random_bits)
        height, width = hr.shape[-2:]
        sizes = torch.stack([torch.full((len(hr),), side, device=bits.device) for side in (height, width)], dim=1)
        lr_size = (height // scale, width // scale)
        images, sizes, _ = _apply_chains([(self.steps, bits)], PaddedBatch(hr.double(), sizes, fixed_shapes), lr_size)
        found = [images.shape[-2:]] if fixed_shapes else sizes.tolist()
        if wrong := [size for size in found if tuple(size) != lr_size]:
            raise InputError(
                f"degradation {self.name}: its steps lead to {wrong[0][0]}x{wrong[0][1]}, but LR has {lr_size[0]}x"
                f"{lr_size[1]}; make the last step that resizes a Resize(relative_to=lr) without up and down"
            )
        if fixed_shapes:
            is_filled = (sizes == constant(lr_size, sizes.device)).all(1)
            images = torch.where(per_image(is_filled, images), images, math.nan)
        return to_levels(images).float().mul_(1 / 255)

    def __call__(self, hr: Tensor, scale: int) -> Tensor:
        """Degrade a whole image, uint8: (1 or 3, H, W) -> (1 or 3, H/scale, W/scale). A gray image stays gray."""
        if hr.dtype != torch.uint8 or hr.ndim != 3:
            raise InputError(f"degradation {self.name} takes uint8 (3, H, W), got {hr.dtype} {tuple(hr.shape)}")
        colour = hr.expand(3, -1, -1).contiguous()
        digest = hashlib.sha256(colour.cpu().numpy().data).digest()
        generator = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"), counter=[0, 0, 0, 2])
        with _WHOLE_IMAGE:
            random_bits = generator.random_raw(_num_draws(self.steps))[None]
            lr = self.degrade(colour[None].float().mul_(1 / 255), scale, random_bits)[0]
        if (colour == colour[0]).all():
            lr = luma(lr)[None].expand(len(hr), -1, -1)
        return lr.mul(255).round_().to(torch.uint8)


def _num_draws(steps: Mapping[str, Step]) -> int:
    return sum(step.num_draws for step in steps.values())


def _apply_chains(
    chains: Sequence[tuple[Mapping[str, Step], Tensor]], batch: PaddedBatch, lr_size: tuple[int, int]
) -> PaddedBatch:
    """Apply chains, each with its random bits, in turn: every step with its own columns of the bits."""
    for steps, random_bits in chains:
        parts = random_bits.split([step.num_draws for step in steps.values()], dim=1)
        for step, bits in zip(steps.values(), parts, strict=True):
            batch = step(batch, bits, lr_size)
    return batch


def _of_one_shape(batches: Sequence[PaddedBatch]) -> list[Tensor]:
    """Pad the images of all batches to the largest height and width."""
    height, width = (max(batch.images.shape[axis] for batch in batches) for axis in (2, 3))
    return [pad(b.images, (0, width - b.images.shape[3], 0, height - b.images.shape[2])) for b in batches]


def _plain(value: Any) -> Any:
    """Convert settings of steps to lists, dicts and floats, with the class name of each step."""
    if is_dataclass(value):
        settings = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"step": type(value).__name__} | {name: _plain(setting) for name, setting in settings.items()}
    if isinstance(value, Mapping):
        if all(is_dataclass(item) for item in value.values()):  # the names of steps do not change the result
            return [_plain(item) for item in value.values()]
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value if isinstance(value, str) else float(value)
