"""What Weights & Biases and TensorBoard hold after a run, read back from their own files."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import rows_of, run


@pytest.fixture
def private_wandb(tmp_path, monkeypatch):
    """Weights & Biases writes nothing outside the test's folder."""
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR", "TMPDIR"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_an_offline_run_holds_config_curves_pictures_and_results(command, tmp_path, private_wandb):
    run_dir = tmp_path / "run"
    run(*command, "logger=wandb", f"hydra.run.dir={run_dir}")
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    wandb = [os.path.join(os.path.dirname(sys.executable), "wandb"), "leet", "inspect", "--json"]
    lines = subprocess.run([*wandb, file], capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    summary = json.loads(subprocess.run([*wandb, "--summary", file], capture_output=True, check=True).stdout)

    assert summary["config"]["model"]["network"]["num_features"] == [64, 64, 32]
    history = [record["history"]["item"] for record in records if "history" in record]
    for key in ("train/loss", "val/psnr"):
        curve = [(row["trainer/global_step"], row[key]) for row in history if key in row]
        recorded = [(int(row["step"]), float(row[key])) for row in rows_of(run_dir / "metrics.csv") if row[key]]
        assert [step for step, _ in curve] == [step for step, _ in recorded]
        assert [value for _, value in curve] == pytest.approx([value for _, value in recorded])

    results = rows_of(run_dir / "results.csv")
    mean = next(row for row in results if (row["model"], row["image"]) == ("espcn", "mean"))
    assert summary["summary"]["test/held-out/psnr_y"] == pytest.approx(float(mean["psnr_y"]))
    assert summary["summary"]["results"]["nrows"] == len(results)
    table = json.loads((file.parent / "files" / summary["summary"]["results"]["path"]).read_text())
    assert table["columns"] == list(results[0])
    assert summary["summary"]["pictures"]["count"] == len(list((run_dir / "pictures").iterdir())) == 1


def test_tensorboard_has_the_curves_of_the_record(command, tmp_path):
    run_dir = tmp_path / "run"
    run(*command, "logger=tensorboard", f"hydra.run.dir={run_dir}")
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    for key in ("train/loss", "val/psnr"):
        curve = [(event.step, event.value) for event in events.Scalars(key)]
        recorded = [(int(row["step"]), float(row[key])) for row in rows_of(run_dir / "metrics.csv") if row[key]]
        assert curve == [(step, pytest.approx(value, rel=1e-6)) for step, value in recorded]
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("pictures/")]) == 1
