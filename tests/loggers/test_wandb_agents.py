"""Runs that sweep agents of Weights & Biases start."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import wandb
import yaml
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.wandb_agent import Agent, run_agent

from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.loggers.base import closing
from sr_lightning.loggers.wandb import WandbRun
from sr_lightning.runs.wandb_record import AGENT
from sr_lightning.sweeps.agents import agent_devices, place_run
from sr_lightning.sweeps.run import cell_environment
from sr_lightning.utils.signals import Interrupted
from tests.helpers import ROOT, Command, differences, metrics_of, run
from tests.loggers.wandb_server import WANDB
from tests.sweeps.test_ray import descendants
from tests.sweeps.test_sweeps import wait_for

SWEEP = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
SETTINGS = {"model.optimizer.lr": 0.001, "data.batch_size": 4}


@pytest.fixture
def agent(private_wandb, tmp_path, monkeypatch):
    """The environment of a run that an agent has started."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcd1234")
    monkeypatch.setenv("WANDB_RUN_ID", "wxyz5678")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "wandb" / "config-wxyz5678.yaml"))
    monkeypatch.setenv("WANDB_PROJECT", "search")
    wandb.teardown()  # reads the environment again
    (tmp_path / "wandb").mkdir()
    parameters = {key: {"value": value} for key, value in SETTINGS.items()}
    (tmp_path / "wandb" / "config-wxyz5678.yaml").write_text(yaml.safe_dump({"wandb_version": 1} | parameters))
    monkeypatch.chdir(tmp_path)


def test_agents_run_has_a_directory_of_its_own_in_which_it_is_resumed(agent):
    directory = "hydra.run.dir=multirun/abcd1234/wxyz5678"
    assert place_run(["scale=x3"]) == ["scale=x3", "sweep=abcd1234", directory]
    last = Path("multirun/abcd1234/wxyz5678/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.touch()
    assert place_run(["scale=x3"]) == ["scale=x3", "sweep=abcd1234", "resume=multirun/abcd1234/wxyz5678"]


def test_null_in_the_yaml_of_a_sweep_is_null_in_hydra(agent):
    assert "model.ema=null" in place_run(
        create_sweep_command_args({"args": {"model.ema": {"value": None}}})["args_no_hyphens"]
    )


@pytest.mark.parametrize("words", [["-m", "seed=1,2"], ["resume=outputs/a"], ["hydra.run.dir=a"]])
def test_directories_that_are_given_stay(agent, words):
    assert place_run(words) == words


def test_without_an_agent_nothing_is_placed(monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "wxyz5678")
    assert place_run(["scale=x3"]) == ["scale=x3"]


def test_agents_of_one_machine_use_different_gpus(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trainer = OmegaConf.create({"accelerator": "gpu", "devices": 1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with agent_devices(trainer):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # of another agent
        with agent_devices(trainer):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_further_processes_of_a_run_use_the_gpus_of_its_first_one(agent, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with agent_devices(OmegaConf.create({"accelerator": "gpu", "devices": 2})):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_id_of_the_agent_is_that_of_the_run(agent, tmp_path):
    for part in (1, 2):
        run = WandbRun(tmp_path / "run", project="sr_lightning")
        run.log_metrics({"loss": 0.5}, part)
        run.close()
        assert run.version == (tmp_path / "run" / "wandb_id").read_text().strip() == "wxyz5678"
    assert len(list(tmp_path.glob("run/wandb/offline-run-*/run-wxyz5678.wandb"))) == 2


@pytest.mark.parametrize(("error", "exit_code"), [(None, 0), (RuntimeError(), 0), (Interrupted(signal.SIGTERM), 1)])
def test_agents_run_is_given_out_again_if_it_was_stopped_but_not_if_it_failed(
    agent, wandb_server, tmp_path, error, exit_code
):
    run = WandbRun(tmp_path / "run", project="sr_lightning", offline=False)
    with contextlib.suppress(RuntimeError, Interrupted), closing([run]):
        run.log_metrics({"loss": 0.5}, 1)
        if error is not None:
            raise error
    uploaded = wandb_server.runs["wxyz5678"]
    assert (uploaded.preempting, uploaded.exit_code) == (True, exit_code)
    assert json.loads(uploaded.summary).get("status") == ("failed" if isinstance(error, RuntimeError) else None)


def test_cells_of_a_sweep_that_an_agent_starts_are_runs_of_their_own(agent):
    assert not {name for name in cell_environment() if name in AGENT}
    assert cell_environment()["WANDB_PROJECT"] == "search"


@pytest.mark.slow
def test_command_of_an_agent_resumes_its_run_offline(agent, command, tmp_path):
    given = create_sweep_command(SWEEP["command"])
    start, end = given.index("${program}"), given.index("${args_no_hyphens}")
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in SETTINGS.items()}})
    words = [ROOT / "train.py", *given[start + 1 : end], *command[1:], *args["args_no_hyphens"]]
    words += ["scale=x2", "logger.offline=true", "model.loss._target_=tests.training.failing.FailingLoss"]
    failed = Command(*words, cwd=tmp_path, environment={"SR_FAIL": "0:17"}).wait()
    provenance = tmp_path / "multirun" / "abcd1234" / "wxyz5678" / "provenance.json"
    parts = json.loads(provenance.read_text())
    provenance.write_text(json.dumps(parts + 3 * [parts[0] | {"step": 10, "ended": None}]))
    hopeless = Command(*words, cwd=tmp_path).wait()
    assert hopeless.returncode == 1 and "killed 3 times in a row after step 10" in hopeless.stdout
    resumed = Command(*words, cwd=tmp_path).wait()
    assert (failed.returncode, resumed.returncode) == (1, 0), resumed.stdout + resumed.stderr
    again = Command(*words, cwd=tmp_path).wait()  # killed before W&B had all, it would be given out again
    assert again.returncode == 0 and "nothing is left to train" not in again.stdout
    (run_dir,) = tmp_path.glob("multirun/abcd1234/*")
    assert run_dir.name == "wxyz5678" and json.loads((run_dir / "result.json").read_text())["steps"] == 30
    parts = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(parts) == 4
    for part in parts:
        done = subprocess.run([WANDB, "leet", "inspect", "--json", part], capture_output=True, check=True)
        record = next(record["run"] for record in map(json.loads, done.stdout.splitlines()) if "run" in record)
        assert (record["run_id"], record["sweep_id"], record["project"]) == ("wxyz5678", "abcd1234", "search")


@pytest.mark.slow
def test_agent_trains_the_runs_of_a_sweep(wandb_server, command, tmp_path, monkeypatch):
    monkeypatch.setattr(Agent, "POLL_INTERVAL", 0.2)
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.setenv(name, "")  # the agent changes them
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    *words, args = SWEEP["command"]
    wandb_server.sweep = yaml.safe_dump(SWEEP | {"command": [*words, *command[1:], "scale=x2", args]})
    parameters = {key: {"value": value} for key, value in SETTINGS.items()}
    start = {"type": "run", "run_id": "wxyz5678", "program": str(ROOT / "train.py"), "args": parameters}
    wandb_server.commands = [[start]]
    run_agent("me/sr_lightning/abcd1234", count=1)
    ((run_id, uploaded),) = wandb_server.runs.items()
    assert (run_id, uploaded.exit_code, uploaded.group) == ("wxyz5678", 0, "abcd1234")
    assert uploaded.config["model"]["value"]["optimizer"]["lr"] == 0.001
    result = json.loads((tmp_path / "multirun" / "abcd1234" / "wxyz5678" / "result.json").read_text())
    assert [row["psnr"] for row in uploaded.history.values() if "psnr" in row] == [result["psnr"]]


AGENT_OF_A_MACHINE = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from wandb.wandb_agent import Agent, run_agent
Agent.POLL_INTERVAL = 0.2
run_agent("me/sr_lightning/abcd1234")
"""


@pytest.fixture
def machine(private_wandb, monkeypatch):
    """Start the agent of a machine, with home and temporary folder of its own, in a folder."""
    agents = []
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)

    def start(name: str, folder: Path, home: Path) -> subprocess.Popen:
        home.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"HOME": str(home), "TMPDIR": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-c", AGENT_OF_A_MACHINE, name]
        with (home / "output").open("a") as output:
            agents.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output))
        return agents[-1]

    yield start
    for process in agents:
        kill_machine(process)


def kill_machine(process: subprocess.Popen) -> None:
    """Kill an agent with all that it has started, as if its machine had lost power."""
    send(process, signal.SIGKILL)
    process.wait()


def send(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to an agent and all that it has started."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.cluster
@pytest.mark.parametrize("shared", [True, False], ids=["a shared folder", "folders of their own"])
def test_run_of_a_killed_machine_is_done_by_the_next_agent_and_counted_once(
    wandb_server, machine, command, tmp_path, shared
):
    *words, args = SWEEP["command"]
    settings = [*command[1:], "scale=x2", "max_steps=150", "val_every=50", "save_every=5", "log_every=5"]
    wandb_server.sweep = yaml.safe_dump(SWEEP | {"command": [*words, *settings, args]})
    trials = {name: SETTINGS | {"seed": seed} for seed, name in enumerate(("run0", "run1", "run2"))}
    wandb_server.trials = {
        name: {"program": str(ROOT / "train.py"), "args": {key: {"value": value} for key, value in trial.items()}}
        for name, trial in trials.items()
    }
    folders = [tmp_path / ("shared" if shared else name) for name in ("one", "two")]
    homes = [tmp_path / "home" / name for name in ("one", "two")]
    one = machine("one", folders[0], homes[0])
    last = wait_for(lambda: list(folders[0].glob("multirun/abcd1234/run0/checkpoints/last.ckpt")), 120)[0]
    send(one, signal.SIGSTOP)  # it is in the midst of its run until the other agent has another one
    two = machine("two", folders[1], homes[1])
    wait_for(lambda: ("two", "run1") in wandb_server.given)
    kill_machine(one)
    assert 0 < steps_done(read_checkpoint(last)) < 150
    wandb_server.runs["run0"].silent = True
    wait_for(lambda: ("two", "run0") in wandb_server.given, 120)
    again = machine("one", folders[0], homes[0])
    assert (two.wait(240), again.wait(240)) == (0, 0)

    assert sorted(wandb_server.given) == [("one", "run0"), ("one", "run2"), ("two", "run0"), ("two", "run1")]
    assert wandb_server.runs.keys() == trials.keys()
    for name, uploaded in wandb_server.runs.items():
        folder = folders[0 if name == "run2" else 1] / "multirun" / "abcd1234" / name
        result = json.loads((folder / "result.json").read_text())
        assert (result["status"], result["steps"], uploaded.exit_code) == ("finished", 150, 0)
        assert [row["psnr"] for row in uploaded.history.values() if "psnr" in row] == [result["psnr"]]
    undisturbed, killed = tmp_path / "undisturbed", folders[1] / "multirun" / "abcd1234" / "run0"
    others = [word for word in SWEEP["command"] if word.startswith(("model=", "data=", "scale="))]
    trial = [f"{key}={value}" for key, value in trials["run0"].items()]
    run("train.py", *others, *settings, *trial, f"hydra.run.dir={undisturbed}")
    assert len(json.loads((killed / "provenance.json").read_text())) == (2 if shared else 1)
    assert metrics_of(undisturbed) == metrics_of(killed)
    weights = [read_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"] for path in (undisturbed, killed)]
    assert not list(differences(*weights, "weights"))
