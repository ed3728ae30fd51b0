"""A signal ends a run with its state saved, and the resumed run equals an uninterrupted one in every bit."""

# ruff: noqa: F811  fit is a fixture

import os
import signal

import pytest
import pytorch_lightning as pl
import torch

from sr_lightning.callbacks import Pruning
from sr_lightning.checkpoints.checkpoint import is_trained, steps_done
from sr_lightning.utils.signals import Interrupted, interruptible, postponed
from tests.helpers import Command
from tests.training.test_epoch_loop import LONGEST, ONE, Fit, assert_same_run, fit, read  # noqa: F401


class SignalInStep(torch.nn.L1Loss):
    """Loss that sends the process a signal in one of its calls."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.calls, self.step = 0, step

    def forward(self, sr, hr):
        self.calls += self.training
        if self.calls == self.step:
            signal.raise_signal(signal.SIGTERM)
        return super().forward(sr, hr)


class KillInStep(SignalInStep):
    """Loss that ends the training in one of its calls, without a save."""

    def forward(self, sr, hr):
        if self.calls + self.training == self.step:
            raise RuntimeError("killed")
        return super().forward(sr, hr)


class SignalInValidation(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, module, *args):
        if module.batches_done == self.step:
            signal.raise_signal(signal.SIGINT)


def stop(fit: Fit, *words: str, **settings) -> str:
    group_seconds = settings.pop("group_seconds")
    with pytest.raises(Interrupted) as caught, interruptible(), postponed():
        fit("stopped", group_seconds, *words, **settings)
    return str(caught.value)


def resume(fit: Fit, group_seconds: float):
    return fit("stopped", group_seconds, ema=0.9, resume=str(fit.folder / "stopped" / "checkpoints" / "last.ckpt"))


@pytest.mark.parametrize("group_seconds", [ONE, LONGEST])
@pytest.mark.parametrize("step", [1, 9, 14])
def test_signal_in_a_step_saves_after_it_or_after_its_group(fit, step, group_seconds):
    whole = fit("whole", ONE, ema=0.9)
    message = stop(fit, group_seconds=group_seconds, ema=0.9, loss=SignalInStep(step))
    saved = steps_done(read(fit.folder / "stopped", "last"))
    assert message == f"stopped by SIGTERM, saved at step {saved}"
    assert saved == {1: 1, 9: 9 if group_seconds == ONE else 14, 14: 14}[step]
    assert_same_run(whole, resume(fit, LONGEST))


@pytest.mark.parametrize("step", [15, 40])
def test_signal_before_or_within_a_validation_leaves_it_to_the_resumed_run(fit, step):
    whole = fit("whole", ONE, ema=0.9)
    for name, settings in {
        "before": {"loss": SignalInStep(step)},
        "within": {"callbacks": (SignalInValidation(step),)},
    }.items():
        message = stop(fit, group_seconds=LONGEST, ema=0.9, **settings)
        assert message.endswith(f"saved at step {step}"), name
        saved = read(fit.folder / "stopped", "last")
        assert steps_done(saved) == step
        assert not is_trained(saved, 40)
        assert_same_run(whole, resume(fit, ONE))
        assert is_trained(read(fit.folder / "stopped", "last"), 40)
        (fit.folder / "stopped").rename(fit.folder / name)


def test_save_or_stop_waits_for_the_step_of_accumulated_gradients(fit):
    words = ["+trainer.accumulate_grad_batches=3"]
    whole = fit("whole", ONE, *words)
    assert steps_done(read(whole, "last")) == 40  # the last batch is a step of its own
    message = stop(fit, *words, group_seconds=ONE, loss=SignalInStep(10))
    assert message == "stopped by SIGTERM, saved at step 12"
    last = str(fit.folder / "stopped" / "checkpoints" / "last.ckpt")
    assert_same_run(whole, fit("stopped", ONE, *words, resume=last))

    with pytest.raises(RuntimeError, match="killed"):
        fit("killed", ONE, *words, loss=KillInStep(11))  # save_every=8
    last = fit.folder / "killed" / "checkpoints" / "last.ckpt"
    assert steps_done(read(fit.folder / "killed", "last")) == 9
    assert_same_run(whole, fit("killed", ONE, *words, resume=str(last)))


class Hopeless(Pruning):
    """Stops at the first validation at which it may."""

    def is_hopeless(self, step: int) -> bool:
        return True


def test_pruning_waits_for_a_validation_at_a_step_of_accumulated_gradients(fit):
    words = ["+trainer.accumulate_grad_batches=2"]
    whole, pruned = fit("whole", ONE, *words), fit("pruned", ONE, *words, callbacks=(Hopeless("pruned", 10),))
    assert steps_done(read(pruned, "last")) == 30  # not 15
    assert_same_run(whole, fit("pruned", ONE, *words, resume=str(pruned / "checkpoints" / "last.ckpt")))


def test_signal_before_the_first_step_leaves_no_directory(command, tmp_path):
    run_dir = tmp_path / "run"
    process = Command(*command, "max_steps=100000", f"hydra.run.dir={run_dir}")
    while not (run_dir / ".owner").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGHUP)
    done = process.wait()
    assert done.returncode == 129
    assert "Traceback" not in done.stderr
    assert not run_dir.exists(), done.stdout
