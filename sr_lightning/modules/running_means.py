"""Means of logged scalars over batches and processes, saved with the checkpoint."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]  # values of this process, (K,) -> those of all processes, (P, K)


class RunningMeans:
    """Sums of scalars since they were last logged, for their means over batches.

    The sums stay tensors on their device until they are read, so that adding a value does not wait for the device.

    Attributes:
        sums: Sum of each scalar by name, of this process.

    Example:
        >>> means = RunningMeans()
        >>> for loss in (1.0, 2.0):
        ...     means.add({"train/loss": torch.tensor(loss)})
        ...     means.end_batch()
        >>> means.take(lambda values: values[None])
        {'train/loss': 1.5}
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self._sums_of_counted: dict[str, Tensor | float] = {}
        self._batches: Tensor | int = 0

    def add(self, values: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Add scalars that were computed on a share of the batch."""
        for name, value in values.items():
            part = value.detach()
            self.sums[name] = self.sums.get(name, 0.0) + (part if share == 1 else share * part)

    def end_batch(self, *, only_finite: bool = False, counted: Tensor | int = 1) -> None:
        """Count a batch.

        Args:
            only_finite: Subtract it instead if one of its values is NaN or infinite.
            counted: 0 or 1: whether it counts, which a device may decide.
        """
        if only_finite and not all(math.isfinite(total) for total in self.sums.values()):
            self.sums = {name: self._sums_of_counted.get(name, 0.0) for name in self.sums}
        else:
            self._batches = self._batches + counted
        self._sums_of_counted = dict(self.sums)

    def take(self, gather: Gather) -> dict[str, float]:
        """Return the means over all processes' batches, none without a batch, and start from zero. Collective."""
        sums, counts = self._gathered(gather)
        batches = sum(counts) / len(counts)
        means = {name: total / batches for name, total in self._over_processes(sums).items()} if batches else {}
        self.sums, self._sums_of_counted, self._batches = {}, {}, 0
        return means

    def state_dict(self, gather: Gather) -> dict[str, Any]:
        """Return the number of batches and the sums: means over processes and, of several, each one's. Collective.

        A resumed run continues with the sums of each process: added to their mean, later values round differently.
        """
        sums, counts = self._gathered(gather)
        state = {"count": int(self._batches), "sums": self._over_processes(sums)}
        return state | ({"of_processes": sums.tolist(), "counts": counts} if len(sums) > 1 else {})

    def load_state_dict(self, state: Mapping[str, Any], rank: int = 0, world_size: int = 1) -> None:
        """Continue with the sums of process `rank`, or with the mean if they are of another number of processes."""
        self._batches, self.sums = state["count"], dict(state["sums"])
        if len(state.get("of_processes", [])) == world_size:
            self.sums = dict(zip(self.sums, state["of_processes"][rank], strict=True))
            self._batches = state.get("counts", [self._batches] * world_size)[rank]
        self._sums_of_counted = dict(self.sums)

    def _gathered(self, gather: Gather) -> tuple[Tensor, list[int]]:
        """Return the sums of all processes, (P, K), and their numbers of batches."""
        if not self.sums:
            return torch.empty(1, 0), [self._batches]
        device = next((total.device for total in self.sums.values() if isinstance(total, Tensor)), None)
        values = [torch.as_tensor(total, device=device) for total in (*self.sums.values(), float(self._batches))]
        gathered = gather(torch.stack(values))
        return gathered[:, :-1], [int(count) for count in gathered[:, -1].tolist()]

    def _over_processes(self, sums: Tensor) -> dict[str, float]:
        return dict(zip(self.sums, sums.mean(0).tolist(), strict=True))
