"""Settings, messages and choices of launcher=ray, without Ray."""

import json
import os
import sys
import types

import pytest
from omegaconf import OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.sweeps import ray_launcher, ray_task
from sr_lightning.sweeps.cells import read_sweep
from sr_lightning.sweeps.invocation import SweepInvocation
from sr_lightning.sweeps.run import share_of_cores
from tests.helpers import compose

SETTINGS = {"address": None, "num_cpus": 1, "retries": 3}


def ray_nodes(monkeypatch, *resources):
    """Replace the nodes of a cluster by some with these numbers of cores and GPUs."""
    nodes = [
        {"NodeID": f"{i:02d}", "Resources": {"CPU": cpus, "GPU": gpus}} for i, (cpus, gpus) in enumerate(resources)
    ]
    monkeypatch.setattr(ray_launcher, "nodes", lambda: nodes)


def config_of(num_cpus=1, **trainer):
    trainer = {"accelerator": "auto", "devices": 1} | trainer
    return OmegaConf.create({"trainer": trainer, "hydra": {"launcher": {"num_cpus": num_cpus}}})


def test_the_option_ray_has_the_settings_of_the_launcher():
    settings = dict(compose("launcher=ray", hydra=True).hydra.launcher)
    assert settings == SETTINGS | {"_target_": ray_launcher.TARGET}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"address": 3}, "hydra.launcher.address=3: give null, auto, HOST:PORT or ray://HOST:PORT"),
        ({"num_cpus": 0}, "hydra.launcher.num_cpus=0: give the cores of each cell, 1 or more"),
        ({"num_cpus": 0.5}, "hydra.launcher.num_cpus=0.5: "),
        ({"num_cpus": True, "retries": -1}, "num_cpus=True: .*; hydra.launcher.retries=-1: give a number of times"),
        ({"retries": None}, "hydra.launcher.retries=None: "),
    ],
)
def test_wrong_settings_are_named_all_at_once(wrong, message):
    with pytest.raises(InputError, match=message):
        ray_launcher.check_settings(OmegaConf.create(SETTINGS | wrong))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ray_launcher, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"launcher=ray needs ray and grpc: pip install 'sr_lightning\[ray\]'"):
        ray_launcher.connect(OmegaConf.create(SETTINGS))


@pytest.mark.parametrize(
    ("nodes", "config", "expected"),
    [
        ([(8, 0), (4, 0)], config_of(), (0, 12)),  # no GPUs: on the CPU
        ([(8, 0), (4, 0)], config_of(num_cpus=3), (0, 3)),
        ([(8, 2), (4, 1), (1, 0)], config_of(), (1, 3)),
        ([(8, 2), (4, 1)], config_of(devices=2), (2, 1)),
        ([(8, 2), (4, 1)], config_of(devices=-1), (2, 1)),
        ([(8, 2), (4, 1)], config_of(accelerator="cpu"), (0, 12)),
    ],
)
def test_a_cell_asks_for_its_devices_and_a_search_for_as_many_cells_as_fit(monkeypatch, nodes, config, expected):
    ray_nodes(monkeypatch, *nodes)
    assert ray_launcher.cells_of_nodes(config) == expected


def test_a_cell_that_fits_no_node_is_refused(monkeypatch):
    ray_nodes(monkeypatch, (8, 0), (2, 2))
    message = "num_cpus=4 and 1 GPUs .* no node of Ray has so many; the nodes have: 8 cores, 0 GPUs, 2 cores, 2 GPUs"
    with pytest.raises(InputError, match=message):
        ray_launcher.cells_of_nodes(config_of(num_cpus=4))
    with pytest.raises(InputError, match=r"trainer.devices=3: .* from 1 to 2"):
        ray_launcher.cells_of_nodes(config_of(devices=3))


def test_a_node_tells_what_it_lacks(tmp_path):
    record, program = tmp_path / "call.json", tmp_path / "train.py"
    record.write_text("{}")
    program.touch()
    versions = {"sr_lightning": ray_task.version_of("sr_lightning"), "torch": ray_task.version_of("torch")}
    needs = {"folder": str(tmp_path), "files": {str(record): "{}"}, "program": str(program), "versions": versions}
    assert ray_task.missing_on_node(needs) == ""
    for change, message in (
        ({"folder": "/no/folder"}, "it has no folder /no/folder; all nodes must share it"),
        ({"files": {str(record): "other"}}, f"it does not see {record}; all nodes must share the folder of the sweep"),
        ({"program": "/no/train.py"}, "it has no /no/train.py; use a folder that all nodes share"),
        ({"versions": {"torch": "1.0"}}, f"it has torch {versions['torch']}, this machine has 1.0; install the same"),
        ({"versions": {"sr_none": "1.0"}}, "it has no sr_none, this machine has 1.0"),
    ):
        assert ray_task.missing_on_node(needs | change).startswith(message)


def test_an_unfit_node_is_left_out_and_without_another_the_sweep_ends(monkeypatch, capsys):
    answer = {"node": "00", "host": "left", "unfit": "it has no torch"}
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(get=lambda task: answer))
    launcher = ray_launcher.RayLauncher(**SETTINGS)
    ray_nodes(monkeypatch, (1, 0), (1, 0))
    assert launcher.outcome(None, None) is None
    assert "node left: it has no torch; it trains no cells" in capsys.readouterr().out
    ray_nodes(monkeypatch, (1, 0))
    with pytest.raises(InputError, match="no node can train:\n  node left: it has no torch"):
        launcher.outcome(None, None)


def test_jobs_on_other_machines_do_not_end_by_a_lock_that_they_cannot_see(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_LIGHTNING_CALL", "")
    here = SweepInvocation.begin(tmp_path / "here", [], cells=1, done=None)
    ray = SweepInvocation.begin(tmp_path / "ray", [], cells=1, done=None, ray="local")
    for invocation in (here, ray):
        (invocation.directory / "alive.lock").unlink()  # as on a machine with locks of its own
    assert (here.abandoned(), ray.abandoned()) == (True, False)


def test_cells_of_a_killed_sweep_do_not_run(tmp_path):
    call = tmp_path / ".sweep" / "2026-11-21_04-52-24_1"
    call.mkdir(parents=True)
    facts = {"devices": [], "cells": 1, "done": None, "host": "other", "process": os.getpid(), "ray": "10.0.0.1:6379"}
    (call / "call.json").write_text(json.dumps(facts))
    (call / "00000.json").write_text(json.dumps({"number": 0, "cell": "one", "words": [], "status": "running"}))
    assert [cell.status for cell in read_sweep(tmp_path).cells] == ["interrupted"]


def test_a_cell_uses_the_cores_that_it_asks_ray_for(monkeypatch):
    hydra = OmegaConf.create({"launcher": {"num_cpus": 3}})
    monkeypatch.setattr("sr_lightning.sweeps.run.HydraConfig", types.SimpleNamespace(get=lambda: hydra))
    assert share_of_cores() == 3
