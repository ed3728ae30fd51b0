"""A run without a gain for some validations ends early, is finished, and resumes and extends as others do."""

import shutil
import signal

import pytest

from sr_lightning.callbacks import EarlyStopping
from sr_lightning.callbacks.early_stopping import stopped_early
from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.errors import InputError
from sr_lightning.runs.result import read_result
from sr_lightning.sweeps.cells import read_sweep
from sr_lightning.training.checks import check_settings
from tests.helpers import compose, metrics_of, run
from tests.kill_chains import differences_of_runs
from tests.training.test_ddp import Machines
from tests.training.test_resume import stop_in_step

# The first validation, at step 10, is a gain over none; the three after it are none over 50 dB.
STOPPING = ["early_stopping=psnr", "early_stopping.patience=3", "early_stopping.min_delta=50", "num_comparisons=0"]
REASON = "no gain over 50 dB in 3 validations"


@pytest.fixture(scope="module")
def stopped(command, tmp_path_factory):
    """Directory and output of a run that stops at step 40 of 200."""
    run_dir = tmp_path_factory.mktemp("early") / "run"
    done = run(*command, *STOPPING, "max_steps=200", "save_every=5", f"hydra.run.dir={run_dir}")
    return run_dir, done.stdout


def test_run_without_a_gain_ends_and_is_finished(stopped):
    run_dir, output = stopped
    assert f"fewer after {REASON}" in output
    assert f"early, at step 40 of 200: {REASON}" in output
    result = read_result(run_dir)
    assert (result["status"], result["steps"], result["stopped_early"]) == ("finished", 40, REASON)
    assert steps_done(read_checkpoint(run_dir / "checkpoints" / "last.ckpt")) == 40
    assert metrics_of(run_dir)[-1]["step"] == "40"
    assert (run_dir / "results.csv").is_file()


def test_run_that_stopped_early_has_nothing_left_to_train(stopped):
    run_dir, _ = stopped
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name not in ("train.log", ".lock")}
    done = run("train.py", f"resume={run_dir}")
    assert f"nothing is left to train: the run stopped early at step 40 ({REASON})" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_run_killed_after_it_stopped_early_is_scored_and_not_trained(stopped, tmp_path):
    run_dir = shutil.copytree(stopped[0], tmp_path / "killed")
    (run_dir / "result.json").unlink()
    last = (run_dir / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    run("train.py", f"resume={run_dir}")
    assert (run_dir / "checkpoints" / "last.ckpt").stat().st_mtime_ns == last
    assert read_result(run_dir) == read_result(stopped[0])


def test_extended_run_has_its_whole_patience_again(stopped, tmp_path):
    run_dir = shutil.copytree(stopped[0], tmp_path / "extended")
    run("train.py", f"resume={run_dir}", "max_steps=400", "extend=stretch")
    result = read_result(run_dir)
    assert (result["steps"], result["stopped_early"]) == (70, REASON)


def test_stopped_and_resumed_run_ends_at_the_same_step(command, stopped, tmp_path):
    killed = tmp_path / "run"
    words = [*command, *STOPPING, "max_steps=200", "save_every=5", f"hydra.run.dir={killed}"]
    for number, signum in ((18, signal.SIGKILL), (8, signal.SIGINT)):
        assert 0 < stop_in_step(words, killed, number, signum) < 40
        words = ["train.py", f"resume={killed}"]
    run(*words)
    assert not list(differences_of_runs(stopped[0], killed))


@pytest.mark.slow
def test_both_processes_of_a_run_stop_at_the_same_step(command, tmp_path):
    words = [*command, *STOPPING, "log_every=5", "max_steps=200", "save_top_k=2", f"hydra.run.dir={tmp_path}"]
    assert [done.returncode for done in Machines(*words, devices=2, nodes=1).wait()] == [0, 0]
    assert read_result(tmp_path)["steps"] == 40
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_status_of_a_sweep_names_the_cell_that_stopped_early(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "sweep" / "cell")
    (cell,) = read_sweep(tmp_path / "sweep").cells
    assert (cell.status, cell.step, cell.max_steps) == ("stopped early", 40, 200)
    assert cell.psnr == read_result(stopped[0])["psnr"]


def test_patience_that_reached_zero_is_whole_again_in_an_extended_run():
    settings = {"monitor": "val/psnr", "patience": 3, "min_delta": 0.1}
    callback = EarlyStopping(**settings)
    for saved, loaded in ((2, 2), (3, 0)):
        callback.wait_count = saved
        state = callback.state_dict()
        assert stopped_early({"callbacks": {callback.state_key: state}}) == (saved == 3)
        other = EarlyStopping(**settings)
        other.load_state_dict(state)
        assert other.wait_count == loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("early_stopping.patience=0", "early_stopping.patience=0 (must be a whole number of at least 1)"),
        ("early_stopping.monitor=val/loss", "early_stopping.monitor=val/loss: choose val/psnr or val/ssim"),
        ("early_stopping.min_delta=-1", "early_stopping.min_delta=-1: give a number of at least 0"),
        ("early_stopping.min_delta=inf", "early_stopping.min_delta=inf: give a number of at least 0"),
    ],
)
def test_wrong_setting_is_one_line_that_names_it(override, message):
    with pytest.raises(InputError) as raised:
        check_settings(compose("early_stopping=psnr", override))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_settings_without_the_option_are_refused():
    cfg = compose("+early_stopping.patience=3")
    with pytest.raises(InputError, match="choose early_stopping=psnr first"):
        check_settings(cfg)
