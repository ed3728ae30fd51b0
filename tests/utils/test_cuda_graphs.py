"""Replays without a GPU: operations are recorded by tests/fake_graph.py."""

import logging

import pytest
import torch

from sr_lightning.utils.cuda_graphs import Replays
from tests.fake_graph import FakeGraph

CPU = torch.device("cpu")


@pytest.fixture
def calls():
    """The inputs of `function`."""
    return []


@pytest.fixture
def function(calls):
    def function(x):
        calls.append(x)
        y = x.float().mul(2).add_(1)
        return y.to(x.dtype), y.isfinite().all()

    return function


def test_a_shape_is_recorded_when_it_comes_for_the_second_time(function, calls):
    replays = Replays(CPU, FakeGraph)
    for number, recorded in enumerate([1, 3, 3, 3]):
        x = torch.full((3, 4), number, dtype=torch.uint8)
        y, finite = replays(function, x)
        assert torch.equal(y, 2 * x + 1) and finite
        assert len(calls) == recorded


@pytest.mark.parametrize(
    "other",
    [torch.ones(4, 3), torch.ones(3, 4, dtype=torch.float64), torch.ones(4, 3).T],
    ids=["shape", "type", "order in memory"],
)
def test_another_kind_of_tensor_has_a_graph_of_its_own(other, function, calls):
    replays = Replays(CPU, FakeGraph)
    for x in (torch.ones(3, 4), other) * 3:
        y, _ = replays(function, x)
        assert y.dtype == x.dtype and y.stride() == x.stride() and torch.equal(y, 2 * x + 1)
    assert len(calls) == 6  # each directly, and before and while it is recorded


def test_results_and_inputs_are_not_overwritten_by_later_replays(function):
    replays = Replays(CPU, FakeGraph)
    inputs = [torch.full((2, 2), float(number)) for number in range(4)]
    results = [replays(function, x)[0] for x in inputs]
    assert [y[0, 0].item() for y in results] == [1, 3, 5, 7]
    assert [x[0, 0].item() for x in inputs] == [0, 1, 2, 3]


def test_graphs_of_a_gpu_share_memory_and_are_recorded_on_a_stream_of_it(function, monkeypatch):
    """Not on the stream that torch uses for all recordings, which is of the GPU that recorded first."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "its pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    recorded = []

    def record(program, **options):
        recorded.append(options)
        return FakeGraph(program)

    replays = Replays(torch.device("cuda:1"), record)
    for side in (1, 1, 2, 2):
        replays(function, torch.ones(side))
    assert recorded == [{"pool": "its pool", "stream": "a stream of cuda:1"}] * 2


def test_the_shapes_used_last_are_remembered(function):
    replays = Replays(CPU, FakeGraph, most=2)
    for side in (1, 1, 2, 2, 1, 3, 3, 1):  # 3 takes the place of 2
        replays(function, torch.ones(side))
    assert sorted(shape for ((_, shape, _),) in replays.graphs) == [(1,), (3,)] and all(replays.graphs.values())
    for side in (2, 3, 1) * 2:  # too many shapes in turn: none is recorded in vain
        replays(function, torch.ones(side))
    assert not any(replays.graphs.values())


def test_a_function_that_cannot_be_recorded_is_computed_directly_and_says_so_once(caplog):
    replays = Replays(CPU, FakeGraph)
    with caplog.at_level(logging.INFO):
        for number in range(4):
            assert replays(lambda x: (x * x.sum().item(),), torch.full((2,), number))[0].tolist() == [2 * number**2] * 2
    (record,) = caplog.records
    assert (
        "computed without a CUDA graph, since recording it fails: RuntimeError: the host waits" in record.getMessage()
    )


def test_graphs_are_released_where_there_is_too_little_memory_beside_them():
    replays = Replays(CPU, FakeGraph)

    def enlarge(x):
        if len(x) > 3 and (len(x) > 4 or any(replays.graphs.values())):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (2 * x,)

    for _ in range(2):
        replays(enlarge, torch.ones(3))
    assert any(replays.graphs.values())
    assert replays(enlarge, torch.ones(4))[0].tolist() == [2] * 4
    assert [shape for ((_, shape, _),) in replays.graphs] == [(4,)]
    with pytest.raises(torch.OutOfMemoryError):
        replays(enlarge, torch.ones(5))


def test_too_little_memory_for_a_recording_releases_the_others():
    def record(program):
        if any(replays.graphs.values()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FakeGraph(program)

    replays = Replays(CPU, record)
    for side in (3, 3, 4, 4, 4):
        assert replays(lambda x: (2 * x,), torch.ones(side))[0].tolist() == [2] * side
    assert [shape for ((_, shape, _),), graph in replays.graphs.items() if graph] == [(4,)]
    assert not replays.is_refused


def test_a_function_for_whose_recording_there_is_too_little_memory_is_computed_directly():
    def record(program):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replays = Replays(CPU, record)
    for _ in range(3):
        assert replays(lambda x: (2 * x,), torch.ones(3))[0].tolist() == [2] * 3
    assert replays.is_refused
