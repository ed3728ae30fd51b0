"""Whole sweeps: most with app.py, whose training is a short sleep; one with train.py, killed and restarted."""

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.errors import InputError
from sr_lightning.sweeps import run_lock
from sr_lightning.utils.cores import usable_cores
from tests.helpers import ROOT, Command, compose, differences, metrics_of, run

CHOICES = [f"choices.{name}=null" for name in ("model", "data", "experiment")]  # otherwise known in a job only


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The command of sweeps that train nothing on two simulated GPUs, shared with no other test; and their folder."""
    folder = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TMPDIR", str(folder))  # where the locks are
        yield ["tests/sweeps/app.py", "-m", "max_steps=30"], folder


def reports(sweep: Path) -> list[dict]:
    """The reports of the latest call's jobs."""
    call = max((path.parent for path in sweep.glob(".sweep/*/call.json")), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in sorted(call.glob("0*.json"))]


def results(sweep: Path) -> dict[int, dict]:
    """Seed -> result.json."""
    found = [json.loads(path.read_text()) for path in sweep.glob("*/result.json")]
    return {result["seed"]: result for result in found}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def mixed(app):
    """A finished sweep on both devices with three failed cells: its directory and output."""
    words, folder = app
    sweep = folder / "mixed"
    done = run(*words, "launcher=gpus", "seed=1,13,9,12,2", f"hydra.sweep.dir={sweep}", check=False)
    assert done.returncode == 1
    return sweep, done.stdout + done.stderr


@pytest.mark.slow
def test_failing_cells_fail_alone_with_a_reason(mixed):
    sweep, output = mixed
    found = results(sweep)
    assert {seed: result["status"] for seed, result in found.items()} == {
        1: "finished",
        2: "finished",
        9: "failed",
        12: "failed",
        13: "failed",
    }
    errors = {seed: found[seed]["error"] for seed in (9, 12, 13)}
    assert errors[9] == "killed by signal 9 (SIGKILL): out of memory?"
    assert errors[12] == "seed=12: take another\nor none"
    assert errors[13] == "RuntimeError: thirteen"
    for seed in (12, 13):
        (log,) = sweep.glob(f"*seed{seed}_*/train.log")
        assert errors[seed] in log.read_text()
    for error in errors.values():
        assert f"FAILED, {error}" in output  # at once
        assert f"| {error.splitlines()[0]}" in output.rpartition("5 cells, 2 finished, 3 failed")[2]  # in the end


@pytest.mark.slow
def test_no_device_is_used_by_two_cells(mixed):
    cells = sorted(reports(mixed[0]), key=lambda cell: cell["started"])
    assert {tuple(cell["devices"]) for cell in cells} == {("0",), ("1",)}
    for device in ("0", "1"):
        mine = [cell for cell in cells if cell["devices"] == [device]]
        assert all(one["ended"] <= other["started"] for one, other in pairwise(mine))


@pytest.mark.slow
def test_cells_share_the_cores_and_draw_no_pictures_unless_asked(app, mixed):
    words, folder = app
    (log,) = mixed[0].glob("*seed1_*/train.log")
    assert log.read_text() == f"{max(1, usable_cores() // 2)} cores, 0 pictures\n"
    sweep = folder / "pictures"
    run(*words, "seed=1", "num_comparisons=5", f"hydra.sweep.dir={sweep}")
    (log,) = sweep.glob("*/train.log")
    assert log.read_text() == f"{usable_cores()} cores, 5 pictures\n"


@pytest.mark.slow
def test_same_command_skips_finished_and_retries_failed_cells(app, mixed):
    (words, _), (sweep, _) = app, mixed
    kept = {path: path.stat().st_mtime_ns for seed in (1, 2) for path in sweep.glob(f"*seed{seed}_*/*")}
    done = run(*words, "seed=1,13,2,3", f"hydra.sweep.dir={sweep}", check=False)
    assert done.returncode == 1
    statuses = {report["cell"].split("_")[3]: report["status"] for report in reports(sweep)}
    assert statuses == {"seed1": "skipped", "seed13": "failed", "seed2": "skipped", "seed3": "finished"}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "skipped  30.10 dB" in done.stdout
    assert [report["psnr"] for report in reports(sweep) if report["status"] != "failed"] == [30.1, 30.2, 30.3]
    (damaged,) = sweep.glob("*seed3_*/result.json")
    result = damaged.read_bytes()
    damaged.write_bytes(result[:20])
    done = run(*words, "seed=3", f"hydra.sweep.dir={sweep}")
    assert "result.json cannot be read as the result of a run" in done.stdout
    assert damaged.read_bytes() == result


@pytest.mark.slow
def test_directory_of_a_run_with_other_settings_is_refused(app, mixed):
    (words, _), (sweep, _) = app, mixed
    (cell,) = sweep.glob("*seed2_*")
    other = OmegaConf.to_container(compose("max_steps=31", *CHOICES), resolve=True)
    OmegaConf.save(other, cell / "config.yaml")
    done = run(*words, "seed=2", f"hydra.sweep.dir={sweep}", check=False)
    assert done.returncode == 1
    assert "contains a run with other settings; move it away" in done.stdout
    assert "max_steps: was 31, requested 30" in done.stdout


@pytest.mark.slow
def test_no_process_outlives_a_killed_launcher(app):
    words, folder = app
    sweep = folder / "orphans"
    launcher = Command(*words, "launcher=gpus", "seed=4", f"hydra.sweep.dir={sweep}")
    (owner,) = wait_for(lambda: list(sweep.glob("*/checkpoints/last.ckpt"))) and sweep.glob("*/.owner")
    trainer = int(owner.read_text().split()[1])
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    wait_for(lambda: not Path(f"/proc/{trainer}").exists())
    with run_lock(owner.parent):
        assert not (owner.parent / "result.json").exists()


@pytest.mark.slow
def test_signal_ends_a_sweep_with_a_table_of_all_cells_and_the_same_command_goes_on(app):
    words, folder = app
    sweep = folder / "interrupted"
    words = [*words, "seed=1,4,2,3", f"hydra.sweep.dir={sweep}"]
    launcher = Command(*words)
    wait_for(lambda: list(sweep.glob("*seed4_*/checkpoints/last.ckpt")))
    os.kill(launcher.pid, signal.SIGTERM)
    done = launcher.wait()
    assert done.returncode == 143
    assert "Traceback" not in done.stdout + done.stderr
    assert "4 cells, 1 finished, 1 interrupted, 2 not begun" in done.stdout
    assert "The same command goes on with the sweep." in done.stdout
    assert [report["status"] for report in reports(sweep)] == ["finished", "interrupted"]
    assert "4 cells, 1 skipped, 1 resumed, 2 finished" in run(*words).stdout


@pytest.mark.slow
def test_preempted_job_is_requeued_and_resumes(app):
    words, folder = app
    sweep = folder / "preempted"
    words = [*words, "hydra/launcher=submitit_local", "seed=4", f"hydra.sweep.dir={sweep}"]
    launcher = Command(*words)
    wait_for(lambda: list(sweep.glob("*/checkpoints/last.ckpt")))
    (log,) = sweep.glob(".submitit/*/*_log.out")
    controller = int(log.parent.name)
    job = int(Path(f"/proc/{controller}/task/{controller}/children").read_text())
    os.kill(job, signal.SIGUSR2)  # as SLURM does
    done = launcher.wait(timeout=60)
    assert done.returncode == 0
    (report,) = reports(sweep)
    assert (report["status"], report["devices"]) == ("resumed", ["0"])
    assert "resumed" in done.stdout


@pytest.mark.slow
def test_study_survives_failing_trials_and_a_kill(app):
    optuna = pytest.importorskip("optuna", reason="search=optuna needs hydra-optuna-sweeper")
    words, folder = app
    sweep = folder / "study"
    words = [*words, "search=optuna", "seed=range(4,9)", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={sweep}"]
    words += ["hydra.sweeper.sampler.seed=44", "hydra.sweeper.n_jobs=1"]  # which draws 9, killed, and 4, that hangs
    first = Command(*words)
    wait_for(lambda: list(sweep.glob("*seed4_*/checkpoints/last.ckpt")))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert results(sweep)[9]["status"] == "failed"

    done = run(*words).stdout
    assert "Best value: 30.4" in done
    drawn = "study.png: the trials and the slices of the settings; no importance with fewer than 5 trials"
    assert done.endswith(f"{drawn}\n")
    assert (sweep / "study.png").read_bytes().startswith(b"\x89PNG")
    assert [report["status"] for report in reports(sweep)] == ["resumed"]  # what was under way, and no more
    storage = f"sqlite:///{sweep / 'study.db'}"
    (study,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study.study_name, storage).trials
    assert [(trial.params["seed"], trial.value) for trial in trials] == [(9, None), (4, None), (4, 30.4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("searched", "message"),
    [
        ("seed=choice(13)", "the study has no value: 0 of 1 trials succeeded; the train.log of each has the reason"),
        ("data.batch_size=interval(5,4)", "search=optuna: The `low` value must be smaller than or equal to the `high`"),
    ],
)
def test_study_without_a_value_ends_in_one_line(app, searched, message):
    pytest.importorskip("optuna", reason="search=optuna needs hydra-optuna-sweeper")
    words, folder = app
    sweep = folder / f"without_{searched.partition('=')[0]}"
    words = [*words, "search=optuna", searched, "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={sweep}"]
    done = run(*words, "hydra.sweeper.n_jobs=1", check=False)
    assert done.returncode == 1
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (sweep / "study.png").exists()


def test_run_directory_is_locked(tmp_path):
    message = rf"{tmp_path} is in use by process {os.getpid()} on "
    with run_lock(tmp_path), pytest.raises(InputError, match=message), run_lock(tmp_path, patience=0):
        pass
    with run_lock(tmp_path, patience=0):
        pass


@pytest.mark.slow
def test_dry_run_states_costs_and_names_impossible_cells(command, tmp_path):
    words = ["dry_run=true", "model=espcn,srcnn", "data.patch_size=8,1000", f"sweep={tmp_path / 'sweep'}", "-m"]
    done = run(*command, *words, check=False)
    assert done.returncode == 1
    rows = {line.split("|")[1].split("_")[0].strip(): line for line in done.stdout.splitlines() if "MiB" in line}
    # SRCNN 9-1-5: 64 and 32 features; ESPCN 64-64-32 with 3x3 and 5x5 kernels; weights and biases (x2, luma)
    srcnn = 9 * 9 * 64 + 64 + 64 * 32 + 32 + 5 * 5 * 32 + 1
    espcn = 5 * 5 * 64 + 64 + 3 * 3 * (64 * 64 + 64 * 32 + 32 * 4) + 64 + 32 + 4
    for name, parameters in (("srcnn", srcnn), ("espcn", espcn)):
        cells = [cell.strip() for cell in rows[name].split("|")[2:6]]
        assert cells == ["data.patch_size=8", f"{parameters:,}", "30", "120"]
    assert "4 cells" in done.stdout
    assert "2 INVALID" in done.stdout
    assert "patch_size=1000 (LR pixels) does not fit into" in done.stdout
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_killed_and_resumed_cell_equals_an_uninterrupted_one(command, tmp_path):
    words = [*command, "max_steps=150", "val_every=20", "save_every=5", "log_every=5", "num_comparisons=0"]
    sweep = tmp_path / "sweep"
    words += ["name=killed,whole", f"hydra.sweep.dir={sweep}", "-m"]  # the same training twice
    launcher = Command(*words)
    last = wait_for(lambda: list(sweep.glob("killed_*/checkpoints/last.ckpt")))[0]
    os.kill(int((last.parents[1] / ".owner").read_text().split()[1]), signal.SIGKILL)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert 0 < steps_done(read_checkpoint(last)) < 150

    run(*words)
    assert [report["status"] for report in reports(sweep)] == ["resumed", "finished"]
    killed, whole = (next(sweep.glob(f"{name}_*")) for name in ("killed", "whole"))
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_checkpoint(cell / "checkpoints" / name) for cell in (killed, whole))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert not list(differences(one[part], other[part], part))
    assert metrics_of(killed) == metrics_of(whole)
    one, other = (json.loads((cell / "result.json").read_text()) for cell in (killed, whole))
    same = ("status", "model", "data", "scale", "seed", "sweep", "max_steps", "psnr", "protocol", "best_step", "steps")
    assert [one[key] for key in same] == [other[key] for key in same]
    assert (one["name"], one["sweep"], one["steps"]) == ("killed", "sweep", 150)
    assert one["seconds"] > 0
