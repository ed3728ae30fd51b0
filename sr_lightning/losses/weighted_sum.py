"""Several losses as one."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from sr_lightning.errors import InputError


class WeightedSum(nn.Module):
    """The sum of losses between sr and hr, each times its weight; each can be had by its name.

    Args:
        terms: Losses by name, such as pixel, perceptual. None for one whose weight is 0, so that it need not be built.
        weights: Of each by the same names. 0 leaves a term out: it is not computed.

    Raises:
        InputError: Names that are in one of both only, a weight that is negative or no number, or all are 0.
    """

    def __init__(self, terms: Mapping[str, nn.Module | None], weights: Mapping[str, float]) -> None:
        super().__init__()
        if apart := terms.keys() ^ weights.keys():
            sides = {name: "terms" if name in terms else "weights" for name in sorted(apart, key=str)}
            only = ", ".join(f"{name} only in {side}" for name, side in sides.items())
            raise InputError(f"terms and weights of a WeightedSum must have the same names: {only}")
        self.weights = used_weights(weights, "WeightedSum")
        if empty := [name for name in self.weights if terms[name] is None]:
            raise InputError(f"WeightedSum: null with a weight other than 0: {', '.join(empty)}")
        self.losses = nn.ModuleList(terms[name] for name in self.weights)

    def terms(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Name -> scalar, weighted."""
        return {
            name: weight * loss(sr, hr) for (name, weight), loss in zip(self.weights.items(), self.losses, strict=True)
        }

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return sum(self.terms(sr, hr).values())


def used_weights(weights: Mapping[str, float], what: str) -> dict[str, float]:
    """The weights that are not 0.

    Raises:
        InputError: One is negative or no number, or none is left. Names `what` they belong to.
    """
    wrong = [
        f"{name}: {weight}"
        for name, weight in weights.items()
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf
    ]
    if wrong:
        raise InputError(f"{what}: weights are numbers from 0 up: {', '.join(wrong)}")
    if not any(weights.values()):
        raise InputError(f"{what}: no weight above 0 among {dict(weights)}: there is nothing to compute")
    return {name: weight for name, weight in weights.items() if weight}
