"""Random degradation of training patches as one program of a GPU."""

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sr_lightning.degradations.padded_batch import as_int64
from sr_lightning.degradations.random_degradation import RandomDegradation
from sr_lightning.errors import InputError
from sr_lightning.utils.cuda_graphs import Recorder, Replays
from sr_lightning.utils.devices import to_device

log = logging.getLogger(__name__)

TRIED, TIES = 4, 1e-3  # patches of the first batch, and the share of their values that rounding ties may change


class ReplayedDegradation:
    """A random degradation recorded as a CUDA graph: a GPU computes its operations faster than the host launches them.

    The first batch is recorded in reverse, then replayed, and some of its patches are degraded on the CPU as well: if
    their LR differs, nothing is replayed, with a warning.

    Args:
        degradation: Makes LR.
        scale: Super-resolution factor.
        record: `cuda_graph`, or what computes the same.
        batch_size: Patches of a replay. Batches of other sizes, as of mixup, take several, filled up with black.
    """

    def __init__(self, degradation: RandomDegradation, scale: int, record: Recorder, batch_size: int) -> None:
        self.degradation, self.scale, self.record, self.batch_size = degradation, scale, record, batch_size
        self.replays: Replays | None = None  # None: before the first batch
        self.is_equal = True

    def __call__(self, hr: Tensor, random_bits: np.ndarray) -> Tensor:
        """Degrade a batch as `RandomDegradation.degrade` does; the host does not wait for the device."""
        if self.replays is None:
            self.replays = Replays(hr.device, self.record)
            self.is_equal = self._agrees(self.replays, hr[: self.batch_size], random_bits[: self.batch_size])
        if self.replays.is_refused or not self.is_equal:
            return self.degradation.degrade(hr, self.scale, random_bits)
        count, missing = len(hr), -len(hr) % self.batch_size
        bits = _on(hr.device, np.pad(random_bits, ((0, missing), (0, 0))))
        parts = zip(pad(hr, (0, 0) * 3 + (0, missing)).split(self.batch_size), bits.split(self.batch_size), strict=True)
        # A copy, since that of the replay is of inference mode, in which no later operation would be allowed
        return torch.cat([self.replays(self._in_fixed_shapes, *part)[0] for part in parts])[:count]

    def _in_fixed_shapes(self, hr: Tensor, random_bits: Tensor) -> tuple[Tensor]:
        return (self.degradation.degrade(hr, self.scale, random_bits),)

    def _agrees(self, replays: Replays, hr: Tensor, random_bits: np.ndarray) -> bool:
        expected = self.degradation.degrade(hr[:TRIED].cpu(), self.scale, random_bits[:TRIED])
        try:
            inputs = hr, _on(hr.device, random_bits)
            others = [each.flip(0) for each in inputs]
            for each in (others, others, inputs):  # computed directly, recorded, replayed
                (lr,) = replays(self._in_fixed_shapes, *each)
            share = float((lr[:TRIED].cpu() != expected).double().mean())
            fault = f"{share:.1%} of the values differ from a CPU's" if share > TIES else ""
        except InputError:
            raise
        except Exception as error:  # whatever stops it, LR can be made as usual
            fault = f"{type(error).__name__}: {error}".partition("\n")[0]
        if fault:
            replays.graphs.clear()  # they hold memory
            log.warning("degradation %s: no CUDA graph is used: %s", self.degradation.name, fault)
        return not fault


def _on(device: torch.device, random_bits: np.ndarray) -> Tensor:
    """Copy random bits to a device; the host would wait for a copy with gaps, as between the rows of one process."""
    return to_device(as_int64(np.ascontiguousarray(random_bits)), device)
