"""Learning-rate schedules that are stepped once per batch."""

from collections.abc import Sequence
from math import ceil, cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sr_lightning.errors import InputError


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0, begin: int = 0
) -> LambdaLR:
    """Linear warm-up, then cosine decay to `final` times the learning rate; call `step()` after every batch.

    With w = ceil(warmup * total_steps), the learning rate of batch k = 0, 1, ... is multiplied by (k + 1) / (w + 1) for
    k < w (so it is never 0), by 1 at k = w, then by a cosine that reaches `final` at k = total_steps. The factor of the
    last batch, total_steps - 1, is therefore above `final` by (1 - final) (1 - cos(pi / (total_steps - w))) / 2. Later
    batches stay at `final`.

    Args:
        optimizer: The current learning rates of its groups are the peaks.
        total_steps: Number of batches of the whole training.
        warmup: Warm-up as a share of total_steps, from 0 to below 1.
        final: Final learning rate relative to the peak, 0 to 1.
        begin: Batch at which the schedule begins, so that batch begin + k has the learning rate given above for k.

    Raises:
        InputError: One or more values are out of range.
    """
    wrong = [] if total_steps >= 1 else [f"total_steps={total_steps} (1 or more)"]
    wrong += [] if 0 <= warmup < 1 else [f"warmup={warmup} (a share of total_steps: 0 or more, below 1)"]
    wrong += [] if 0 <= final <= 1 else [f"final={final} (a share of the learning rate: 0 to 1)"]
    if wrong:
        raise InputError(f"warmup_cosine: out of range: {', '.join(wrong)}")
    warmup_steps = min(ceil(warmup * total_steps), total_steps - 1)

    def share(batch: int) -> float:
        batch = max(0, batch - begin)
        if batch < warmup_steps:
            return (batch + 1) / (warmup_steps + 1)
        progress = min(1.0, (batch - warmup_steps) / (total_steps - warmup_steps))
        return final + (1 - final) * (1 + cos(pi * progress)) / 2

    return LambdaLR(optimizer, share)


def step_decay(
    optimizer: Optimizer, total_steps: int, milestones: Sequence[float] = (0.5,), gamma: float = 0.5, begin: int = 0
) -> LambdaLR:
    """Multiply the learning rate by `gamma` at each milestone; call `step()` after every batch.

    Args:
        optimizer: The current learning rates of its groups are the initial ones.
        total_steps: Number of batches of the whole training.
        milestones: Shares of total_steps, between 0 and 1, so that the shape does not depend on total_steps.
        gamma: Factor above 0.
        begin: Batch at which the schedule begins.

    Raises:
        InputError: A value is out of range.
    """
    if total_steps < 1 or gamma <= 0 or not all(0 < milestone < 1 for milestone in milestones):
        raise InputError(
            f"step_decay: out of range: total_steps={total_steps} (1 or more), gamma={gamma} (above 0) or "
            f"milestones={list(milestones)} (shares of total_steps between 0 and 1)"
        )
    return LambdaLR(optimizer, lambda batch: gamma ** sum(batch - begin >= share * total_steps for share in milestones))
