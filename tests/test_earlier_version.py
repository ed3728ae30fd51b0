"""Files of an earlier version keep working: runs, sweeps, checkpoints, leaderboards (see earlier_version/README.md)."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from sr_lightning import load
from sr_lightning.runs.fingerprint import fingerprint
from tests.helpers import CONF, ROOT, compose, rows_of, run, slow_except

EARLIER = ROOT / "tests" / "earlier_version"
FINGERPRINTS = json.loads((EARLIER / "fingerprints.json").read_text())
CELL = "srcnn_folder_x2_seed1_65356e6c"
WORDS = [
    *("model=srcnn", "model.network.num_features=[16,8]", "data=folder", "data.hr=data/pictures"),
    *("data.val_fraction=0.4", "data.patch_size=8", "data.batch_size=4", "max_steps=40", "val_every=10"),
    *("save_every=10", "log_every=10", "trainer=cpu", "trainer.precision=32-true", "benchmarks=[]", "num_pictures=0"),
]


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A copy of the earlier version's folder, which is the working directory."""
    folder = shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(folder)
    for name in ("SR_DATA_ROOT", "SR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for path in folder.glob("multirun/*/*/scores.json"):  # Git does not keep times
        changed = json.loads(path.read_text())["checkpoint"]["changed"]
        os.utime(path.with_name("checkpoints") / "best.ckpt", ns=(changed, changed))
    return folder


def python(*words):
    done = run(*words, cwd=Path.cwd())
    return done.stdout + done.stderr


def same_scores(path, expected):
    """Equal rows; scores to a thousandth of a dB, as convolutions differ between processors."""
    rows, expected = rows_of(path), rows_of(expected)
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    for row, old in zip(rows, expected, strict=True):
        assert row.keys() == old.keys()
        assert float(row["psnr_y"]) == pytest.approx(float(old["psnr_y"]), abs=1e-3)
        assert float(row["ssim_y"]) == pytest.approx(float(old["ssim_y"]), abs=1e-5)


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_same_sweep_command_skips_every_cell(earlier):
    before = {path: path.read_bytes() for path in earlier.glob("multirun/tiny/*/*") if path.is_file()}
    output = python(ROOT / "train.py", "-m", *WORDS, "seed=1,2", "sweep=tiny", f"cache_dir={earlier}/cache")
    assert "2 cells, 2 skipped" in output
    assert {path: path.read_bytes() for path in before} == before


def test_interrupted_run_resumes_to_the_weights_of_the_uninterrupted_one(earlier):
    python(ROOT / "train.py", "resume=outputs/interrupted")
    resumed, whole = (folder / "checkpoints" / "last.ckpt" for folder in (
        earlier / "outputs" / "interrupted", earlier / "multirun" / "tiny" / CELL
    ))  # fmt: skip
    expected = weights_of(whole)
    for name, weight in weights_of(resumed).items():
        assert torch.allclose(weight, expected[name], atol=1e-4), name
    same_scores(earlier / "outputs/interrupted/results.csv", earlier / "multirun/tiny" / CELL / "results.csv")


def test_finished_run_is_scored_again(earlier):
    shutil.move(f"multirun/tiny/{CELL}/results.csv", "expected.csv")  # with it, nothing would be left to do
    python(ROOT / "train.py", f"resume=multirun/tiny/{CELL}")
    same_scores(earlier / "multirun" / "tiny" / CELL / "results.csv", earlier / "expected.csv")


def test_checkpoint_keeps_its_scores(earlier):
    words = (f"ckpt=multirun/tiny/{CELL}/checkpoints/best.ckpt", "benchmarks=[Tiny]", "hydra.run.dir=scored")
    python(ROOT / "evaluate.py", *words, "num_pictures=0", "report=0")
    expected = [row for row in rows_of(earlier / "outputs/leaderboard/results.csv") if row["model"] != "srcnn seed 2"]
    for row, old in zip(rows_of(earlier / "scored" / "results.csv"), expected, strict=True):
        assert float(row["psnr_y"]) == pytest.approx(float(old["psnr_y"]), abs=1e-3)


@pytest.mark.slow
def test_leaderboard_uses_stored_scores(earlier):
    output = python(ROOT / "evaluate.py", "runs=multirun/tiny", "benchmarks=[Tiny]", "hydra.run.dir=scored")
    assert "scoring multirun" not in output
    table, expected = (rows_of(f"{folder}/leaderboard.csv") for folder in ("scored", "outputs/leaderboard"))
    assert [row["model"] for row in table] == [row["model"] for row in expected] == ["srcnn", "bicubic"]
    for row, old in zip(table, expected, strict=True):
        differing = {key for key in old if row[key] != old[key]}
        assert differing <= {"milliseconds"}
    assert rows_of("scored/results.csv") == rows_of("outputs/leaderboard/results.csv")


@pytest.mark.slow
def test_run_upscales_and_exports(earlier):
    python("-m", "sr_lightning.upscale", "data/pictures/0.png", "-c", f"multirun/tiny/{CELL}", "-o", "big")
    enlarged = np.asarray(Image.open("big/0_x2.png"))
    assert enlarged.shape == (128, 112, 3)
    assert (enlarged == np.asarray(load(f"multirun/tiny/{CELL}").upscale(Image.open("data/pictures/0.png")))).all()
    python("-m", "sr_lightning.export", "-c", f"multirun/tiny/{CELL}", "--to", "onnx", "-o", "net.onnx")
    session = onnxruntime.InferenceSession("net.onnx")
    assert session.run(None, {"lr": np.zeros((1, 1, 8, 9), np.float32)})[0].shape == (1, 1, 16, 18)


def composed_fingerprint(words):
    """The fingerprint under the cache directory of the recorded ones, on which those with a VGG loss depend."""
    return fingerprint(compose("name=net", "choices=null", "cache_dir='~/.cache/sr_lightning'", *words.split()))


@pytest.mark.slow
def test_earlier_names_of_keys_work_on_the_command_line():
    done = run(ROOT / "train.py", "num_pictures=3", "report=0", "pictures_every=500", "--cfg", "job")
    assert {"num_comparisons: 3", "report_images: 0", "comparisons_every: 500"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize("words", slow_except(FINGERPRINTS, "experiment=espcn_fast", "gan=srgan", "data=t91_bsds"))
def test_recipe_or_option_keeps_its_fingerprint(words):
    assert composed_fingerprint(words) == FINGERPRINTS[words]


def test_every_recipe_has_a_recorded_fingerprint():
    """A new recipe is recorded when it is added: its line of fingerprints.json is printed here."""
    recipes = [f"experiment={path.stem}" for path in sorted((CONF / "experiment").glob("*.yaml"))]
    missing = [words for words in recipes if words not in FINGERPRINTS]
    assert {words: composed_fingerprint(words) for words in missing} == {}
