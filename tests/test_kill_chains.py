"""A few chains of kills; `python -m tests.kill_chains` runs as many as wanted."""

import pytest
import torch

from sr_lightning.runs.folder import RunFolder
from tests.kill_chains import differences_of_sides, run_chains

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """Chains of a pixel loss, a moving average and an extended run."""
    return list(run_chains(seed=15, numbers=(0, 2, 7), folder=tmp_path_factory.mktemp("chains"), keep=True))


def test_killed_and_resumed_runs_equal_uninterrupted_ones(chains):
    for chain in chains:
        assert not chain.faults
        assert chain.kills.total() > 0


def test_chain_reports_what_differs_and_what_is_left(chains):
    whole, killed = chains[0].folder / "whole", chains[0].folder / "killed"
    assert not list(differences_of_sides(whole, killed))
    run = RunFolder(killed / "run")
    (run.checkpoints / ".sr_lightning-1.tmp").touch()
    (found,) = differences_of_sides(whole, killed)
    assert found == "files: missing [], left ['run/checkpoints/.sr_lightning-1.tmp']"
    (run.checkpoints / ".sr_lightning-1.tmp").unlink()
    for path in (run.metrics, run.results, run.result):
        content = path.read_text()
        path.write_text(content.replace(".", ".0", 1))  # another loss or score
        assert path.name in next(differences_of_sides(whole, killed))
        path.write_text(content)
    checkpoint = torch.load(run.last, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] += 1e-6
    torch.save(checkpoint, run.last)
    (found,) = differences_of_sides(whole, killed)
    assert found.startswith("last.ckpt.state_dict.network")
