"""Groups of steps change no bit of a run."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from sr_lightning.callbacks import Progress
from sr_lightning.checkpoints.checkpoint import steps_done
from sr_lightning.data import FolderDataModule
from sr_lightning.data.pair_images import Degradation
from sr_lightning.degradations import Bicubic, Noise, RandomDegradation, Resize
from sr_lightning.errors import DivergedError
from sr_lightning.loggers import MetricsCSV
from sr_lightning.modules import SRModule
from sr_lightning.modules.recorded_step import Recorder
from sr_lightning.networks import ESPCN
from sr_lightning.optim import Muon, warmup_cosine
from sr_lightning.training import epoch_loop
from sr_lightning.training.trainer import build_trainer
from tests.fake_graph import FakeGraph
from tests.helpers import compose, differences, metrics_of

STEPS = {"max_steps": 40, "val_every": 15, "save_every": 8}
LOG_EVERY = 7  # groups of any length end at 7, 8, 14, 15, 16, ...
ONE, LONGEST = 0.0, 1e9  # seconds of a group
BRIGHT = 0.5085  # mean of the HR of batches 2, 7, 24 (saved before it is logged), 35, 36 and 40


def read(run_dir: Path, name: str) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


class Fit:
    """A function that trains with the trainer of train.py, and notes which batches Lightning's loop has seen."""

    def __init__(self, pictures: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.pictures, self.folder, self.patch = pictures, folder, patch
        self.seen: list[int] = []
        noted = Progress.on_train_batch_end

        def note(progress, trainer, module, outputs, batch, batch_idx):
            self.seen.append(batch_idx + 1)
            noted(progress, trainer, module, outputs, batch, batch_idx)

        patch.setattr(Progress, "on_train_batch_end", note)

    def __call__(
        self,
        name: str,
        group_seconds: float,
        *words: str,
        resume: str | None = None,
        callbacks: tuple[pl.Callback, ...] = (),
        module_class: type[SRModule] = SRModule,
        loss: torch.nn.Module | None = None,
        record: Recorder | None = None,
        degradation: Degradation | None = None,
        **options: Any,
    ) -> Path:
        self.patch.setattr(epoch_loop, "GROUP_SECONDS", group_seconds)
        self.seen.clear()
        torch.manual_seed(0)
        network = ESPCN(scale=2, num_features=(8,), kernel_sizes=(3, 3))
        schedule, optimizer = partial(warmup_cosine, total_steps=STEPS["max_steps"]), partial(Muon, lr=1e-3)
        options = {"scheduler": schedule, "optimizer": optimizer} | options
        module = module_class(network, loss or torch.nn.L1Loss(), log_every=LOG_EVERY, **options)
        module.record = record
        data = FolderDataModule(
            *(str(self.pictures),), scale=2, degradation=degradation or Bicubic(), patch_size=8, batch_size=4, seed=0,
            max_steps=STEPS["max_steps"], cache_dir=self.folder / "cache",
        )  # fmt: skip
        run_dir = self.folder / name
        cfg = compose("trainer=cpu", "trainer.precision=32-true", *words)
        loggers = [MetricsCSV(run_dir / "metrics.csv", steps_done(read(run_dir, "last")) if resume else 0)]
        callbacks = [Progress(STEPS["max_steps"], 4), *callbacks]
        trainer = build_trainer(cfg.trainer, module, loggers, callbacks, run_dir=run_dir, **STEPS)
        trainer.fit(module, data, ckpt_path=resume)
        return run_dir


@pytest.fixture
def fit(pictures, tmp_path, monkeypatch) -> Fit:
    return Fit(pictures, tmp_path, monkeypatch)


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that the checkpoints are equal in every bit, with all counters, except for seconds and paths."""
    for name in ("last", "best"):
        checkpoints = [read(run, name) for run in (one, other)]
        for checkpoint in checkpoints:
            assert checkpoint["callbacks"].pop("Progress")["seconds"] > 0
            for state in checkpoint["callbacks"].values():
                state |= dict.fromkeys(("dirpath", "best_model_path", "kth_best_model_path", "best_k_models"))
        assert not list(differences(*checkpoints, name))
    assert metrics_of(one) == metrics_of(other)


ENDS = sorted({step for every in (LOG_EVERY, *list(STEPS.values())[1:]) for step in range(every, 40, every)} | {40})


SETTINGS = pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["trainer.gradient_clip_val=1e-3"], {"ema": 0.9}),
        (["trainer.gradient_clip_val=1e-5", "+trainer.gradient_clip_algorithm=value"], {"scheduler": None}),
        (["trainer.precision=bf16-mixed"], {"ema": 0.9}),
    ],
    ids=["schedule", "clipped norm and moving average", "clipped values", "bfloat16 and moving average"],
)


@SETTINGS
def test_groups_of_any_size_give_the_same_checkpoints_and_metrics(fit, words, options):
    alone = fit("alone", ONE, *words, **options)
    assert fit.seen == list(range(1, 41))
    grouped = fit("grouped", LONGEST, *words, **options)
    assert fit.seen == [1, *ENDS]  # the time of a step is unknown before the first
    assert_same_run(alone, grouped)
    assert steps_done(read(grouped, "last")) == 40


@SETTINGS
def test_replayed_steps_give_the_same_checkpoints_and_metrics(fit, words, options):
    plain = fit("plain", ONE, *words, **options)
    for name, seconds in (("alone", ONE), ("grouped", LONGEST)):
        assert_same_run(plain, fit(name, seconds, *words, record=FakeGraph, **options))


class SometimesNaN(torch.nn.Module):
    """NaN for bright images, whatever the network computes."""

    def forward(self, sr, hr):
        return torch.nn.functional.l1_loss(sr, hr) * torch.where(hr.mean() > BRIGHT, torch.nan, 1.0)


@pytest.mark.parametrize(
    ("optimizer", "record"),
    [(partial(Muon, lr=1e-3), None), (partial(torch.optim.AdamW, lr=1e-3), lambda program: program)],
    ids=["Muon", "AdamW, fused in both"],
)
def test_recorded_steps_leave_out_batches_as_others_do(fit, caplog, optimizer, record):
    settings = {"loss": SometimesNaN(), "ema": 0.9, "max_skipped_batches": 6, "optimizer": optimizer}
    plain = fit("plain", ONE, record=record, **settings)
    assert read(plain, "last")["skipped_batches"] == [2, 7, 24, 35, 36, 40]
    text = "batch 40 is skipped: its gradients are NaN or infinite (6 of at most 6)"
    assert text in caplog.text
    caplog.clear()
    recorded = fit("recorded", LONGEST, record=FakeGraph, **settings)
    assert text in caplog.text
    with pytest.raises(RuntimeError, match="stopped"):
        fit("stopped", LONGEST, callbacks=(StopAt(30),), record=FakeGraph, **settings)
    last = str(fit.folder / "stopped" / "checkpoints" / "last.ckpt")
    resumed = fit("stopped", LONGEST, resume=last, record=FakeGraph, **settings)
    for other in (recorded, resumed):
        assert_same_run(plain, other)
    settings["max_skipped_batches"] = 4
    with pytest.raises(DivergedError, match="gradients of batch 36 are NaN or infinite, after 4 skipped batches"):
        fit("ended", LONGEST, record=FakeGraph, **settings)


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses a GPU cannot be forked")
@pytest.mark.parametrize("options", [{}, {"loss": SometimesNaN(), "max_skipped_batches": 20}], ids=["all", "some"])
def test_recorded_steps_of_two_processes_are_those_of_distributed_data_parallel(fit, options):
    two = ("trainer.devices=2", "+trainer.strategy=ddp_fork")
    runs = [fit(str(record), ONE, *two, record=record, ema=0.9, **options) for record in (None, FakeGraph)]
    if not options:
        assert_same_run(*runs)
        return
    plain, recorded = (read(run, "last") for run in runs)  # whose mean losses leave out all of a skipped batch
    assert plain["skipped_batches"]
    for key in ("state_dict", "optimizer_states", "skipped_batches", "gradient_norms"):
        assert not list(differences(plain[key], recorded[key], key))


class StopAt(pl.Callback):
    """Raise at the end of a validation, before it is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_end(self, trainer, module):
        if module.batches_done == self.step:
            raise RuntimeError("stopped")


@pytest.mark.parametrize(("before", "after"), [(ONE, LONGEST), (LONGEST, ONE), (LONGEST, LONGEST)])
def test_run_resumed_with_groups_of_another_size_equals_an_uninterrupted_one(fit, before, after):
    whole = fit("whole", ONE, ema=0.9)
    with pytest.raises(RuntimeError, match="stopped"):
        fit("stopped", before, ema=0.9, callbacks=(StopAt(30),))
    assert steps_done(read(fit.folder / "stopped", "last")) == 24
    resumed = fit("stopped", after, ema=0.9, resume=str(fit.folder / "stopped" / "checkpoints" / "last.ckpt"))
    assert fit.seen == (list(range(25, 41)) if after == ONE else [25, 26, *(end for end in ENDS if end > 26)])
    assert_same_run(whole, resumed)


class Copying(pl.Callback):
    """Copies the module, as callbacks that average weights do."""

    def on_validation_end(self, trainer, module):
        self.copy = copy.deepcopy(module)
        assert not list(differences(self.copy.state_dict(), module.state_dict(), "copy"))


def test_replayed_run_resumes_in_the_same_bits_and_can_be_copied(fit):
    """Step and random degradation."""
    options = {
        "ema": 0.9,
        "degradation": RandomDegradation("short", {"resize": Resize(relative_to="lr"), "noise": Noise()}),
    }
    plain, copying = fit("plain", ONE, **options), Copying()
    with pytest.raises(RuntimeError, match="stopped"):
        fit("stopped", LONGEST, callbacks=(copying, StopAt(30)), record=FakeGraph, **options)
    assert copying.copy.recorded is None
    last = str(fit.folder / "stopped" / "checkpoints" / "last.ckpt")
    assert_same_run(plain, fit("stopped", LONGEST, resume=last, record=FakeGraph, **options))


class EachBatch(pl.Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.count += 1


def test_second_training_of_a_module_is_recorded_with_its_own_optimizer(fit, monkeypatch):
    modules, build = [], epoch_loop.GroupedEpochLoop.install
    monkeypatch.setattr(
        epoch_loop.GroupedEpochLoop,
        "install",
        lambda trainer, *every: modules.append(trainer) or build(trainer, *every),
    )
    fit("first", LONGEST, record=FakeGraph)
    (trainer,) = modules
    module, data, first = trainer.lightning_module, trainer.datamodule, trainer.optimizers
    again = pl.Trainer(max_steps=2, logger=False, enable_checkpointing=False, limit_val_batches=0, accelerator="cpu")
    again.fit(module, data)
    assert module.recorded.optimizers is again.optimizers and again.optimizers is not first


class OwnModule(SRModule):
    pass


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["+trainer.accumulate_grad_batches=2"], {}),
        (["+trainer.profiler=simple"], {}),
        ([], {"callbacks": (EachBatch(),)}),
        (["+trainer.callbacks=[{_target_: tests.training.test_epoch_loop.EachBatch}]"], {}),
        ([], {"module_class": OwnModule}),
    ],
    ids=["accumulated gradients", "profiler", "callback", "callback named in the config", "module of the user"],
)
def test_every_step_is_lightnings_where_its_hooks_are_needed(fit, words, settings):
    fit("run", LONGEST, *words, **settings)
    assert fit.seen == list(range(1, 41))
    for callback in settings.get("callbacks", ()):
        assert callback.count == 40


def test_group_of_a_slow_step_is_that_step(fit):
    trainer_loop = epoch_loop.GroupedEpochLoop(pl.Trainer(logger=False, enable_checkpointing=False), (100,))
    trainer_loop.trainer.fit_loop.max_batches = 1000
    for seconds, steps in [(math.inf, 1), (0.06, 1), (0.024, 2), (0.005, 10), (1e-9, 100)]:
        trainer_loop._step_seconds = seconds
        assert trainer_loop._steps_of_group() == steps
    trainer_loop.batch_progress.increment_by(95)
    assert trainer_loop._steps_of_group() == 5
