"""Whole runs on a small folder of pictures."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from sr_lightning.checkpoints.checkpoint import load_network
from sr_lightning.errors import InputError
from tests.helpers import rows_of, run, run_in_new_interpreter


@pytest.fixture(scope="module")
def finished_command(command, tmp_path_factory) -> tuple[Path, str]:
    """The directory of a finished run, and its output."""
    run_dir = tmp_path_factory.mktemp("run") / "a"
    return run_dir, run(*command, f"hydra.run.dir={run_dir}").stdout


@pytest.fixture
def finished(finished_command) -> Path:
    """The directory of a finished run."""
    return finished_command[0]


def test_run_writes_checkpoints_metrics_config_scores_and_pictures(finished):
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (finished / "config.yaml").is_file()
    assert [row["step"] for row in rows_of(finished / "metrics.csv") if row["val/psnr"]] == ["10", "20", "30"]
    assert [row["step"] for row in rows_of(finished / "metrics.csv")] == ["5", "10", "15", "20", "25", "30"]
    results = rows_of(finished / "results.csv")
    assert {"model", "scale", "dataset", "image", "psnr_y", "ssim_y", "protocol"} <= set(results[0])
    assert [row["model"] for row in results if row["image"] == "mean"] == ["bicubic", "espcn"]
    assert results[0]["protocol"].endswith("lr-made")
    assert len(list((finished / "pictures").glob("*.png"))) == 1


def test_run_says_where_its_time_went(finished_command):
    run_dir, output = finished_command
    phases = ("data", "forward and backward", "optimizer", "validation", "other")
    line = r"30 steps in ([\d.,]+) s \(([\d,]+) patches/s\): " + ", ".join(rf"{phase} (\d+) %" for phase in phases)
    seconds, rate, *shares = (float(number.replace(",", "")) for number in re.search(line, output).groups())
    assert 30 * 4 / (seconds + 0.05) - 1 <= rate  # the seconds are rounded
    assert seconds < 0.1 or rate <= 30 * 4 / (seconds - 0.05) + 1
    assert sum(shares) == pytest.approx(100, abs=3) and all(share > 0 for share in shares[1:4])

    recorded = [float(row["seconds"]) for row in rows_of(run_dir / "metrics.csv")]
    assert recorded == sorted(recorded) and recorded[0] > 0
    assert recorded[-1] <= json.loads((run_dir / "result.json").read_text())["seconds"] <= seconds + 0.05


def test_best_checkpoint_has_the_best_validation_score(finished):
    best = max(float(row["val/psnr"]) for row in rows_of(finished / "metrics.csv") if row["val/psnr"])
    scored = next(r for r in rows_of(finished / "results.csv") if (r["model"], r["image"]) == ("espcn", "mean"))
    assert float(scored["psnr_y"]) == pytest.approx(best, abs=1e-4)


def test_a_flat_validation_image_changes_neither_scores_nor_weights(command, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "flat")
    Image.new("RGB", (64, 64)).save(tmp_path / "flat" / "black.png")
    scores, outputs = {}, {}
    for folder in (pictures, tmp_path / "flat"):
        run_dir = tmp_path / f"{folder.name}_run"
        outputs[folder] = run(*command, f"data.val_hr={folder}", f"hydra.run.dir={run_dir}").stdout
        metrics = [row | {"seconds": None} for row in rows_of(run_dir / "metrics.csv")]
        scores[folder] = metrics, rows_of(run_dir / "results.csv")
    assert scores[pictures] == scores[tmp_path / "flat"]
    assert outputs[tmp_path / "flat"].count("held-out: 1 of 7 images are not scored") == 1


def test_checkpoint_describes_its_network(finished):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["model"]["network"]["scale"] == 2
    trained = load_network(finished / "checkpoints" / "last.ckpt")
    assert (trained.name, trained.step, trained.network.scale) == ("espcn", 30, 2)


def test_checkpoint_naming_another_class_is_refused(finished, tmp_path):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["model"]["network"] = {"_target_": "subprocess.Popen", "args": ["true"]}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="not one of this project"):
        load_network(tmp_path / "evil.ckpt")


def test_resuming_a_finished_run_repeats_its_scores(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "results.csv").unlink()
    run("train.py", f"resume={copy}")
    assert rows_of(copy / "results.csv") == rows_of(finished / "results.csv")
    assert (copy / ".hydra" / "overrides.yaml").read_text() == (finished / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.slow
def test_last_step_is_validated_and_saved_at_any_interval(command, tmp_path):
    run(*command, "max_steps=13", "val_every=5", "save_every=4", f"hydra.run.dir={tmp_path}")
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv") if row["val/psnr"]] == ["5", "10", "13"]
    assert load_network(tmp_path / "checkpoints" / "last.ckpt").step == 13


@pytest.mark.slow
def test_every_residence_trains_to_the_same_weights(command, tmp_path):
    for residence in ("mmap", "memory", "device"):
        run(*command, f"data.residence={residence}", "max_steps=10", f"hydra.run.dir={tmp_path / residence}")
    trained = [load_network(tmp_path / r / "checkpoints" / "last.ckpt").network for r in ("mmap", "memory", "device")]
    for other in trained[1:]:
        for name, tensor in trained[0].state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.slow
def test_commands_run_in_new_interpreters(command, pictures, tmp_path):
    """Other tests fork their commands from a process that has imported torch; these import everything themselves."""
    run_dir = tmp_path / "run"
    code = f"""
import gc, runpy, sys
sys.argv = {[*command, "max_steps=10", f"hydra.run.dir={run_dir}"]!r}
runpy.run_path("train.py", run_name="__main__")
assert gc.get_freeze_count() > 200_000 and gc.isenabled()  # the libraries
assert not {{"matplotlib", "scipy"}} & set(sys.modules)
from lightning_utilities.core.imports import RequirementCache, package_available
assert RequirementCache("scipy") and package_available("scipy")
"""
    run_in_new_interpreter("-c", code)
    benchmark = tmp_path / "benchmark" / "Mine" / "HR"
    shutil.copytree(pictures, benchmark)
    words = (f"ckpt={run_dir}", "benchmarks=[Mine]", f"data_root={tmp_path}", f"hydra.run.dir={tmp_path / 'scored'}")
    done = run_in_new_interpreter("evaluate.py", *words)
    assert len(rows_of(tmp_path / "scored" / "results.csv")) == 14
    assert "report.html" in done.stdout


def test_a_name_may_be_a_number(command, tmp_path):
    run(*command, "name=2026", "max_steps=2", "val_every=2", f"hydra.run.dir={tmp_path}")
    assert [row["model"] for row in rows_of(tmp_path / "results.csv") if row["image"] == "mean"] == ["bicubic", "2026"]
    assert load_network(tmp_path).name == "2026"
