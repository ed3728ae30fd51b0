"""Random degradations recorded for a GPU, without one: operations are replayed by tests/fake_graph.py."""

import logging

import pytest
import torch

from sr_lightning.degradations import JPEG, EitherOrder, Noise, RandomDegradation, Resize, replayed
from sr_lightning.degradations.padded_batch import as_int64
from sr_lightning.degradations.replayed import ReplayedDegradation
from sr_lightning.errors import InputError
from tests.degradations.test_random_degradation import NAMES, load, patches
from tests.fake_graph import FakeGraph


@pytest.mark.parametrize(("scale", "height", "width"), [(2, 24, 24), (4, 48, 40)])
@pytest.mark.parametrize("name", NAMES)
def test_replayed_lr_is_that_of_a_cpu(name, scale, height, width):
    degradation = load(name)
    replay = ReplayedDegradation(degradation, scale, FakeGraph, 6)
    for number, count in enumerate((6, 6, 8, 6)):
        hr, random_bits = patches(count, height, width, seed=number), degradation.draw(0, number, count)
        lr = replay(hr, random_bits)
        assert torch.equal(lr, degradation.degrade(hr, scale, random_bits)) and not lr.is_inference()
    assert len(replay.replays.graphs) == 1 and all(replay.replays.graphs.values()) and not replay.replays.is_refused


def test_random_bits_of_one_process_have_no_gaps_when_they_are_copied_to_the_device(monkeypatch):
    """A copy with gaps waits for the device."""
    copied = []
    monkeypatch.setattr(replayed, "as_int64", lambda random_bits: copied.append(random_bits) or as_int64(random_bits))
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "noise": Noise()})
    replay = ReplayedDegradation(degradation, 2, FakeGraph, 4)
    for number in range(3):
        replay(patches(4), degradation.draw(0, number, 8)[1::2])
    assert all(random_bits.flags.c_contiguous for random_bits in copied)


class ReadsValues:
    """A user's step of which no graph can be recorded."""

    num_draws = 1

    def __call__(self, batch, random_bits, lr_size):
        darker = 0.5 if (random_bits < 0).any() else 0.25
        return batch._replace(images=batch.images * darker)


def test_a_step_that_reads_values_is_computed_without_a_graph(caplog, monkeypatch):
    """Nor in fixed shapes, which take longer."""
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "own": ReadsValues()})
    replay = ReplayedDegradation(degradation, 2, FakeGraph, 8)
    with caplog.at_level(logging.INFO):
        for number in range(4):
            hr, random_bits = patches(seed=number), degradation.draw(0, number, 8)
            assert torch.equal(replay(hr, random_bits), degradation.degrade(hr, 2, random_bits))
            monkeypatch.setattr(replay, "_in_fixed_shapes", None)
    (record,) = caplog.records
    assert "computed without a CUDA graph" in record.getMessage()


@pytest.mark.parametrize("settings", [{"down": 1, "factor": (0.5, 1)}, {"up": 1e-3, "factor": (1, 2)}])
def test_a_chain_that_does_not_lead_to_lrs_size_is_refused(settings):
    """The second one at the first batch as well, whose images have LR's size."""
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr", **settings)})
    with pytest.raises(InputError, match=r"degradation mine: its steps lead to .*, but LR has 24x24"):
        ReplayedDegradation(degradation, 2, FakeGraph, 8)(patches(), degradation.draw(0, 0, 8))


def test_images_that_are_too_small_are_not_trained_on_in_silence():
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr", down=0.5, factor=(0.9, 1))})
    hr, random_bits = patches(32, 48, 8), as_int64(degradation.draw(0, 0, 32))  # the width stays 4
    lr = degradation.degrade(hr, 2, random_bits)
    is_whole = [torch.equal(one, one) for one in lr]  # without NaN
    assert 10 < sum(is_whole) < 30
    assert torch.equal(degradation.degrade(hr[is_whole], 2, random_bits[is_whole].numpy()), lr[is_whole])
    with pytest.raises(InputError, match="but LR has 24x4"):
        degradation.degrade(hr, 2, random_bits.numpy())


@pytest.mark.parametrize(
    "fault",
    [1 / 255, RuntimeError("CUFFT_INTERNAL_ERROR"), TypeError("can't convert cuda:0 device type tensor to numpy")],
    ids=["other values", "an error", "of one's own step"],
)
def test_a_degradation_that_fails_on_the_device_is_not_replayed(fault, monkeypatch, caplog):
    """As a library that differs there."""

    def wrong(degradation, hr, random_bits):
        if isinstance(fault, Exception):
            raise fault
        return (degradation.degradation.degrade(hr, 2, random_bits) + fault,)

    monkeypatch.setattr(ReplayedDegradation, "_in_fixed_shapes", wrong)
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "noise": Noise()})
    replay = ReplayedDegradation(degradation, 2, FakeGraph, 8)
    for number in range(3):
        hr, random_bits = patches(seed=number), degradation.draw(0, number, 8)
        assert torch.equal(replay(hr, random_bits), degradation.degrade(hr, 2, random_bits))
    (record,) = caplog.records
    expected = "100.0% of the values differ from a CPU's"
    if isinstance(fault, Exception):
        expected = f"{type(fault).__name__}: {fault}"
    assert record.getMessage() == f"degradation mine: no CUDA graph is used: {expected}"


def test_a_graph_that_does_not_read_its_inputs_is_not_replayed(caplog):
    """As one in which a step has left what it computed on the host."""
    degradation = RandomDegradation("mine", {"resize": Resize(relative_to="lr"), "noise": Noise()})
    replay = ReplayedDegradation(degradation, 2, lambda program: program() or (lambda: None), 8)
    for number in range(3):
        hr, random_bits = patches(seed=number), degradation.draw(0, number, 8)
        assert torch.equal(replay(hr, random_bits), degradation.degrade(hr, 2, random_bits))
    assert not replay.replays.graphs and "no CUDA graph is used: 9" in caplog.text  # 90 to 99 % of the values differ


def test_padding_does_not_leak_into_images():
    """Sizes that follow one another down and up, and that depend on the order, the smallest beside the largest."""
    steps = {
        "a": Resize(down=0.5, up=0.5, factor=(0.2, 1.5)),
        "b": Resize(down=1, factor=(0.3, 1)),
        "c": EitherOrder({"up": Resize(up=1, factor=(1, 2))}, {"lr": Resize(relative_to="lr"), "jpeg": JPEG()}),
        "d": Resize(relative_to="lr"),
    }
    degradation = RandomDegradation("sizes", steps)
    hr, random_bits = patches(16, 32, 48), degradation.draw(0, 0, 16)
    alone = torch.cat([degradation.degrade(hr[i, None], 4, random_bits[i, None]) for i in range(16)])
    for each in (random_bits, as_int64(random_bits)):
        assert torch.equal(degradation.degrade(hr, 4, each), alone)
