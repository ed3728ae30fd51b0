"""Random degradations recorded for a GPU, without one: operations are replayed by tests/fake_graph.py."""

import logging

import pytest
import torch

from sr_lightning.degradations import Noise, RandomDegradation, Resize
from sr_lightning.degradations.padded_batch import as_int64
from sr_lightning.degradations.replayed import ReplayedDegradation
from sr_lightning.errors import InputError
from tests.degradations.test_random_degradation import NAMES, load, patches
from tests.fake_graph import FakeGraph


@pytest.mark.parametrize(("scale", "height", "width"), [(2, 24, 24), (4, 48, 40)])
@pytest.mark.parametrize("name", NAMES)
def test_replayed_lr_is_that_of_a_cpu(name, scale, height, width):
    degradation = load(name)
    replayed = ReplayedDegradation(degradation, scale, FakeGraph)
    for number in range(4):
        hr, random_bits = patches(6, height, width, seed=number), degradation.draw(0, number, 6)
        lr = replayed(hr, random_bits)
        assert torch.equal(lr, degradation.degrade(hr, scale, random_bits)) and not lr.is_inference()
    assert all(replayed.replays.graphs.values()) and not replayed.replays.is_refused


class ReadsValues:
    """A user's step of which no graph can be recorded."""

    num_draws = 1

    def __call__(self, batch, random_bits, lr_size):
        darker = 0.5 if (random_bits < 0).any() else 0.25
        return batch._replace(images=batch.images * darker)


def test_a_step_that_reads_values_is_computed_without_a_graph(caplog):
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "own": ReadsValues()})
    replayed = ReplayedDegradation(degradation, 2, FakeGraph)
    with caplog.at_level(logging.INFO):
        for number in range(4):
            hr, random_bits = patches(seed=number), degradation.draw(0, number, 8)
            assert torch.equal(replayed(hr, random_bits), degradation.degrade(hr, 2, random_bits))
    (record,) = caplog.records
    assert "computed without a CUDA graph" in record.getMessage()


def test_a_chain_that_does_not_lead_to_lrs_size_is_refused():
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr", down=1, factor=(0.5, 1))})
    with pytest.raises(InputError, match=r"degradation mine: its steps lead to .*, but LR has 24x24"):
        ReplayedDegradation(degradation, 2, FakeGraph)(patches(), degradation.draw(0, 0, 8))


@pytest.mark.parametrize("fault", [1 / 255, None], ids=["other values", "an error"])
def test_a_degradation_that_fails_on_the_device_is_not_replayed(fault, monkeypatch, caplog):
    """As a library that differs there."""

    def wrong(degradation, hr, random_bits):
        if fault is None:
            raise RuntimeError("CUFFT_INTERNAL_ERROR")
        return (degradation.degradation.degrade(hr, 2, random_bits) + fault,)

    monkeypatch.setattr(ReplayedDegradation, "_in_fixed_shapes", wrong)
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "noise": Noise()})
    replayed = ReplayedDegradation(degradation, 2, FakeGraph)
    for number in range(3):
        hr, random_bits = patches(seed=number), degradation.draw(0, number, 8)
        assert torch.equal(replayed(hr, random_bits), degradation.degrade(hr, 2, random_bits))
    (record,) = caplog.records
    expected = "RuntimeError: CUFFT_INTERNAL_ERROR" if fault is None else "100.0% of the values differ from a CPU's"
    assert record.getMessage() == f"degradation mine: no CUDA graph is used: {expected}"


def test_padding_does_not_leak_into_images():
    """Sizes that follow one another down and up, with the largest batch beside the smallest image."""
    steps = {
        "a": Resize(down=0.5, up=0.5, factor=(0.2, 1.5)),
        "b": Resize(down=1, factor=(0.3, 1)),
        "c": Resize(relative_to="lr"),
    }
    degradation = RandomDegradation("sizes", steps)
    hr, random_bits = patches(16, 32, 48), degradation.draw(0, 0, 16)
    there = as_int64(random_bits)
    assert torch.equal(degradation.degrade(hr, 4, there), degradation.degrade(hr, 4, random_bits))
