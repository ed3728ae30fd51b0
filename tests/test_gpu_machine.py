"""The script that carries the project to a machine with a GPU: what it packs, stops, and goes on from."""

import subprocess
import sys
from itertools import count

import pytest

from tests.benchmarks import gpu_machine

PYTHON = (sys.executable, "-S", "-c")


@pytest.fixture
def training(tmp_path):
    """The folder of a run with two checkpoints, in a folder that is packed."""
    folder = tmp_path / "packed" / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(bytes(range(250)))
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"best")
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.csv").write_text("step,val/psnr,seconds\n10,,1\n20,30.5,90\n30,31,180\n")
    (folder / ".owner").write_text("of a process that is no more")
    return folder


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A data root with an image in each folder, and no download of wheels."""
    for name in gpu_machine.IMAGES:
        (tmp_path / "root" / name / "sub").mkdir(parents=True)
        (tmp_path / "root" / name / "sub" / "a.png").write_bytes(b"image")
    monkeypatch.setenv("SR_DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(gpu_machine, "download", lambda wheels, python: wheels.mkdir(parents=True))
    return tmp_path / "root"


def test_training_goes_on_elsewhere_from_its_latest_copy(training, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_machine, "PIECE", 100)
    out, other = tmp_path / "out", tmp_path / "elsewhere" / "run"
    (out / "draft").mkdir(parents=True)  # left by a kill
    gpu_machine.copy_run(training, out)
    (training / "checkpoints" / "last.ckpt").write_bytes(bytes(range(1, 251)))
    gpu_machine.copy_run(training, out)
    (copy,) = out.iterdir()
    assert copy.name == "run-0002" and max(piece.stat().st_size for piece in copy.iterdir()) == 100
    other.parent.mkdir()
    copy.rename(other.parent / copy.name)
    assert gpu_machine.place(other) == f"resume={other}"
    found = {str(path.relative_to(other)): path.read_bytes() for path in other.rglob("*") if path.is_file()}
    last = bytes(range(1, 251))
    assert found == {
        "checkpoints/last.ckpt": last,
        "checkpoints/best.ckpt": last,
        **{name: (training / name).read_bytes() for name in ("config.yaml", "metrics.csv")},
    }


def test_training_without_a_checkpoint_begins_again_and_is_not_copied(training, tmp_path):
    (training / "checkpoints" / "last.ckpt").unlink()
    gpu_machine.copy_run(training, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert gpu_machine.place(training) == f"hydra.run.dir={training}"
    assert not training.exists()


def test_command_is_stopped_at_its_limit_with_its_output_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_machine, "GRACE", 0.1)
    monkeypatch.setattr(gpu_machine, "COPY_EVERY", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))\n"
    calls = count()
    words = [*PYTHON, f"{deaf}print('begun', flush=True)\nwhile True: time.sleep(60)"]
    assert gpu_machine.limited(words, tmp_path / "a.txt", 1, lambda: next(calls)) == "ended by its limit"
    assert (tmp_path / "a.txt").read_text() == "begun\ntold\n"
    assert next(calls) > 2
    assert gpu_machine.limited([*PYTHON, "raise SystemExit(3)"], tmp_path / "b.txt", 60) == "exit code 3"


def test_run_sums_up_every_part_although_one_fails(training, tmp_path, monkeypatch, capsys):
    (training.parent / "wheels").mkdir()
    monkeypatch.setattr(gpu_machine, "install", lambda folder: sys.executable)
    monkeypatch.setattr(gpu_machine.os, "environ", {})
    monkeypatch.setattr(gpu_machine.signal, "signal", lambda *_: None)
    done = []

    def limited(words, log, seconds, meanwhile=None):
        done.append((log.stem, seconds))
        log.write_text(f"output of {log.stem}\n")
        return "exit code 1" if log.stem == "benchmark" else "exit code 0"

    monkeypatch.setattr(gpu_machine, "limited", limited)
    gpu_machine.run(training.parent, tmp_path / "out", [0, 2, 1.5], ["seed=1"])
    assert done == [("benchmark", 120), ("training", 90), ("scores", 60)]
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert capsys.readouterr().out.rstrip() == summary.rstrip()
    assert "| benchmark | exit code 1 | 0 |\n| training | exit code 0 | 0 |" in summary
    assert "output of scores" in summary
    assert "| 1.5 | 20 | 30.50 |\n| 3.0 | 30 | 31.00 |" in summary


def test_packed_folder_has_images_and_is_left_alone_afterwards(images, tmp_path):
    gpu_machine.pack(tmp_path / "new" / "packed", "3.12")
    assert (tmp_path / "new" / "packed" / "data" / "benchmark" / "Set5" / "sub" / "a.png").read_bytes() == b"image"
    with pytest.raises(SystemExit, match="is not empty: remove it, or name another folder"):
        gpu_machine.pack(tmp_path / "new" / "packed", "3.12")


def test_folder_that_is_too_large_or_lacks_images_is_not_packed(images, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_machine, "LIMIT", 2**20)
    with pytest.raises(SystemExit, match=r"MiB are more than 1\.0 MiB: nothing is packed"):
        gpu_machine.pack(tmp_path / "new" / "packed", "3.12")
    assert not list((tmp_path / "new").iterdir())
    (images / "T91").rename(images / "T90")
    with pytest.raises(
        SystemExit, match=r"root lacks T91: set SR_DATA_ROOT, or run python -m sr_lightning\.data fetch"
    ):
        gpu_machine.pack(tmp_path / "new" / "packed", "3.12")


def test_wheels_are_those_of_training_and_its_tests_without_torch():
    names = {one.split(">")[0] for one in gpu_machine.requirements()}
    assert {"hydra-core", "omegaconf", "pytorch-lightning", "torchmetrics", "pillow", "pytest", "pytest-xdist"} <= names
    assert not names & {"torch", "numpy", "matplotlib", "scikit-image"}


def test_script_needs_only_the_standard_library():
    code = "import sys; from tests.benchmarks import gpu_machine; sys.exit('site-packages' in str(sys.path))"
    subprocess.run([*PYTHON, code], cwd=gpu_machine.ROOT, check=True)
