"""Degradations that differ from image to image: chains of random steps, reproducible from seed and batch number."""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sr_lightning.degradations.padded_batch import PaddedBatch, check, luma, to_levels, uniform
from sr_lightning.errors import InputError

# Images processed at once; this does not change the result. Few on a CPU, where they are padded to the largest of them
# and should fit into the cache; many on a GPU, to keep it busy (64 HR images of 128 x 128 need 1 GB).
_CPU_CHUNK, _GPU_CHUNK = 8, 64
_WHOLE_IMAGE = threading.Lock()  # whole images are degraded one at a time: each needs many times its own size


class Step(Protocol):
    """Interface of a step of a chain.

    Attributes:
        num_draws: Number of random 64-bit values that the step uses per image.
    """

    @property
    def num_draws(self) -> int: ...

    def __call__(self, batch: PaddedBatch, random_bits: np.ndarray, lr_sizes: np.ndarray) -> PaddedBatch:
        """Apply the step.

        Args:
            batch: N images.
            random_bits: (N, num_draws) uint64.
            lr_sizes: (N, 2), height and width of the LR images at the end of the chain.
        """
        ...


@dataclass(frozen=True)
class EitherOrder:
    """Random step: two chains in random order, each order with probability 1/2. Both orders must give one size.

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

    def __call__(self, batch: PaddedBatch, random_bits: np.ndarray, lr_sizes: np.ndarray) -> PaddedBatch:
        order, bits_one, bits_other = np.split(random_bits, [1, 1 + _num_draws(self.one)], axis=1)
        one_first = uniform(order[:, 0]) < 0.5
        indices, parts = [], []
        for index, one_is_first in ((np.flatnonzero(one_first), True), (np.flatnonzero(~one_first), False)):
            if len(index) == 0:
                continue
            part = PaddedBatch(batch.images[torch.from_numpy(index).to(batch.images.device)], batch.sizes[index])
            chains = [(self.one, bits_one), (self.other, bits_other)]
            for steps, bits in chains if one_is_first else chains[::-1]:
                part = _apply_steps(steps, part, bits[index], lr_sizes[index])
            indices.append(index)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        original_order = np.argsort(np.concatenate(indices))
        images = torch.cat([part.images for part in parts])
        images = images[torch.from_numpy(original_order).to(batch.images.device)]
        return PaddedBatch(images, np.concatenate([part.sizes for part in parts])[original_order])


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
    def degrade(self, hr: Tensor, scale: int, random_bits: np.ndarray) -> Tensor:
        """Degrade a batch; each image depends only on itself and its random bits.

        Args:
            hr: (N, 3, H, W) float32 in [0, 1], H and W multiples of the scale.
            scale: Super-resolution factor.
            random_bits: (N, num_draws) from `draw`, or a selection of its rows.

        Returns:
            (N, 3, H/scale, W/scale) float32, multiples of 1/255, on the device of `hr`.

        Raises:
            InputError: The steps do not produce LR's size.
        """
        chunk = _CPU_CHUNK if hr.device.type == "cpu" else _GPU_CHUNK
        starts = range(0, len(hr), chunk)
        return torch.cat([self._degrade_chunk(hr[i : i + chunk], scale, random_bits[i : i + chunk]) for i in starts])

    def _degrade_chunk(self, hr: Tensor, scale: int, random_bits: np.ndarray) -> Tensor:
        hr_sizes = np.tile(hr.shape[-2:], (len(hr), 1))
        lr_sizes = hr_sizes // scale
        images, sizes = _apply_steps(self.steps, PaddedBatch(hr.double(), hr_sizes), random_bits, lr_sizes)
        if not np.array_equal(sizes, lr_sizes):
            raise InputError(
                f"degradation {self.name}: its steps lead to {sizes[0, 0]}x{sizes[0, 1]}, but LR has {lr_sizes[0, 0]}x"
                f"{lr_sizes[0, 1]}; make the last step that resizes a Resize(relative_to=lr) without up and down"
            )
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


def _apply_steps(
    steps: Mapping[str, Step], batch: PaddedBatch, random_bits: np.ndarray, lr_sizes: np.ndarray
) -> PaddedBatch:
    """Apply the steps in turn, each with its own columns of the random bits."""
    used = 0
    for step in steps.values():
        batch = step(batch, random_bits[:, used : used + step.num_draws], lr_sizes)
        used += step.num_draws
    return batch


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
