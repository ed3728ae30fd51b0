"""Processes of one run end together, and leave the directory of another process alone."""

import logging
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from textwrap import dedent

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sr_lightning import cli
from sr_lightning.sweeps import run as run_module
from sr_lightning.sweeps.invocation import SweepInvocation
from sr_lightning.sweeps.processes import CELL, IN_USE, PARENT, PRELOADED
from sr_lightning.sweeps.run import run_cell, wait_for_holder
from sr_lightning.utils.signals import Interrupted
from tests.helpers import ROOT, Command, command_server

FIRST = """
    import subprocess, sys, time
    from sr_lightning.sweeps.processes import exit_with_first_process

    exit_with_first_process()
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    time.sleep(100)
"""
FURTHER = """
    import os, time

    os.environ["LOCAL_RANK"] = "1"
    print("imports", flush=True)
    while os.getppid() == int(os.environ["SR_LIGHTNING_FIRST_PROCESS"]):
        time.sleep(0.01)  # the first process is killed before this one watches it
    from sr_lightning.sweeps.processes import exit_with_first_process

    exit_with_first_process()
    time.sleep(100)
    print("is alive", flush=True)
"""


def test_further_process_of_a_run_ends_with_a_first_one_that_was_killed_during_its_start():
    words = [sys.executable, "-c", dedent(FIRST), dedent(FURTHER)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "imports\n"
    first.send_signal(signal.SIGKILL)
    assert first.stdout.read() == ""  # ends when no process has it open
    first.wait()


@pytest.fixture
def far(tmp_path):
    """The directory of a run that a process of another machine trains, and an event that ends it."""
    ended, owner = threading.Event(), tmp_path / ".owner"
    owner.write_text("process 7 on far, since 2026-01-01 00:00\nkernel word\n")

    def beat():
        while not ended.wait(0.1):
            owner.touch()
        owner.unlink()

    thread = threading.Thread(target=beat)
    thread.start()
    yield tmp_path, ended
    ended.set()
    thread.join()


def test_cell_that_another_machine_trains_is_left_alone(command, far):
    """Its process ends with a code of its own, and records no failure."""
    run_dir, _ = far
    environment = {CELL: "1", PARENT: str(command_server().pid)}
    done = Command(*command, f"hydra.run.dir={run_dir}", environment=environment).wait()
    assert done.returncode == IN_USE, done
    assert f"error: {run_dir} is in use by process 7 on far" in done.stdout
    assert not (run_dir / "result.json").exists()
    assert not (run_dir / "config.yaml").exists()


def test_job_of_a_sweep_waits_until_another_machine_has_trained_the_cell(far, caplog):
    run_dir, ended = far
    threading.Timer(0.3, ended.set).start()
    with caplog.at_level(logging.INFO):
        wait_for_holder(run_dir)
    assert f"{run_dir} is in use by process 7 on far, since 2026-01-01 00:00: waiting until it ends" in caplog.text
    assert ended.is_set()


def test_cell_that_is_stopped_at_its_start_leaves_its_directory_to_the_job(tmp_path, monkeypatch):
    """The next command of a sweep that was killed has perhaps just opened the log there."""
    sweep, cell = tmp_path, tmp_path / "cell"
    cell.mkdir()
    (cell / "train.log").touch()

    def stopped(*_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setenv(CELL, "1")
    monkeypatch.setattr(cli, "exit_with_first_process", lambda: None)
    with pytest.raises(Interrupted):
        cli.task(stopped)(OmegaConf.create({"run_dir": str(cell)}))
    assert cell.exists()

    monkeypatch.setenv("SR_LIGHTNING_CALL", "")
    SweepInvocation.begin(sweep, [])
    job = {"runtime": {"output_dir": str(cell)}, "job": {"num": 0}, "overrides": {"task": []}}
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(job))
    monkeypatch.setattr(run_module, "train_cell", stopped)
    with pytest.raises(Interrupted):
        run_cell(OmegaConf.create({"resume": None}))
    assert not cell.exists()


def test_sweep_is_stopped_while_it_starts_a_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_LIGHTNING_CALL", "")
    invocation = SweepInvocation.begin(tmp_path, [])
    with subprocess.Popen(["sleep", "100"]) as process:
        invocation.report(0, cell="one", status="running", process=process.pid)
        invocation.report(1, cell="two", status="running")  # its process has no number yet
        threading.Timer(0.1, process.wait).start()
        invocation.stop_cells()
        assert process.poll() == -signal.SIGTERM


def test_modules_that_cells_share_exist():
    """The server of processes ignores one that does not, and each cell would import torch itself."""
    assert all(find_spec(name) for names in PRELOADED.values() for name in names)
