"""A stopped and resumed run equals an uninterrupted one bit for bit."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from sr_lightning.callbacks import BestCheckpoint
from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.networks import Compact
from sr_lightning.optim import warmup_cosine
from tests.helpers import ROOT, Command, differences, metrics_of, rows_of, run
from tests.kill_chains import differences_of_runs
from tests.training.test_ddp import Machines

# Checkpoints fall before, on and between validations, and between two logged means.
OFTEN = ["val_every=20", "save_every=5", "log_every=7", "num_comparisons=0", "model.ema=0.99", "max_steps=45"]
ADVERSARIAL = [
    *OFTEN,
    *("model=srresnet", "model.network.num_features=8", "model.network.num_blocks=1", "gan=srgan"),
    *("data.patch_size=16", "model.loss.terms.content.weights=random", "~model.loss.terms.content.layers.5_4"),
    *("+model.loss.terms.content.layers.1_2=1", "model.discriminator.num_features=4"),
]
SKIPPING = ["model.loss._target_=tests.training.failing.SometimesNaN", "model.max_skipped_batches=100", "allow=tests"]
TAUGHT = [
    *(*OFTEN, "model=compact", "model.network.num_features=8", "model.network.num_blocks=1"),
    *("model.teacher=TEACHER", "model.teacher_steps=30"),
]
REAL_ESRGAN = [  # on the small pictures, with every augmentation and a loss that needs the averaged network
    *(*OFTEN, "max_steps=25", "experiment=realesrgan_paper", "data=folder", "data.cutblur=0.3", "data.mixup=0.3"),
    *("data.channel_shuffle=0.3", "model.network.num_features=4", "model.network.num_blocks=1"),
    *("model.network.growth=4", "model.discriminator.num_features=4", "model.loss.terms.content.weights=random"),
    *(f"~model.loss.terms.content.layers.{layer}" for layer in ("2_2", "3_4", "4_4", "5_4")),
    *("data.num_workers=1", "comparisons_every=null", "+model.loss.weights.ldl=1"),
    *("+model.loss.terms.ldl._target_=sr_lightning.losses.LDL", "+model.loss.terms.ldl.refined=true"),
]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def killed(words: list, plan: dict) -> subprocess.CompletedProcess:
    """Run a command that is killed at a point (see tests/killing.py)."""
    return Command("-m", "tests.killing", *words, environment={"SR_KILL": json.dumps(plan)}).wait()


def stop_in_step(words: list, run_dir: Path, number: int, signum: int = signal.SIGKILL, processes: int = 1) -> int:
    """Send a run a signal in its step of this number since it began or was resumed; return that of its checkpoint.

    SIGKILL ends all processes of the run; another signal reaches the first of them, which saves.
    """
    plan = {"phase": "step", "point": "before training_step", "pass": number, "signals": [signum]}
    if processes == 1:
        done = killed(words, plan)
    else:
        ranks = range(processes) if signum == signal.SIGKILL else [0]
        done, *_ = Machines(*words, devices=processes, nodes=1, kills=dict.fromkeys(ranks, plan)).wait()
    saved = steps_done(read_checkpoint(run_dir / "checkpoints" / "last.ckpt"))
    if signum == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL, done
    else:
        name = signal.Signals(signum).name
        assert done.returncode == 128 + signum
        assert f"stopped by {name}, saved at step {saved}. To go on: python train.py resume={run_dir}" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
    return saved


@pytest.mark.parametrize(
    ("settings", "signals", "processes"),
    [
        ([*OFTEN, *SKIPPING], (signal.SIGKILL, signal.SIGINT), 1),
        (TAUGHT, (signal.SIGKILL,), 1),
        (ADVERSARIAL, (signal.SIGHUP, signal.SIGKILL), 1),
        (ADVERSARIAL, (signal.SIGKILL, signal.SIGTERM), 2),
        (REAL_ESRGAN, (signal.SIGKILL,), 1),
        pytest.param(
            [*OFTEN, "compile=true", "model.network.num_features=[4]", "model.network.kernel_sizes=[3,3]"],
            (signal.SIGKILL,),
            1,
            marks=pytest.mark.skipif(not COMPILER, reason="no C++ compiler"),
        ),
    ],
    ids=[
        "pixel loss, with batches skipped",
        "with a teacher",
        "adversarial",
        "adversarial in two processes",
        "Real-ESRGAN with augmentations",
        "compiled",
    ],
)
@pytest.mark.slow
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(command, tmp_path, settings, signals, processes):
    whole, killed, teacher = tmp_path / "whole", tmp_path / "killed", tmp_path / "teacher.pth"
    torch.save(Compact(scale=2, num_features=16, num_blocks=1).state_dict(), teacher)
    settings = [word.replace("TEACHER", str(teacher)) for word in settings]
    if processes == 1:
        run(*command, *settings, f"hydra.run.dir={whole}")
    else:
        settings = [*settings, "log_every=5"]
        done = Machines(*command, *settings, f"hydra.run.dir={whole}", devices=processes, nodes=1).wait()
        assert [each.returncode for each in done] == [0] * processes, done
    max_steps = steps_done(read_checkpoint(whole / "checkpoints" / "last.ckpt"))

    last = killed / "checkpoints" / "last.ckpt"
    words = [*command, *settings, f"hydra.run.dir={killed}"]
    stops = []
    for number, signum in zip((18, 13), signals, strict=False):
        stops.append(stop_in_step(words, killed, number, signum, processes))
        words = ["train.py", f"resume={killed}", *(["allow=tests"] if SKIPPING[0] in settings else [])]
    assert 0 < stops[0] <= stops[-1] < max_steps
    assert stops == sorted(set(stops))
    run(*words)  # which starts its further processes itself

    assert steps_done(read_checkpoint(last)) == max_steps
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = read_checkpoint(killed / "checkpoints" / name)
        assert checkpoint["global_step"] == steps_done(checkpoint)
        assert (SKIPPING[0] in settings) == ("skipped_batches" in checkpoint)
    assert not list(differences_of_runs(whole, killed))


@pytest.mark.slow
def test_moved_run_resumes_in_its_new_directory_with_its_best_score(command, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    words = [*command, *OFTEN, "max_steps=60", "logger=tensorboard", f"hydra.run.dir={old}"]
    plan = {"phase": "write", "point": "after last.ckpt", "pass": 9, "signals": [signal.SIGKILL]}
    assert killed(words, plan).returncode == -signal.SIGKILL
    old.rename(new)
    run("train.py", f"resume={new}")
    assert not old.exists()
    validated = [float(row["val/psnr"]) for row in rows_of(new / "metrics.csv") if row["val/psnr"]]
    (best,) = [
        state["best_model_score"].item()
        for name, state in read_checkpoint(new / "checkpoints" / "last.ckpt")["callbacks"].items()
        if name.startswith("BestCheckpoint")
    ]
    assert best == pytest.approx(max(validated), rel=2**-23)  # kept in float32


def test_best_checkpoint_loads_all_of_its_state(tmp_path):
    saved = BestCheckpoint(tmp_path, monitor="val/psnr")
    saved.current_score = saved.best_model_score = torch.tensor(30.0)
    loaded = BestCheckpoint(tmp_path, monitor="val/psnr")
    loaded.load_state_dict(saved.state_dict())
    assert not list(differences(saved.state_dict(), loaded.state_dict(), "state"))


def test_resuming_a_folder_without_a_run_is_an_error(command, tmp_path):
    done = run("train.py", f"resume={tmp_path / 'nothing'}", check=False)
    assert done.returncode == 1
    assert "is not the directory of a run" in done.stderr


EXTENSIONS = {"stretch": [0, 120], "restart": [60, 60]}


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """A finished run of 60 steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run(*command, *OFTEN, "max_steps=60", f"hydra.run.dir={run_dir}")
    return run_dir


@pytest.mark.slow
def test_resuming_with_other_settings_names_them(command, finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    words = [*command, *OFTEN, "max_steps=60", f"resume={run_dir}"]
    done = run(*words, "model=srcnn", "seed=1", check=False)
    assert done.returncode == 1
    assert "seed: was 0, requested 1" in done.stdout
    assert (
        "model.network._target_: was sr_lightning.networks.ESPCN, requested sr_lightning.networks.SRCNN" in done.stdout
    )
    assert run(*words).returncode == 0  # its own settings are accepted


@pytest.mark.parametrize("how", EXTENSIONS)
@pytest.mark.slow
def test_finished_run_is_extended_with_the_stated_learning_rates_to_the_same_bits(finished, tmp_path, how):
    whole, killed = (shutil.copytree(finished, tmp_path / name) for name in ("whole", "killed"))
    run("train.py", f"resume={whole}", "max_steps=120", f"extend={how}")
    words = ["train.py", f"resume={killed}", "max_steps=120", f"extend={how}"]
    assert stop_in_step(words, killed, 18) == 75
    run(*words)  # the same command again goes on; so does resume= alone
    assert not list(differences_of_runs(whole, killed))

    begin, length = EXTENSIONS[how]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    share = warmup_cosine(optimizer, length, begin=begin).lr_lambdas[0]
    rates = {int(row["step"]): float(row["train/learning_rate"]) for row in metrics_of(whole) if row["train/loss"]}
    assert {step: 3e-3 * share(step - 1) for step in rates if step > 60} == pytest.approx(
        {step: rate for step, rate in rates.items() if step > 60}, rel=1e-6
    )
    assert max(rates) == 119  # the last multiple of log_every
    (extended,) = read_checkpoint(whole / "checkpoints" / "last.ckpt")["hyper_parameters"]["extended"]
    assert extended == {"step": 60, "max_steps": 120, "schedule": how}


@pytest.mark.slow
def test_run_killed_between_best_and_last_is_extended_from_the_later_one(command, tmp_path):
    """From the earlier one, best.ckpt would be of steps that are trained in another way."""
    plan = {"phase": "write", "point": "after best.ckpt", "pass": 1, "signals": [signal.SIGKILL]}
    words = [*command, "val_every=20", "save_every=15", "max_steps=30", f"hydra.run.dir={tmp_path}"]
    assert killed(words, plan).returncode == -signal.SIGKILL
    best, last = (tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert [steps_done(read_checkpoint(path)) for path in (best, last)] == [20, 15]
    run("train.py", f"resume={tmp_path}", "max_steps=50", "extend=restart")
    (extended,) = read_checkpoint(last)["hyper_parameters"]["extended"]
    assert extended == {"step": 20, "max_steps": 50, "schedule": "restart"}


def test_the_last_checkpoint_names_its_run(finished):
    done = run("train.py", f"resume={finished / 'checkpoints' / 'last.ckpt'}")
    assert "nothing is left to train: all 60 steps are done" in done.stdout
    assert not (finished / "checkpoints" / "last.ckpt").is_dir()


def test_extending_asks_what_becomes_of_the_schedule_and_changes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in ("train.log", ".lock")}
    for words, message in {
        ("max_steps=90",): "Add extend=stretch for the schedule of 90 steps from step 60 on, or extend=restart",
        ("max_steps=30",): "the run has max_steps=60; give more to extend it",
        ("max_steps=90", "extend=x"): "extend=x: choose stretch or restart",
    }.items():
        done = run("train.py", f"resume={finished}", *words, check=False)
        assert done.returncode == 1
        assert message in done.stdout
        assert "Traceback" not in done.stdout
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in ("train.log", ".lock")}
    assert before.keys() == after.keys()
    assert all(after[path] == time for path, time in before.items() if path.is_file())


@pytest.mark.slow
def test_a_sweep_keeps_its_cell_when_that_is_extended(finished, tmp_path):
    sweep = tmp_path / "sweep"
    cell = shutil.copytree(finished, sweep / "cell")
    (sweep / ".sweep").mkdir()
    done = run(ROOT / "train.py", f"resume={cell}", "max_steps=80", "extend=stretch", cwd=tmp_path)
    copy = tmp_path / "outputs" / "cell_to_80"
    assert "the sweep keeps its cell" in done.stdout
    assert steps_done(read_checkpoint(copy / "checkpoints" / "last.ckpt")) == 80
    assert steps_done(read_checkpoint(cell / "checkpoints" / "last.ckpt")) == 60
    assert (cell / "result.json").read_bytes() == (finished / "result.json").read_bytes()
