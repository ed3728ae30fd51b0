"""launcher=slurm against a stand-in of SLURM (tests/slurm_stand_in.py), which runs jobs as processes and ends them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.errors import InputError
from sr_lightning.sweeps.callback import check_waiting
from sr_lightning.sweeps.cells import read_sweep
from sr_lightning.sweeps.invocation import SweepInvocation
from sr_lightning.sweeps.processes import start_command
from sr_lightning.sweeps.slurm_queue import queued_cells, slurm_message
from tests import slurm_stand_in
from tests.helpers import Command, differences, metrics_of, run
from tests.sweeps import test_sweeps
from tests.sweeps.test_sweeps import reports, results

APP = ["tests/sweeps/app.py", "-m", "max_steps=10", "launcher=slurm", "trainer=cpu"]
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of the stand-in's state, and its commands on the PATH."""
    pytest.importorskip("submitit", reason="launcher=slurm needs hydra-submitit-launcher")
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{slurm_stand_in.install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(folder))
    yield folder
    slurm_stand_in.end_all(folder)


def wait_for(condition):
    return test_sweeps.wait_for(condition, seconds=200)


def states(folder: Path) -> list[str]:
    return [task["state"] for task in slurm_stand_in.tasks(folder)]


@pytest.mark.slow
def test_command_submits_and_leaves_and_the_same_command_collects_without_submitting_again(slurm, tmp_path):
    sweep = tmp_path / "left"
    words = [*APP, f"hydra.sweep.dir={sweep}", "hydra.launcher.name='of mine, all'"]
    (slurm / "hold").touch()
    done = run(*words, "seed=1,2", "sweep_wait=false")
    assert "2 cells, 2 waiting" in done.stdout
    assert "the same command collects their results" in done.stdout
    assert states(slurm) == ["PENDING"] * 2
    assert [cell.status for cell in read_sweep(sweep).cells] == ["waiting"] * 2

    waiting = Command(*words, "seed=1,2,3")
    wait_for(lambda: len(states(slurm)) > 2)
    assert len(states(slurm)) == 3  # the cells that are queued are not submitted again
    (slurm / "hold").unlink()
    done = waiting.wait()
    assert done.returncode == 0, done.stderr
    assert "3 cells, 3 finished" in done.stdout
    assert {seed: result["psnr"] for seed, result in results(sweep).items()} == {1: 30.1, 2: 30.2, 3: 30.3}
    assert {cell.status for cell in read_sweep(sweep).cells} == {"finished"}

    done = run(*words, "seed=1,2,3", "sweep_wait=false")
    assert "3 cells, 3 skipped" in done.stdout
    assert len(states(slurm)) == 3


@pytest.mark.cluster
@pytest.mark.slow
def test_cell_that_is_preempted_twice_equals_an_undisturbed_one(slurm, command, tmp_path):
    words = [*command, "max_steps=300", "val_every=20", "save_every=10", "num_comparisons=0"]
    sweep, whole = tmp_path / "sweep", tmp_path / "whole"
    run(*words, "launcher=slurm", "sweep_wait=false", f"hydra.sweep.dir={sweep}", "-m")
    last = wait_for(lambda: list(sweep.glob("*/checkpoints/last.ckpt")))[0]
    slurm_stand_in.order(slurm, "1", "preempt")
    wait_for(lambda: slurm_stand_in.tasks(slurm)[0]["starts"] == 2)
    saved = steps_done(read_checkpoint(last))
    assert 0 < saved < 300
    wait_for(lambda: steps_done(read_checkpoint(last)) > saved)
    slurm_stand_in.order(slurm, "1", "fail")
    wait_for(lambda: slurm_stand_in.tasks(slurm)[0]["starts"] == 3)
    assert steps_done(read_checkpoint(last)) < 300
    wait_for(lambda: states(slurm) == ["COMPLETED"])
    (report,) = reports(sweep)
    assert report["status"] == "resumed"

    run(*words, f"hydra.run.dir={whole}")
    preempted = last.parents[1]
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_checkpoint(cell / "checkpoints" / name) for cell in (preempted, whole))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert not list(differences(one[part], other[part], part))
    assert metrics_of(preempted) == metrics_of(whole)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(("order", "minute"), [("limit", 60), ("preempt 4", 1)])
def test_job_that_is_told_of_its_end_saves_is_queued_again_and_resumes(slurm, tmp_path, monkeypatch, order, minute):
    monkeypatch.setenv("SLURM_STAND_IN_MINUTE", str(minute))
    sweep = tmp_path / "sweep"
    run(*APP, "seed=4", "sweep_wait=false", f"hydra.sweep.dir={sweep}")
    wait_for(lambda: list(sweep.glob("*/checkpoints/last.ckpt")))
    assert states(slurm) == ["RUNNING"]
    slurm_stand_in.order(slurm, "1", order)
    wait_for(lambda: states(slurm) == ["COMPLETED"])
    assert slurm_stand_in.tasks(slurm)[0]["starts"] == 2
    (log,) = sweep.glob("*/train.log")
    assert "stopped by SIGTERM" in log.read_text()  # and not ended by SIGUSR2, which reaches it as well
    (report,) = reports(sweep)
    assert (report["status"], report["psnr"]) == ("resumed", 30.4)


@pytest.mark.cluster
@pytest.mark.slow
def test_jobs_of_a_command_that_was_killed_while_it_submitted_are_found(slurm, tmp_path):
    (slurm / "hold").touch()
    (slurm / "kill_submitter").touch()
    words = [*APP, "seed=1,2", "sweep_wait=false", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert run(*words, check=False).returncode == -signal.SIGKILL
    (slurm / "kill_submitter").unlink()
    run(*words)
    assert states(slurm) == ["PENDING"] * 2


@pytest.mark.cluster
@pytest.mark.slow
def test_cancelled_job_is_one_line_and_its_cell_can_be_submitted_again(slurm, tmp_path):
    sweep = tmp_path / "sweep"
    (slurm / "hold").touch()
    words = [*APP, "seed=1", f"hydra.sweep.dir={sweep}"]
    waiting = Command(*words)
    wait_for(lambda: states(slurm) == ["PENDING"])
    slurm_stand_in.order(slurm, "1", "cancel")
    done = waiting.wait()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 interrupted" in done.stdout
    assert "its job has ended without a result" in done.stdout
    assert [cell.status for cell in read_sweep(sweep).cells] == ["interrupted"]
    run(*words, "sweep_wait=false")
    assert states(slurm) == ["CANCELLED", "PENDING"]


@pytest.mark.cluster
@pytest.mark.slow
def test_refusal_of_sbatch_is_one_line_with_its_message_and_the_settings_and_leaves_no_jobs(slurm, tmp_path):
    sweep = tmp_path / "sweep"
    done = run(*APP, "seed=1,2", "hydra.launcher.partition=wrong", f"hydra.sweep.dir={sweep}", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "sbatch: error" not in done.stdout
    assert "error: launcher=slurm: sbatch: error: Batch job submission failed: Invalid partition name specified" in line
    assert "hydra.launcher.partition=wrong" in line
    assert not [path for path in (*sweep.glob(".submitit/*"), *sweep.glob(".sweep/*")) if path.suffix != ".lock"]


def test_missing_command_of_slurm_is_one_line(tmp_path, monkeypatch):
    slurm_stand_in.install(tmp_path)
    (tmp_path / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    done = run(*APP, "seed=1", f"hydra.sweep.dir={tmp_path / 'sweep'}", check=False)
    assert done.stderr == "error: launcher=slurm: there is no sbatch on this machine; start the sweep on the cluster\n"
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("wait", "launcher", "sweeper", "message"),
    [
        (False, SLURM, OPTUNA, "needs the score of each trial"),
        (False, "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "", "add launcher=slurm"),
        ("no", SLURM, "", "sweep_wait=no: choose true or false"),
    ],
)
def test_sweep_wait_is_refused_where_the_command_is_needed(wait, launcher, sweeper, message):
    check_waiting(None, launcher, sweeper)
    with pytest.raises(InputError, match=message):
        check_waiting(wait, launcher, sweeper)


def test_queue_is_asked_for_open_reports_only(slurm, tmp_path):
    call = tmp_path / ".sweep" / "call"
    call.mkdir(parents=True)
    for number, status in enumerate(("waiting", "running", "finished", "waiting")):
        report = {"cell": f"cell{number}", "status": status, "job": ["train.call.0", number] if number < 3 else None}
        (call / f"{number:05d}.json").write_text(json.dumps(report))
        task = {"number": 7, "index": number, "name": "train.call.0", "state": "RUNNING" if number else "PENDING"}
        (slurm / f"7_{number}.task").write_text(json.dumps(task | {"controller": os.getpid() + 10**7}))
    assert {cell: path.name for cell, path in queued_cells(tmp_path).items()} == {
        "cell0": "00000.json",
        "cell1": "00001.json",
    }
    (slurm / "down").touch()
    with pytest.raises(InputError, match="launcher=slurm: slurm_load_jobs error: Unable to contact"):
        queued_cells(tmp_path)


def test_message_of_slurm_is_its_last_line_marked_as_an_error():
    output = "sbatch: error: invalid account\nsbatch: error: Batch job submission failed: Invalid qos\nsee the manual\n"
    assert slurm_message(output) == "sbatch: error: Batch job submission failed: Invalid qos"
    assert slurm_message("Killed\n") == "Killed"
    assert slurm_message("") == ""


def test_cell_has_saved_before_its_job_is_queued_again(tmp_path):
    submitit = pytest.importorskip("submitit", reason="launcher=slurm needs hydra-submitit-launcher")
    from sr_lightning.sweeps.slurm import SlurmLauncher

    cell, ready, saved = (tmp_path / name for name in ("cell.py", "ready", "saved"))
    save = f"lambda *_: (time.sleep(0.3), open({str(saved)!r}, 'w'), sys.exit(143))"
    lines = ["import signal, sys, time", f"signal.signal(signal.SIGTERM, {save})"]
    cell.write_text("\n".join([*lines, f"open({str(ready)!r}, 'w')", "time.sleep(100)"]))
    process = start_command([str(cell)], os.environ, tmp_path / "log")
    try:
        wait_for(ready.exists)
        launcher = SlurmLauncher.__new__(SlurmLauncher)
        assert isinstance(launcher.checkpoint(["seed=1"]), submitit.helpers.DelayedSubmission)
        assert saved.exists()
        assert process.exitcode == 143
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # as scontrol inherits it
    finally:
        process.kill()


def test_interrupted_command_signals_no_process_by_a_number_of_another_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_LIGHTNING_CALL", "")
    invocation = SweepInvocation.begin(tmp_path, None)
    with subprocess.Popen(["sleep", "100"]) as process:
        invocation.report(0, cell="cell", status="running", process=process.pid)
        invocation.stop_cells()
        try:
            assert process.poll() is None
        finally:
            process.kill()
