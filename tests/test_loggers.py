import csv

import pytest

from sr_lightning.loggers import MetricsFile


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_one_step_share_a_row_and_new_ones_get_a_column(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 0.5}, step=50)
    log.log_metrics({"train/loss": 0.25}, step=100)
    log.log_metrics({"val/psnr": 30.125}, step=100)
    log.log_metrics({"train/loss": 0.125}, step=150)
    assert read(tmp_path / "metrics.csv") == [
        {"step": "50", "train/loss": "0.5", "val/psnr": ""},
        {"step": "100", "train/loss": "0.25", "val/psnr": "30.125"},
        {"step": "150", "train/loss": "0.125", "val/psnr": ""},
    ]


def test_the_file_is_complete_after_every_call(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(1, 30):
        log.log_metrics({"a": step, "b": 1 / step}, step=step)
        log.log_metrics({"a": -step}, step=step)
        rows = read(tmp_path / "metrics.csv")
        assert len(rows) == step
        assert float(rows[-1]["a"]) == -step
        assert float(rows[-1]["b"]) == pytest.approx(1 / step)


def test_a_resumed_run_goes_on_and_replaces_the_steps_it_makes_again(tmp_path):
    first = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        first.log_metrics({"a": step}, step=step)
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.log_metrics({"a": -20}, step=20)
    resumed.log_metrics({"a": -30}, step=30)
    assert [(row["step"], row["a"]) for row in read(tmp_path / "metrics.csv")] == [
        ("10", "10"),
        ("20", "-20"),
        ("30", "-30"),
    ]
