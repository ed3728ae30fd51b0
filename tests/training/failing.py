"""Losses that fail: on request, or for some batches."""

import math
import os

from torch import Tensor
from torch.nn import L1Loss


class FailingLoss(L1Loss):
    """Fails in one process at one call, as given by SR_FAIL="RANK:CALL"."""

    calls = 0

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        self.calls += 1
        rank, call = os.environ.get("SR_FAIL", "0:0").split(":")
        if self.calls == int(call) and os.environ.get("LOCAL_RANK", "0") == rank:
            raise RuntimeError(f"made to fail in process {rank}")
        return super().forward(sr, hr)


class SometimesNaN(L1Loss):
    """NaN for about one batch in ten, depending on its content alone."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return super().forward(sr, hr) * (math.nan if hr.mean() * 1000 % 1 < 0.1 else 1)
