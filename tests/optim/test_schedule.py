"""Schedules compared with manually calculated values."""

from math import cos, pi

import pytest
import torch
from torch import nn

from sr_lightning.errors import InputError
from sr_lightning.optim import step_decay, warmup_cosine


def rates(
    total_steps: int, batches: int | None = None, peak: float = 2.0, schedule=warmup_cosine, **settings
) -> list[float]:
    """Return the learning rate of each batch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = schedule(optimizer, total_steps, **settings)
    seen = []
    for _ in range(batches or total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_ten_steps_with_two_warm_up_steps():
    expected = [2 / 3, 4 / 3, *(1 + cos(pi * k / 8) for k in range(8))]
    assert rates(10, warmup=0.2) == pytest.approx(expected)


def test_the_last_batch_is_slightly_above_the_final_rate_and_later_batches_have_it():
    seen = rates(10, batches=13, warmup=0.2, final=0.1)
    assert seen[9] == pytest.approx(2 * (0.1 + 0.9 * (1 - cos(pi / 8)) / 2))
    assert seen[10:] == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 19, 20, 21, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
def test_every_learning_rate_is_positive_and_one_is_the_peak(total_steps, warmup):
    seen = rates(total_steps, warmup=warmup)
    assert min(seen) > 0
    assert max(seen) == 2.0
    peak = seen.index(2.0)
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)


def test_each_group_has_its_own_peak():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    warmup_cosine(optimizer, 100, warmup=0.04)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])


def test_all_values_out_of_range_are_named():
    with pytest.raises(InputError, match=r"total_steps=0.*warmup=5.*final=-1"):
        warmup_cosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), 0, warmup=5, final=-1)


def test_step_decay_drops_at_shares_of_the_training():
    assert rates(10, schedule=step_decay, milestones=(0.5, 0.8), gamma=0.1) == pytest.approx(
        [2.0] * 5 + [0.2] * 3 + [0.02] * 2
    )


@pytest.mark.parametrize("settings", [{"milestones": (1.0,)}, {"milestones": (0.5, 0)}, {"gamma": 0.0}])
def test_step_decay_refuses_values_out_of_range(settings):
    with pytest.raises(InputError, match="out of range"):
        rates(10, schedule=step_decay, **settings)


@pytest.mark.parametrize("schedule", [warmup_cosine, step_decay])
def test_a_schedule_that_begins_later_is_the_same_schedule_from_there_on(schedule):
    whole, later = rates(30, schedule=schedule), rates(30, batches=50, schedule=schedule, begin=20)
    assert later[20:] == whole
    assert set(later[:20]) == {whole[0]}
