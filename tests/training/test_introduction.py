"""Messages of a run: before its first step, while it trains, at its end, and when nothing is left to do."""

import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.utils import instantiate

from sr_lightning.callbacks import progress
from sr_lightning.metrics.protocol import Protocol
from sr_lightning.training import introduction
from sr_lightning.training.introduction import BicubicScore
from tests.helpers import compose, rows_of, run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """Directory and output of a run of 40 steps."""
    run_dir = tmp_path_factory.mktemp("introduction") / "a b"
    done = run(*command, "max_steps=40", "val_every=20", "num_comparisons=0", f"hydra.run.dir='{run_dir}'")
    return run_dir, done.stdout


def test_a_run_describes_itself_before_its_first_step(finished):
    run_dir, output = finished
    lines = [line.partition("] ")[2] for line in output.splitlines()]
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("run ")) :]
    assert [line.split()[0] for line in lines[:6]] == ["run", "network", "data", "steps", "device", "bicubic"]
    assert str(run_dir) in lines[0]
    assert re.search(r"espcn x2: ESPCN on luma, [\d,]+ parameters, sees \d+ LR pixels around", lines[1])
    assert re.search(r"\d+ images to train on, \d+ to validate on", lines[2])
    assert "40, of " in lines[3]
    assert "32-true (as set)" in lines[4] or "(the fastest here)" in lines[4]


def test_validations_are_logged_beside_bicubic_and_the_best(finished):
    run_dir, output = finished
    bicubic, network = (
        float(row["psnr_y"])
        for row in rows_of(run_dir / "results.csv")
        if row["image"] == "mean" and row["dataset"] == "held-out"
    )
    assert f"bicubic  {bicubic:.2f} dB on the validation images, the value to beat" in output
    shown = rf"step 40/40 .* val {network:.2f} dB \(bicubic {bicubic:.2f}, best {network:.2f} at 40\)"
    assert re.search(shown, output)
    assert f"best     {network:.2f} dB on the validation images at step 40, {network - bicubic:+.2f} dB" in output


def test_a_finished_run_that_is_resumed_says_so_and_changes_nothing(finished):
    run_dir, output = finished
    (compare,) = re.findall(r"compare  (.*)", output)
    set5 = Path(os.environ.get("SR_DATA_ROOT", "data"), "benchmark", "Set5", "HR")
    assert compare.startswith("python -m sr_lightning.data fetch set5 && python evaluate.py ") != set5.is_dir()
    (longer,) = re.findall(r"longer   python (.*)", output)
    assert longer == f"train.py 'resume='\"'\"'{run_dir}'\"'\"'' max_steps=80 extend=stretch"
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name not in ("train.log", ".lock")}
    done = run("train.py", f"resume='{run_dir}'")
    assert "nothing is left to train: all 40 steps are done" in done.stdout
    assert "PSNR" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture
def score(pictures, tmp_path):
    """Bicubic's score of a folder with its own cache."""
    words = ("data=folder", f"data.hr={pictures}", "data.patch_size=8", f"cache_dir={tmp_path / 'cache'}")
    data = instantiate(compose(*words).data, _convert_="all")
    data.setup()
    return BicubicScore(data, Protocol())


def test_bicubic_is_scored_once_and_kept_with_the_images(score, monkeypatch):
    psnr = score.known()
    assert 10 < psnr < 60
    assert json.loads(score.path.read_text()) == {Protocol().name: psnr}
    other = Protocol(border="scale+6")
    assert BicubicScore(score.datamodule, other).value() != psnr
    monkeypatch.setattr(BicubicScore, "_compute", lambda self: pytest.fail("computed again"))
    assert score.known() == score.value() == psnr


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"y": NaN}', "{}"])
def test_a_damaged_score_of_bicubic_is_computed_again(score, content):
    psnr = score.value()
    score.path.write_text(content.replace('"y"', json.dumps(Protocol().name)))
    assert score.value() == psnr


def test_many_validation_images_do_not_delay_the_first_step(score, monkeypatch):
    monkeypatch.setattr(introduction, "AT_ONCE", 0)
    assert score.known() is None
    psnr = score.value()
    assert score.known() == psnr


def test_without_a_terminal_a_line_is_logged_within_long_training_and_validation(caplog, monkeypatch):
    trainer = SimpleNamespace(
        is_global_zero=True, num_val_batches=[9], checkpoint_callback=SimpleNamespace(best_model_score=None)
    )
    module = SimpleNamespace(latest={"train/loss": 0.5}, batches_done=0, log_every=50, stopwatch=progress.Stopwatch())
    caplog.set_level(logging.INFO)
    shown = progress.Progress(max_steps=100, batch_size=4)
    shown.setup(trainer, module, "fit")
    shown.on_train_start(trainer, module)
    for batch in range(3):
        shown.on_train_batch_end(trainer, module, None, None, batch)
        shown.on_validation_batch_end(trainer, module, None, None, batch)
    assert not caplog.messages
    monkeypatch.setattr(progress, "QUIET", -1)
    shown.on_train_batch_end(trainer, module, None, None, 3)
    shown.on_validation_batch_end(trainer, module, None, None, 4)
    assert caplog.messages[0].startswith("step 4/100  loss 0.50000")
    assert caplog.messages[1] == "validating: 5 of 9 images"
