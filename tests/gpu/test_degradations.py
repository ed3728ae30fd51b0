"""On a GPU: replayed random degradations give the LR of a CPU, and the host does not wait for them."""

import pytest
import torch

from sr_lightning.degradations.replayed import ReplayedDegradation
from sr_lightning.utils.cuda_graphs import cuda_graph
from tests.degradations.test_random_degradation import NAMES, load, patches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("name", NAMES)
def test_replayed_lr_is_that_of_a_cpu(name):
    degradation = load(name)
    replayed, results = ReplayedDegradation(degradation, 4, cuda_graph, 16), []
    counts = enumerate((16, 16, 24, 16, 17, 16))
    batches = [(patches(count, seed=number), degradation.draw(0, number, count)) for number, count in counts]
    on_device = [(hr.cuda(), random_bits) for hr, random_bits in batches]
    try:
        for number, (hr, random_bits) in enumerate(on_device):
            torch.cuda.set_sync_debug_mode("error" if number > 0 else "default")  # recorded at the first batch
            results.append(replayed(hr, random_bits))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(replayed.replays.graphs) == 1 and all(replayed.replays.graphs.values())
    assert replayed.is_equal and not replayed.replays.is_refused
    for lr, (hr, random_bits) in zip(results, batches, strict=True):
        assert torch.equal(lr.cpu(), degradation.degrade(hr, 4, random_bits))
