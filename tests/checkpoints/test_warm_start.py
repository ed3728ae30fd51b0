"""Warm starts of whole runs: train.py model.warm_start=…"""

import shutil

import pytest
import torch

from sr_lightning.checkpoints.checkpoint import load_network
from tests.helpers import run


@pytest.mark.slow
def test_run_starts_from_another_scale_and_resumes_without_its_source(command, tmp_path):
    source, started = tmp_path / "x2", tmp_path / "x3"
    run(*command, "max_steps=10", f"hydra.run.dir={source}")
    trained = load_network(source / "checkpoints" / "best.ckpt").network.state_dict()

    still = ["model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.0", "max_steps=10"]
    done = run(*command, "scale=x3", *still, f"model.warm_start={source}", f"hydra.run.dir={started}")
    last = "convs.3.weight"  # makes scale*scale channels
    message = f"warm start from {source}: 6 of 8 tensors\n  another shape, left out: {last} 4x32x3x3, here 9x32x3x3"
    assert message in done.stdout
    weights = load_network(started / "checkpoints" / "last.ckpt").network.state_dict()
    assert weights[last].shape[0] == 9
    assert all(torch.equal(weights[key], trained[key]) for key in weights if not key.startswith("convs.3."))

    shutil.rmtree(source)
    done = run("train.py", f"resume={started}")
    assert "warm start" not in done.stdout


def test_missing_weights_are_one_clear_error(command, tmp_path):
    done = run(*command, f"model.warm_start={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1
    assert f"error: model.warm_start={tmp_path}: {tmp_path} is a folder without a checkpoint" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
