"""Learning-rate schedules that count batches."""

from collections.abc import Sequence
from math import ceil, cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sr_lightning.errors import InputError


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Linear warm-up, then a half cosine down to `final` times the learning rate; `step()` after every batch.

    With w = ceil(warmup * total_steps), batch k = 0, 1, ... runs at these shares of each group's learning rate:
    (k + 1) / (w + 1) while k < w (so never 0), 1 at k = w, then the cosine that would reach `final` at
    k = total_steps. The last batch, total_steps - 1, therefore still runs a little above `final`:
    by (1 - final) (1 - cos(pi / (total_steps - w))) / 2. Later batches stay at `final`.

    Args:
        optimizer: Its groups' present learning rates are the peaks.
        total_steps: Batches of the whole training.
        warmup: Share of total_steps that warms up, 0 to below 1.
        final: Share of the learning rate at the end, 0 to 1.

    Raises:
        InputError: A value out of range.
    """
    wrong = [] if total_steps >= 1 else [f"total_steps={total_steps} (1 or more)"]
    wrong += [] if 0 <= warmup < 1 else [f"warmup={warmup} (a share of total_steps: 0 or more, below 1)"]
    wrong += [] if 0 <= final <= 1 else [f"final={final} (a share of the learning rate: 0 to 1)"]
    if wrong:
        raise InputError(f"warmup_cosine: out of range: {', '.join(wrong)}")
    warmup_steps = min(ceil(warmup * total_steps), total_steps - 1)

    def share(batch: int) -> float:
        if batch < warmup_steps:
            return (batch + 1) / (warmup_steps + 1)
        progress = min(1.0, (batch - warmup_steps) / (total_steps - warmup_steps))
        return final + (1 - final) * (1 + cos(pi * progress)) / 2

    return LambdaLR(optimizer, share)


def step_decay(
    optimizer: Optimizer, total_steps: int, milestones: Sequence[float] = (0.5,), gamma: float = 0.5
) -> LambdaLR:
    """The learning rate times `gamma` from each milestone on; `step()` after every batch.

    Args:
        optimizer: Its groups' present learning rates are those of the start.
        total_steps: Batches of the whole training.
        milestones: Shares of total_steps, between 0 and 1, so that a longer training keeps its shape.
        gamma: The factor, above 0.

    Raises:
        InputError: A value out of range.
    """
    if total_steps < 1 or gamma <= 0 or not all(0 < milestone < 1 for milestone in milestones):
        raise InputError(
            f"step_decay: out of range: total_steps={total_steps} (1 or more), gamma={gamma} (above 0) or "
            f"milestones={list(milestones)} (shares of total_steps between 0 and 1)"
        )
    return LambdaLR(optimizer, lambda batch: gamma ** sum(batch >= share * total_steps for share in milestones))
