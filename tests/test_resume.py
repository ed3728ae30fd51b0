"""A run that is killed and resumed ends with the very bits of one that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sr_lightning.checkpoint import read_checkpoint, steps_done
from tests.helpers import ROOT, rows_of, run

MAX_STEPS = 300


@pytest.fixture
def long_command(command):
    """Long enough to be killed in the middle; checkpoints fall before, on and between validations."""
    settings = ["val_every=20", "save_every=5", "log_every=5", "num_pictures=0", "model.ema=0.99"]
    return [*command, f"max_steps={MAX_STEPS}", *settings]


def kill_after_new_checkpoints(words: list, path: Path, count: int) -> int:
    """Start a run, kill its whole process group after `count` new checkpoints; the step it had come to."""
    words = [str(word) for word in words]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    seen, last = 0, path.stat().st_mtime_ns if path.exists() else None
    deadline = time.monotonic() + 120
    while seen < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        now = path.stat().st_mtime_ns if path.exists() else None
        seen, last = seen + (now != last), now
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return steps_done(read_checkpoint(path))


def assert_same(one: object, other: object, where: str = "checkpoint") -> None:
    """Equal in every bit, through all containers."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def test_a_run_killed_twice_and_resumed_equals_one_never_stopped(long_command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*long_command, f"hydra.run.dir={whole}")

    last = killed / "checkpoints" / "last.ckpt"
    first_stop = kill_after_new_checkpoints([*long_command, f"hydra.run.dir={killed}"], last, 3)
    resume = [sys.executable, "train.py", f"resume={killed}"]
    second_stop = kill_after_new_checkpoints(resume, last, 3)
    assert 0 < first_stop < second_stop < MAX_STEPS
    run(*resume)

    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_checkpoint(folder / "checkpoints" / name) for folder in (whole, killed))
        assert steps_done(one) == steps_done(other)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_same(one[part], other[part], part)
    assert steps_done(read_checkpoint(last)) == MAX_STEPS
    assert rows_of(killed / "metrics.csv") == rows_of(whole / "metrics.csv")
    assert rows_of(killed / "results.csv") == rows_of(whole / "results.csv")


def test_a_run_that_was_moved_remembers_its_best_score_and_leaves_its_old_place_alone(long_command, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    words = [*long_command, "logger=tensorboard", f"hydra.run.dir={old}"]
    kill_after_new_checkpoints(words, old / "checkpoints" / "last.ckpt", 8)
    old.rename(new)
    run(sys.executable, "train.py", f"resume={new}")
    assert not old.exists()
    validated = [float(row["val/psnr"]) for row in rows_of(new / "metrics.csv") if row["val/psnr"]]
    (best,) = [
        state["best_model_score"].item()
        for name, state in read_checkpoint(new / "checkpoints" / "last.ckpt")["callbacks"].items()
        if name.startswith("BestCheckpoint")
    ]
    assert best == pytest.approx(max(validated), rel=2**-23)  # kept in float32


def test_resuming_with_other_settings_names_them(command, tmp_path):
    run_dir = tmp_path / "run"
    run(*command, f"hydra.run.dir={run_dir}")
    done = run(*command, f"resume={run_dir}", "model=srcnn", "seed=1", check=False)
    assert done.returncode == 1
    assert "seed: was 0, asked 1" in done.stdout
    assert "model.network._target_: was sr_lightning.networks.ESPCN, asked sr_lightning.networks.SRCNN" in done.stdout
    assert run(*command, f"resume={run_dir}").returncode == 0  # its own settings are welcome


def test_resuming_what_is_no_run_says_so(command, tmp_path):
    done = run(sys.executable, "train.py", f"resume={tmp_path / 'nothing'}", check=False)
    assert done.returncode == 1
    assert "is not the directory of a run" in done.stdout
