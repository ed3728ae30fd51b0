"""What networks cost: counted, and measured on this machine, each network once."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch

from sr_lightning.leaderboard.score_cache import Kept
from sr_lightning.network_costs import HEIGHT, WIDTH, count, lr_size, machine, measure

log = logging.getLogger(__name__)

BUDGET = 5.0  # seconds: a network that needs more for an image is not measured
MEASURED = (
    f"ms: the median of three images of {WIDTH}x{HEIGHT} after enlargement, float32, on {{machine}}; empty if over "
    f"about {1000 * BUDGET:,.0f}"
)


class Costs:
    """Parameters, multiply-adds and milliseconds of networks."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}

    def of(self, network: dict[str, Any], kept: Sequence[Kept] = (), self_ensemble: bool = False) -> dict[str, Any]:
        """parameters, multiply_adds and milliseconds, the last None where it is over the budget.

        Args:
            network: How a config describes it.
            kept: What is known of runs with this network; costs are looked for there, and put there.
            self_ensemble: Of the network on all flips and rotations.

        Raises:
            InputError: The description names no network.
        """
        height, width = lr_size(network["scale"])
        size = {"output": [WIDTH, HEIGHT], "self_ensemble": self_ensemble}
        counts = {"kind": "counts"} | size
        times = {"kind": "milliseconds", "machine": machine(), "torch": torch.__version__} | size
        name = json.dumps([network, self_ensemble], sort_keys=True)
        if name not in self.known:
            costs = _first(kept, counts) or _count(network, height, width, self_ensemble)
            costs |= _first(kept, times) or _measure(network, height, width, self_ensemble)
            self.known[name] = costs
        for one in kept:
            for key, names in ((counts, ("parameters", "multiply_adds")), (times, ("milliseconds",))):
                if one.get(key) is None:
                    one.put(key, {cost: self.known[name][cost] for cost in names})
        return self.known[name]


def _first(kept: Sequence[Kept], key: dict[str, Any]) -> dict[str, Any] | None:
    return next((dict(value) for one in kept if (value := one.get(key)) is not None), None)


def _count(network: dict[str, Any], height: int, width: int, self_ensemble: bool) -> dict[str, Any]:
    counts = count(network, height, width, self_ensemble)
    return {"parameters": counts.parameters, "multiply_adds": counts.multiply_adds}


def _measure(network: dict[str, Any], height: int, width: int, self_ensemble: bool) -> dict[str, Any]:
    log.info("measuring %s", network["_target_"].rpartition(".")[2])
    cost = measure(network, height, width, BUDGET, self_ensemble)
    return {"milliseconds": None if cost is None else cost.milliseconds}
