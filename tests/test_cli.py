"""`--help` and directories of train.py and evaluate.py."""

import subprocess
import sys

import pytest
from hydra.utils import instantiate

from sr_lightning.cli import name_directory
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


def test_directory_that_cannot_be_created_is_one_line():
    folder, message = f"{__file__}/run", f"{__file__} is a file; give a folder"
    for name in ("train", "evaluate"):
        cfg = compose(*name_directory([f"run_dir={folder}"]), config=name, hydra=True)
        (check,) = [each for each in cfg.hydra.callbacks.values() if each._target_.endswith("RunDirectory")]
        with pytest.raises(SystemExit, match=f"^error: the run's directory {folder}: {message}$"):
            instantiate(check).on_run_start(cfg)
    with pytest.raises(InputError, match=f"^the sweep's directory {folder}: {message}$"):
        prepare(compose(f"hydra.sweep.dir={folder}", hydra=True))


def test_printed_commands_run_from_any_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command("train.py") == "python train.py"
    assert command(f"{ROOT}/evaluate.py") == f"python {ROOT}/evaluate.py"  # as it was called
    monkeypatch.chdir(ROOT / "docs")  # that of the notebook
    assert command("train.py") == "python ../train.py"
