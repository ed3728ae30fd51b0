import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hydra import compose as compose_here
from hydra import initialize_config_dir

import sr_lightning
from sr_lightning.api import training
from sr_lightning.api.settings import arguments
from sr_lightning.cli import compose_config, name_run
from sr_lightning.errors import InputError
from sr_lightning.sweeps.run import hydra_value
from tests.helpers import Command, compose, differences, run

QUICK = ("max_steps=4", "val_every=2", "save_every=2")


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


@pytest.fixture(scope="module")
def trained_here(command, tmp_path_factory):
    """A run that `train` has made, in a folder of its own."""
    folder = tmp_path_factory.mktemp("from_python") / "run"
    return sr_lightning.train(*command[1:], *QUICK, seed=3, hydra={"run": {"dir": folder}})


def test_training_from_python_has_the_bits_of_the_command(trained_here, command, tmp_path):
    run(*command, *QUICK, "seed=3", f"hydra.run.dir={tmp_path}")
    assert not list(differences(weights(trained_here.folder), weights(tmp_path), "weights"))


def test_run_has_result_scores_pictures_and_network(trained_here):
    assert trained_here.result["steps"] == 4
    scores = trained_here.scores
    assert {row["model"] for row in scores} == {"bicubic", "espcn"} and scores.pictures
    assert scores.means()[0]["psnr_y"] == pytest.approx(trained_here.result["bicubic"])
    assert trained_here.load().scale == sr_lightning.load(trained_here).scale == 2
    assert arguments((), {"resume": trained_here}) == arguments((), {"resume": trained_here.folder})


def test_folder_is_a_data_set_on_the_command_line_and_in_python(command, pictures):
    words = [word for word in command[1:] if not word.startswith("data=") and not word.startswith("data.hr=")]
    cfg = compose_config("train", [*words, *arguments((), {"data": pictures}), "name=test", "run_dir=nowhere"])
    assert cfg.data.hr == str(pictures) and cfg.data._target_ == compose("data=folder", "data.hr=x").data._target_


def test_odd_texts_reach_hydra_unchanged(tmp_path):
    folder = tmp_path / "it's = {é}, \\"
    folder.mkdir()
    words = arguments(
        ("~logger",), {"data": folder, "name": "1_0\\'", "cache_dir": "é", "seed": np.int64(3), "gan": None}
    )
    cfg = compose_config("train", [*words, "run_dir=nowhere"])
    assert (
        cfg.data.hr == str(folder)
        and cfg.name == "1_0\\'"
        and cfg.seed == 3
        and cfg.cache_dir == "é"
        and "gan" not in cfg
    )
    assert name_run(f"resume={hydra_value(str(folder / 'checkpoints' / 'last.ckpt'))}") == words[1].replace(
        "data=", "resume="
    )


def test_callers_hydra_and_threads_are_left_alone(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        with ThreadPoolExecutor(4) as threads:
            configs = list(threads.map(lambda seed: compose_config("train", [f"seed={seed}"]), range(4)))
        assert [cfg.seed for cfg in configs] == [0, 1, 2, 3] and compose_here("mine") == {"a": 1}


def test_dry_run_from_python_has_an_estimate_and_scale_may_be_a_number(command, monkeypatch):
    outputs = []

    def forked(words, variables):
        outputs.append(Command(*words, environment=variables).wait())
        return outputs[-1].returncode, outputs[-1].stdout.splitlines()

    monkeypatch.setattr(training, "_run", forked)
    dry = sr_lightning.train(*command[1:], "scale=3", dry_run=True)
    assert "_x3_" in outputs[0].stdout
    assert dry.estimate["steps"] == 30 and dry.estimate.keys() == {
        "parameters",
        "steps",
        "patches",
        "memory",
        "seconds",
    }
    for use in (lambda: dry.folder, lambda: dry.result, lambda: dry.scores, dry.load, lambda: os.fspath(dry)):
        with pytest.raises(InputError, match="dry_run=True trains nothing, and leaves no files"):
            use()


def test_killed_training_names_signal_and_way_on(monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr(training, "PROJECT", tmp_path)
    script = "import json, os; from pathlib import Path\nPath(os.environ['SR_LIGHTNING_ANSWER']).write_text(json.dumps("
    (tmp_path / "train.py").write_text(f"{script}{{'run_dir': {str(tmp_path)!r}}}))\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(RuntimeError) as caught:
        sr_lightning.train()
    assert str(caught.value).startswith("training: killed by signal 9 (SIGKILL)")
    assert f"To go on: train(resume='{tmp_path}')" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "model=null is not one of bicubic, "),
        ({"experiment": ["espcn_fast", "no"]}, "experiment=no is not one of article_espcn, "),
        ({"modell": "espcn"}, "there is no setting modell; did you mean model?"),
        ({"model": "espcnn"}, "model=espcnn is not one of bicubic, "),
        ({"data": "no/folder"}, "data=no/folder is neither a folder nor one of "),
        ({"max_steps": "many"}, "max_steps=many: give a number"),
        ({"resume": "no/run"}, "resume=no/run is not the directory of a run"),
    ],
)
def test_wrong_settings_are_one_error_in_python(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        sr_lightning.train(**settings)
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


CALLER = """
import sys, sr_lightning
try:
    sr_lightning.train(*sys.argv[1:])
except KeyboardInterrupt:
    print("interrupted")
"""


def caller(command, folder):
    """A Python process that trains for long, after its first steps."""
    script = folder.with_name("caller.py")
    script.write_text(CALLER)
    words = [*command[1:], "max_steps=1000000", "log_every=1", "save_every=1", "compile=false"]
    process = Command(script, *words, f"hydra.run.dir={folder}")
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def is_free(folder):
    """True if no process trains in the folder."""
    from sr_lightning.sweeps.cells import is_locked

    return not is_locked(folder / ".lock")


@pytest.mark.slow
def test_interruption_saves_the_run_and_reaches_the_caller(command, tmp_path):
    process = caller(command, tmp_path / "run")
    os.kill(process.pid, signal.SIGINT)
    done = process.wait(120)
    assert done.returncode == 0 and done.stdout.endswith("interrupted\n") and "saved at step" in done.stdout
    assert is_free(tmp_path / "run")


@pytest.mark.slow
def test_training_ends_with_a_caller_that_is_killed(command, tmp_path):
    process = caller(command, tmp_path / "run")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while not is_free(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
