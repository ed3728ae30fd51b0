"""Degradations that differ from image to image: chains of random steps, the same for the same seed and batch number."""

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

from sr_lightning.degradations.padded_batch import Canvas, check, luma, to_levels, uniform
from sr_lightning.errors import InputError

# Images computed together, which changes nothing in them. On a CPU few, in planes that are hardly larger than each
# needs; on a GPU enough to keep it busy, in 1 GB for HR of 128 x 128.
_FEW, _MANY = 4, 64
_WHOLE_IMAGE = threading.Lock()  # one at a time, as each takes many times its own size


class Step(Protocol):
    """A step of a chain.

    Attributes:
        words: Random 64-bit words it takes for each image.
    """

    words: int

    def __call__(self, canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
        """Images, (N, words) uint64 and the sizes (N, 2) that LR is to have -> images."""
        ...


@dataclass(frozen=True)
class EitherOrder:
    """Two chains, either of them first with equal probability. Both orders must lead to one size.

    Attributes:
        one: Steps by name.
        other: Likewise.
    """

    one: Mapping[str, Step]
    other: Mapping[str, Step]

    @property
    def words(self) -> int:
        return 1 + _words_of(self.one) + _words_of(self.other)

    def __call__(self, canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
        order, for_one, for_other = np.split(words, [1, 1 + _words_of(self.one)], axis=1)
        one_first = uniform(order[:, 0]) < 0.5
        indices, parts = [], []
        for index, one_is_first in ((np.flatnonzero(one_first), True), (np.flatnonzero(~one_first), False)):
            if len(index) == 0:
                continue
            part = Canvas(canvas.images[torch.from_numpy(index).to(canvas.images.device)], canvas.sizes[index])
            chains = [(self.one, for_one), (self.other, for_other)]
            for steps, its_words in chains if one_is_first else chains[::-1]:
                part = _through(steps, part, its_words[index], lr_sizes[index])
            indices.append(index)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        place = np.argsort(np.concatenate(indices))
        images = torch.cat([part.images for part in parts])[torch.from_numpy(place).to(canvas.images.device)]
        return Canvas(images, np.concatenate([part.sizes for part in parts])[place])


@dataclass(frozen=True)
class RandomDegradation:
    """A chain of random steps from HR to 8-bit LR.

    Training patches are degraded in batches on their device, by words that `draw` makes of the seed and the batch
    number. A whole image, called as `degradation(hr, scale)`, is degraded by words made of its own pixels: its LR is
    the same in every run.

    Attributes:
        name: In the name of the scoring protocol.
        steps: By name; the last that resizes must lead to LR's size.
    """

    name: str
    steps: Mapping[str, Step]
    version: ClassVar[int] = 1  # raise it when a pixel of the result changes

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and self.name.replace("_", "").isalnum()
        check(
            "its name and steps",
            {
                f"name={self.name!r}: letters, digits and underscores": not named,
                f"steps={self.steps!r}: one or more": not self.steps,
            },
        )

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that LR depends on, besides HR and the scale."""
        steps = [_plain(step) for step in self.steps.values()]
        return {"degradation": self.name, "version": self.version, "steps": steps}

    @cached_property
    def lr_source(self) -> str:
        """Of LR that this made, for the protocol: `made-second_order-5c0a3e`; the end stands for all settings."""
        return f"made-{self.name}-{hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:6]}"

    def draw(self, seed: int, batch_number: int, batch_size: int) -> np.ndarray:
        """The random words of a batch, (batch_size, words) uint64: Philox bits, apart from those of the patches."""
        bits = np.random.Philox(key=[seed, batch_number], counter=[0, 0, 0, 1])
        return bits.random_raw(batch_size * _words_of(self.steps)).reshape(batch_size, -1)

    @torch.no_grad()
    def degrade(self, hr: Tensor, scale: int, words: np.ndarray) -> Tensor:
        """LR of a batch, by the words of each of its images.

        Args:
            hr: (N, 3, H, W) float32 in [0, 1], H and W multiples of the scale.
            scale: The factor.
            words: (N, words) of `draw`, or some of its rows.

        Returns:
            (N, 3, H/scale, W/scale) float32, multiples of 1/255, on the device of `hr`.

        Raises:
            InputError: The steps do not lead to the size of LR.
        """
        at_once = _FEW if hr.device.type == "cpu" else _MANY
        parts = [self._part(hr[i : i + at_once], scale, words[i : i + at_once]) for i in range(0, len(hr), at_once)]
        return torch.cat(parts)

    def _part(self, hr: Tensor, scale: int, words: np.ndarray) -> Tensor:
        hr_sizes = np.tile(hr.shape[-2:], (len(hr), 1))
        lr_sizes = hr_sizes // scale
        images, sizes = _through(self.steps, Canvas(hr.double(), hr_sizes), words, lr_sizes)
        if not np.array_equal(sizes, lr_sizes):
            raise InputError(
                f"degradation {self.name}: its steps lead to {sizes[0, 0]}x{sizes[0, 1]}, LR has {lr_sizes[0, 0]}x"
                f"{lr_sizes[0, 1]}; let the last step that resizes be a Resize(relative_to=lr) without up and down"
            )
        return to_levels(images).float().mul_(1 / 255)

    def __call__(self, hr: Tensor, scale: int) -> Tensor:
        """LR of a whole image, uint8: (1 or 3, H, W) -> (1 or 3, H/scale, W/scale). Of gray HR it is gray as well."""
        if hr.dtype != torch.uint8 or hr.ndim != 3:
            raise InputError(f"degradation {self.name} takes uint8 (3, H, W), got {hr.dtype} {tuple(hr.shape)}")
        colour = hr.expand(3, -1, -1).contiguous()
        digest = hashlib.sha256(colour.cpu().numpy()).digest()
        bits = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"), counter=[0, 0, 0, 2])
        with _WHOLE_IMAGE:
            words = bits.random_raw(_words_of(self.steps))[None]
            lr = self.degrade(colour[None].float().mul_(1 / 255), scale, words)[0]
        if (colour == colour[0]).all():
            lr = luma(lr)[None].expand(len(hr), -1, -1)
        return lr.mul(255).round_().to(torch.uint8)


def _words_of(steps: Mapping[str, Step]) -> int:
    return sum(step.words for step in steps.values())


def _through(steps: Mapping[str, Step], canvas: Canvas, words: np.ndarray, lr_sizes: np.ndarray) -> Canvas:
    """One step after the other, each with its share of the words."""
    taken = 0
    for step in steps.values():
        canvas = step(canvas, words[:, taken : taken + step.words], lr_sizes)
        taken += step.words
    return canvas


def _plain(value: Any) -> Any:
    """Settings of steps as lists, dicts and floats, with the kind of each step."""
    if is_dataclass(value):
        settings = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"step": type(value).__name__} | {name: _plain(setting) for name, setting in settings.items()}
    if isinstance(value, Mapping):
        if all(is_dataclass(item) for item in value.values()):  # what they are called changes nothing
            return [_plain(item) for item in value.values()]
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value if isinstance(value, str) else float(value)
