"""`--help` and directories of train.py and evaluate.py."""

import errno
import subprocess
import sys
from unittest.mock import Mock

import pytest
from hydra.utils import instantiate

from sr_lightning import cli
from sr_lightning.cli import check_keys, name_directory, path_error, prepare_command
from sr_lightning.configs import command
from sr_lightning.errors import InputError
from sr_lightning.sweeps.callback import prepare
from tests.helpers import CONF, ROOT, compose, slow_except


@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("flag", slow_except(["--help", "-h"], "--help"))
def test_help_lists_examples_groups_and_settings_without_importing_torch(name, flag):
    code = f"""
import runpy, sys
sys.argv = ["{name}.py", "{flag}"]
try:
    runpy.run_path("{name}.py", run_name="__main__")
except SystemExit as end:
    assert end.code in (None, 0)
    assert not {{"torch", "pytorch_lightning", "wandb"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {name}.py")
    assert done.stdout.count(f"\n  python {name}.py ") >= 5
    cfg = compose(config=name, hydra=True)
    for group in cfg.hydra.runtime.choices:
        if "/" not in group:
            listed = done.stdout.split(f"\n  {group} ")[1].split(":")[0].split("\n\n")[0]
            options = [path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base"]
            assert options and all(option in listed.split() for option in options)
    for key in cfg:
        assert key == "hydra" or key in cfg.hydra.runtime.choices or f"\n  {key}:" in done.stdout


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (f"{__file__}/run", f"{__file__} is a file; give a folder"),
        (300 * "n", "File name too long; give another folder"),
    ],
)
def test_directory_that_cannot_be_created_is_one_line(folder, message):
    for name in ("train", "evaluate"):
        cfg = compose(*name_directory([f"run_dir={folder}"]), config=name, hydra=True)
        (check,) = [each for each in cfg.hydra.callbacks.values() if each._target_.endswith("RunDirectory")]
        with pytest.raises(SystemExit, match=f"^error: the run's directory {folder}: {message}$"):
            instantiate(check).on_run_start(cfg)
    with pytest.raises(InputError, match=f"^the sweep's directory {folder}: {message}$"):
        prepare(compose(f"hydra.sweep.dir={folder}", hydra=True))


def test_path_that_cannot_be_used_is_one_line(monkeypatch):
    problem = OSError(errno.ENAMETOOLONG, "File name too long", "nnn")
    try:
        raise RuntimeError from problem
    except RuntimeError as error:
        assert str(path_error(error)) == "nnn: File name too long"
    assert path_error(FileNotFoundError(errno.ENOENT, "No such file", "nnn")) is None
    for name in ("bound_spinning", "escape_messages", "handle_signals"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.setattr(cli, "for_hydra", Mock(side_effect=problem))
    with pytest.raises(SystemExit, match=r"^error: nnn: File name too long$"):
        prepare_command("", "train")


def test_key_that_no_config_has_is_one_line_with_the_nearest():
    check_keys([f"{key}=1" for key in (*compose(hydra=True), "model.ema", "hydra/launcher", "+new")], "train")
    with pytest.raises(SystemExit, match=r"^error: there is no setting max_step; did you mean max_steps\?$"):
        check_keys(["model=espcn", "max_step=3"], "train")
    for free in (["--config-dir=mine", "mine=1"], ["-sc", "install=bash"]):
        check_keys(free, "train")


def test_printed_commands_run_from_any_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command("train.py") == "python train.py"
    assert command(f"{ROOT}/evaluate.py") == f"python {ROOT}/evaluate.py"  # as it was called
    monkeypatch.chdir(ROOT / "docs")  # that of the notebook
    assert command("train.py") == "python ../train.py"
