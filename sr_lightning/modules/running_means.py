"""Means of logged scalars over batches and processes, saved with the checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # means over processes, (K,) -> (K,)


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
        >>> means.take(lambda values: values)
        {'train/loss': 1.5}
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self._batches = 0

    def add(self, values: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Add scalars that were computed on a share of the batch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + share * value.detach()

    def end_batch(self) -> None:
        """Count a batch."""
        self._batches += 1

    def take(self, reduce: Reduce) -> dict[str, float]:
        """Return the means over batches and processes, and start from zero. Collective."""
        means = {name: total / self._batches for name, total in self._reduced_sums(reduce).items()}
        self.sums, self._batches = {}, 0
        return means

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """Return the number of batches and the sums, averaged over processes. Collective."""
        return {"count": self._batches, "sums": self._reduced_sums(reduce)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches, self.sums = state["count"], state["sums"]

    def _reduced_sums(self, reduce: Reduce) -> dict[str, float]:
        if not self.sums:
            return {}
        sums = reduce(torch.stack(list(self.sums.values())))
        return dict(zip(self.sums, sums.tolist(), strict=True))
