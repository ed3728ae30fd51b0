"""The wheel: everything that runs without a checkout is in it."""

import os
import subprocess
import sys
import zipfile

import pytest
from hatchling.build import build_wheel

from sr_lightning import errors
from tests.helpers import ROOT

pytestmark = pytest.mark.slow
IMAGE = ROOT / "tests" / "earlier_version" / "data" / "pictures" / "0.png"
RUN = next((ROOT / "tests" / "earlier_version").glob("multirun/tiny/*seed1*"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        wheel = build_wheel(str(folder))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(folder / wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_installed(site, folder, *command):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SR_")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_wheel_contains_package_commands_configs_page_and_tables_only(installed):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    package = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "sr_lightning").rglob("*") if path.suffix != ".pyc"
    }
    package = {name for name in package if (ROOT / name).is_file()}
    project = [*(ROOT / "conf").rglob("*.yaml"), ROOT / "train.py", ROOT / "evaluate.py"]
    project = {f"sr_lightning/project/{path.relative_to(ROOT).as_posix()}" for path in project}
    metadata = {name for name in files if ".dist-info/" in name}
    assert files - metadata == package | project
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= {name.split(".dist-info/")[1] for name in metadata}


def test_installed_package_works_in_any_folder(installed, tmp_path):
    code = f"""
import runpy, sys
from sr_lightning import load, configs
import numpy as np
assert {str(installed)!r} in configs.__file__ and {str(installed)!r} in str(configs.CONF), configs.CONF
assert load({str(RUN)!r}).upscale(np.zeros((9, 8, 3), np.uint8)).shape == (18, 16, 3)
sys.argv = ["upscale", {str(IMAGE)!r}, "-c", {str(RUN)!r}, "-o", "big"]
runpy.run_module("sr_lightning.upscale", run_name="__main__")
"""
    run_installed(installed, tmp_path, "-c", code)
    assert (tmp_path / "big" / "0_x2.png").is_file()
    done = run_installed(installed, tmp_path, "-c", "from sr_lightning.models import networks; print(*networks(4))")
    assert "edsr_baseline" in done.stdout
    code = "import sys; from sr_lightning.api.commands import train; train()"
    assert "max_steps: 4500" in run_installed(installed, tmp_path, "-c", code, "--cfg", "job").stdout
    text = run_installed(installed, tmp_path, "-c", code, "--help").stdout
    assert text.startswith("usage: sr-train [GROUP=OPTION") and "train.py" not in text.partition("\ngroups")[0]


def test_missing_packages_of_training_are_one_line_with_the_extra(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "hydra" else name)
    message = r"training and scoring need hydra: pip install 'sr_lightning\[train\]'$"
    with pytest.raises(ModuleNotFoundError, match=f"^{message}"):
        errors.require_training_packages("sr_lightning")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        errors.require_training_packages("__main__")
