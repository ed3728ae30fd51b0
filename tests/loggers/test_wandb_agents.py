"""Runs that sweep agents of Weights & Biases start."""

import json
import os
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

from sr_lightning.loggers.wandb import WandbRun
from sr_lightning.runs.wandb_record import AGENT
from sr_lightning.sweeps.agents import agent_devices, place_run
from sr_lightning.sweeps.run import cell_environment
from tests.helpers import ROOT, Command
from tests.loggers.wandb_server import WANDB

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
    resumed = Command(*words, cwd=tmp_path).wait()
    assert (failed.returncode, resumed.returncode) == (1, 0), resumed.stdout + resumed.stderr
    (run_dir,) = tmp_path.glob("multirun/abcd1234/*")
    assert run_dir.name == "wxyz5678" and json.loads((run_dir / "result.json").read_text())["steps"] == 30
    parts = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(parts) == 2
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
