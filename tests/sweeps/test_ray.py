"""Sweeps on Ray: a local one, and a cluster of two nodes on this machine, one of which is killed."""

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from tests.helpers import ROOT, Command, differences, metrics_of, run
from tests.sweeps.test_sweeps import reports, results, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="launcher=ray needs Ray: pip install 'sr_lightning[ray]'"),
]
NODE = {"object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes with a token: a head of one core, and a node of two cores and two simulated GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        from ray.cluster_utils import Cluster  # reads the variables

        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 1, "num_gpus": 0})
        cluster.second = cluster.add_node(num_cpus=2, num_gpus=2, **NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def app(cluster, tmp_path):
    """The command of sweeps on the cluster that train nothing; and their folder."""
    words = ["tests/sweeps/app.py", "-m", "max_steps=30", "trainer=cpu", "launcher=ray"]
    return [*words, f"hydra.launcher.address={cluster.address}", f"hydra.sweep.dir={tmp_path}"], tmp_path


def descendants(process: int) -> list[int]:
    """All processes below a process."""
    children = [
        int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in path.read_text().split()
    ]
    return [*children, *(pid for child in children for pid in descendants(child))]


def processes_of_ray() -> set[int]:
    """All processes of Ray on this machine that are no zombies."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, state = (path / "cmdline").read_text(), (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and (line.startswith("ray::") or "/site-packages/ray/" in line):
            found.add(int(path.name))
    return found


def trainer_of(sweep: Path) -> int:
    """The process of the cell with seed=4, after it has written its checkpoint."""
    (checkpoint,) = wait_for(lambda: list(sweep.glob("*seed4_*/checkpoints/last.ckpt")))
    return int((checkpoint.parents[1] / ".owner").read_text().split()[1])


def test_a_cell_whose_worker_is_killed_is_started_again_and_at_last_fails_alone(app):
    words, sweep = app
    done = run(*words, "hydra.launcher.retries=1", "seed=8,2", check=False)
    assert done.returncode == 1
    assert "its worker or node was lost (WorkerCrashedError); started again, 1 of 1 times" in done.stdout
    assert "2 cells, 1 failed, 1 finished" in done.stdout
    found = results(sweep)
    assert found[8]["error"] == "its worker or node was lost (WorkerCrashedError), 2 times"
    assert found[2]["status"] == "finished"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_sweep_on_ray_with_a_table_and_the_same_command_goes_on(app, signum):
    words, sweep = app
    launcher = Command(*words, "seed=4,1")
    trainer = trainer_of(sweep)
    wait_for(lambda: "finished" in [report["status"] for report in reports(sweep)])
    os.kill(launcher.pid, signum)
    done = launcher.wait()
    assert done.returncode == 128 + signum
    assert "2 cells, 1 interrupted, 1 finished" in done.stdout
    assert not Path(f"/proc/{trainer}").exists()
    assert [report["status"] for report in reports(sweep)] == ["interrupted", "finished"]  # told by the job itself
    assert "2 cells, 1 resumed, 1 skipped" in run(*words, "seed=4,1").stdout


def test_cells_end_with_a_command_that_is_killed_and_get_the_gpus_that_ray_lends(app):
    words, sweep = app
    launcher = Command(*words, "trainer=auto", "seed=4", "name=one,other")
    wait_for(lambda: {last.read_text() for last in sweep.glob("*seed4_*/checkpoints/last.ckpt")} == {"0", "1"})
    trainers = [report["process"] for report in reports(sweep)]
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    wait_for(lambda: not any(Path(f"/proc/{trainer}").exists() for trainer in trainers))
    assert all("stopped by SIGTERM" in log.read_text() for log in sweep.glob("*seed4_*/train.log"))


def test_a_search_on_a_ray_of_its_own_runs_and_leaves_no_process(tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="search=optuna needs hydra-optuna-sweeper")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    earlier = processes_of_ray()
    words = ["tests/sweeps/app.py", "-m", "max_steps=30", "trainer=cpu", "launcher=ray", "search=optuna"]
    words += ["seed=choice(1,2,3)", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1"]
    done = run(*words, f"hydra.sweep.dir={tmp_path}")
    assert "trial 2 of 2" in done.stdout
    (call,) = tmp_path.glob(".sweep/*/call.json")
    assert json.loads(call.read_text())["ray"] == "local"
    wait_for(lambda: processes_of_ray() <= earlier)


def test_a_sweep_whose_node_is_killed_equals_an_undisturbed_one(cluster, command, tmp_path):
    words = [
        *command,
        "max_steps=150",
        "val_every=20",
        "save_every=5",
        "log_every=5",
        "num_comparisons=0",
        "seed=1,2,3",
    ]
    run(*words, f"hydra.sweep.dir={tmp_path / 'whole'}", "-m")
    address = f"hydra.launcher.address={cluster.address}"
    launcher = Command(*words, "launcher=ray", address, f"hydra.sweep.dir={tmp_path / 'killed'}", "-m")
    raylet = cluster.second.all_processes["raylet"][0].process.pid

    def saved_on_node() -> list[Path]:
        running = [report for report in reports(tmp_path / "killed") if report["status"] == "running"]
        cells = [report["cell"] for report in running if report.get("process") in descendants(raylet)]
        return [last for cell in cells if (last := tmp_path / "killed" / cell / "checkpoints" / "last.ckpt").exists()]

    wait_for(lambda: list((tmp_path / "killed").glob(".sweep/*/call.json")), 120)
    (last, *_) = wait_for(saved_on_node, 120)
    node = [raylet, *descendants(raylet)]
    for how in (signal.SIGSTOP, signal.SIGKILL):  # as if its machine had lost power
        for process in node:
            os.kill(process, how)
    assert 0 < steps_done(read_checkpoint(last)) < 100
    done = launcher.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{last.parents[1].name}  its worker or node was lost" in done.stdout
    assert {report["cell"]: report["status"] for report in reports(tmp_path / "killed")}[
        last.parents[1].name
    ] == "resumed"

    cells = {path.name: path for path in (tmp_path / "whole").glob("*_seed*")}
    assert len(cells) == 3 and {path.name for path in (tmp_path / "killed").glob("*_seed*")} == cells.keys()
    table = {report["cell"]: (report["psnr"], report["steps"]) for report in reports(tmp_path / "killed")}
    assert table == {report["cell"]: (report["psnr"], report["steps"]) for report in reports(tmp_path / "whole")}
    for name, whole in cells.items():
        one, other = (read_checkpoint(cell / "checkpoints/last.ckpt") for cell in (whole, tmp_path / "killed" / name))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert not list(differences(one[part], other[part], part))
        assert metrics_of(whole) == metrics_of(tmp_path / "killed" / name)
