import math

import torch

from sr_lightning.modules.running_means import RunningMeans


def same(values: torch.Tensor) -> torch.Tensor:
    return values[None]


def test_parts_of_a_batch_add_up_and_batches_are_averaged():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0)}, share=0.25)
    means.add({"loss": torch.tensor(3.0)}, share=0.75)
    means.end_batch()
    means.add({"loss": torch.tensor(0.5)})
    means.end_batch()
    assert means.take(same) == {"loss": 1.5}
    assert means.take(same) == {}


def test_a_restored_state_continues_like_the_original():
    means, restored = RunningMeans(), RunningMeans()
    means.add({"loss": torch.tensor(1.0)})
    means.end_batch()
    state = means.state_dict(same)
    assert state == {"count": 1, "sums": {"loss": 1.0}}  # plain numbers: the format of checkpoints
    restored.load_state_dict(state)
    for one in (means, restored):
        one.add({"loss": torch.tensor(2.0)})
        one.end_batch()
    assert means.take(same) == restored.take(same) == {"loss": 1.5}


def test_values_are_averaged_over_processes():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0)})
    means.end_batch()
    assert means.take(lambda values: torch.stack([values, torch.tensor([3.0, 1.0])])) == {"loss": 2.0}


def test_batches_that_are_not_finite_are_left_out_on_request():
    means, restored = RunningMeans(), RunningMeans()
    for loss in (math.nan, 1.0, math.inf, 2.0):
        means.add({"loss": torch.tensor(loss)})
        means.end_batch(only_finite=True)
    restored.load_state_dict(means.state_dict(same))
    for one in (means, restored):
        one.add({"loss": torch.tensor(math.nan)})
        one.end_batch(only_finite=True)
        # the other process has left out none of its five batches, of 4.5 together
        assert one.take(lambda values: torch.stack([values, torch.tensor([4.5, 5.0])])) == {"loss": 7.5 / 7}
        one.add({"loss": torch.tensor(math.nan)})
        one.end_batch(only_finite=True)
        assert one.take(same) == {}


def test_each_process_continues_with_its_own_sums():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0)})
    means.end_batch()
    state = means.state_dict(lambda values: torch.stack([values, torch.tensor([3.0, 1.0])]))
    assert state == {"count": 1, "sums": {"loss": 2.0}, "of_processes": [[1.0], [3.0]], "counts": [1, 1]}
    for processes, sums in {1: [2.0], 2: [1.0, 3.0], 3: [2.0, 2.0, 2.0]}.items():
        for rank, value in enumerate(sums):
            means.load_state_dict(state, rank, processes)
            assert means.take(same) == {"loss": value}


def test_a_state_without_counts_of_each_process_is_read():
    means = RunningMeans()
    means.load_state_dict({"count": 2, "sums": {"loss": 4.0}, "of_processes": [[2.0], [6.0]]}, 1, 2)
    assert means.take(same) == {"loss": 3.0}


def test_values_are_detached():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0, requires_grad=True)})
    assert not means.sums["loss"].requires_grad
