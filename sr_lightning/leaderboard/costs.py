"""Costs of networks: parameters and multiply-adds counted, time measured on this machine, once per network."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch

from sr_lightning.leaderboard.score_cache import ScoreCache
from sr_lightning.network_costs import HEIGHT, WIDTH, count, lr_size, machine, measure

log = logging.getLogger(__name__)

BUDGET = 5.0  # seconds per image; slower networks are not measured
MEASURED = (
    f"ms: the median of three images of {WIDTH}x{HEIGHT} after enlargement, float32, on {{machine}}; empty if over "
    f"about {1000 * BUDGET:,.0f}"
)


class Costs:
    """Parameters, multiply-adds and milliseconds of networks.

    Args:
        allow: Packages besides this project, or classes, that may define the networks.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self.allow = allow
        self.known: dict[str, dict[str, Any]] = {}

    def measure(
        self, network: dict[str, Any], caches: Sequence[ScoreCache] = (), self_ensemble: bool = False
    ) -> dict[str, Any]:
        """Return parameters, multiply_adds and milliseconds, the last None if over the budget.

        Args:
            network: The network's part of a config.
            caches: Caches of the runs with this network, which are read and updated.
            self_ensemble: Measure the network on all flips and rotations.

        Raises:
            InputError: The config names no network.
        """
        height, width = lr_size(network["scale"])
        size = {"output": [WIDTH, HEIGHT], "self_ensemble": self_ensemble}
        counts = {"kind": "counts"} | size
        times = {"kind": "milliseconds", "machine": machine(), "torch": torch.__version__} | size
        name = json.dumps([network, self_ensemble], sort_keys=True)
        if name not in self.known:
            costs = _first(caches, counts) or _count(network, height, width, self_ensemble, self.allow)
            costs |= _first(caches, times) or _measure(network, height, width, self_ensemble, self.allow)
            self.known[name] = costs
        for cache in caches:
            for key, names in ((counts, ("parameters", "multiply_adds")), (times, ("milliseconds",))):
                if cache.get(key) is None:
                    cache.put(key, {cost: self.known[name][cost] for cost in names})
        return self.known[name]


def _first(caches: Sequence[ScoreCache], key: dict[str, Any]) -> dict[str, Any] | None:
    return next((dict(value) for cache in caches if (value := cache.get(key)) is not None), None)


def _count(
    network: dict[str, Any], height: int, width: int, self_ensemble: bool, allow: Sequence[str]
) -> dict[str, Any]:
    counts = count(network, height, width, self_ensemble, allow)
    return {"parameters": counts.parameters, "multiply_adds": counts.multiply_adds}


def _measure(
    network: dict[str, Any], height: int, width: int, self_ensemble: bool, allow: Sequence[str]
) -> dict[str, Any]:
    log.info("measuring %s", network["_target_"].rpartition(".")[2])
    cost = measure(network, height, width, BUDGET, self_ensemble, allow=allow)
    return {"milliseconds": None if cost is None else cost.milliseconds}
