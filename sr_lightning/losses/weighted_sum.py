"""A weighted sum of losses."""

import math
import operator
from collections.abc import Mapping
from functools import reduce

from torch import Tensor, nn

from sr_lightning.errors import InputError


class WeightedSum(nn.Module):
    """Weighted sum of losses between sr and hr; `terms` gives each of them by name.

    Args:
        terms: Losses by name, such as pixel and perceptual. A loss with weight 0 may be None.
        weights: Weight of each loss by the same names, >= 0. A loss with weight 0 is not computed.

    Attributes:
        needs_average: True if a loss takes the SR of a moving average of the network as a third argument.

    Raises:
        InputError: The names differ, a weight is negative or not a number, a loss with a weight is None, or all weights
            are 0.
    """

    def __init__(self, terms: Mapping[str, nn.Module | None], weights: Mapping[str, float]) -> None:
        super().__init__()
        if apart := terms.keys() ^ weights.keys():
            sides = {name: "terms" if name in terms else "weights" for name in sorted(apart, key=str)}
            only = ", ".join(f"{name} only in {side}" for name, side in sides.items())
            raise InputError(f"terms and weights of a WeightedSum must have the same names: {only}")
        self.weights = used_weights(weights, "WeightedSum")
        losses = {name: loss for name in self.weights if (loss := terms[name]) is not None}
        if empty := [name for name in self.weights if name not in losses]:
            raise InputError(f"WeightedSum: {', '.join(empty)} is null but has a weight: give a loss, or weight 0")
        self.losses = nn.ModuleList(losses.values())
        self.needs_average = any(map(needs_average, self.losses))

    def terms(self, sr: Tensor, hr: Tensor, averaged: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the weighted losses: name -> scalar."""
        return {
            name: weight * (loss(sr, hr, averaged) if needs_average(loss) else loss(sr, hr))
            for (name, weight), loss in zip(self.weights.items(), self.losses, strict=True)
        }

    def forward(self, sr: Tensor, hr: Tensor, averaged: Tensor | None = None) -> Tensor:
        return reduce(operator.add, self.terms(sr, hr, averaged).values())


def needs_average(loss: nn.Module | None) -> bool:
    """Return True for a loss `loss(sr, hr, averaged)`, whose third argument is the SR of a moving average, or None."""
    return getattr(loss, "needs_average", False)


def used_weights(weights: Mapping[str, float], owner: str) -> dict[str, float]:
    """Return the weights that are not 0.

    Raises:
        InputError: A weight is negative or not a number, or all are 0. The message starts with `owner`.
    """
    wrong = [
        f"{name}: {weight}"
        for name, weight in weights.items()
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf
    ]
    if wrong:
        raise InputError(f"{owner}: weights must be numbers >= 0, got {', '.join(wrong)}")
    if not any(weights.values()):
        raise InputError(f"{owner}: all weights are 0, got {dict(weights)}: give at least one above 0")
    return {name: weight for name, weight in weights.items() if weight}
