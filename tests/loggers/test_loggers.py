"""metrics.csv, and failures of Weights & Biases against a local server that records uploads."""

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import wandb

from sr_lightning.errors import InputError
from sr_lightning.loggers.base import Outcome
from sr_lightning.loggers.metrics_csv import MetricsCSV
from sr_lightning.loggers.wandb import WandbRun, run_id
from sr_lightning.runs.wandb_record import wandb_mode
from sr_lightning.training.checks import check_loggers
from tests.helpers import compose, rows_of, slow_except
from tests.loggers.wandb_server import KEY, WANDB


def history_of(file):
    done = subprocess.run([WANDB, "leet", "inspect", "--json", file], capture_output=True, check=True)
    rows = [record["history"]["item"] for record in map(json.loads, done.stdout.splitlines()) if "history" in record]
    return [(row["step"], row["loss"]) for row in rows]


def test_metrics_of_one_step_share_a_row_and_new_ones_get_a_column(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 0.5}, step=50)
    log.log_metrics({"train/loss": 0.25}, step=100)
    log.log_metrics({"val/psnr": 30.125}, step=100)
    log.log_metrics({"train/loss": 0.125}, step=150)
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": "50", "train/loss": "0.5", "val/psnr": ""},
        {"step": "100", "train/loss": "0.25", "val/psnr": "30.125"},
        {"step": "150", "train/loss": "0.125", "val/psnr": ""},
    ]


def test_metrics_file_is_complete_after_every_call(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(1, 30):
        log.log_metrics({"a": step, "b": 1 / step}, step=step)
        log.log_metrics({"a": -step}, step=step)
        rows = rows_of(tmp_path / "metrics.csv")
        assert len(rows) == step
        assert float(rows[-1]["a"]) == -step
        assert float(rows[-1]["b"]) == pytest.approx(1 / step)


def test_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path):
    first = MetricsCSV(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        first.log_metrics({"a": step}, step=step)
    resumed = MetricsCSV(tmp_path / "metrics.csv", steps_done=10)
    resumed.log_metrics({"a": -20}, step=20)
    resumed.log_metrics({"a": -30}, step=30)
    assert [(row["step"], row["a"]) for row in rows_of(tmp_path / "metrics.csv")] == [
        ("10", "10"),
        ("20", "-20"),
        ("30", "-30"),
    ]


def test_metrics_file_cut_at_any_byte_keeps_the_whole_rows_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsCSV(path)
    for step in (7, 14, 20, 21, 120):
        log.log_metrics({"a": step / 3, "b": step}, step=step)
    content = path.read_bytes()
    rows = rows_of(path)
    for cut in range(len(content) + 1):
        for tail in (b"", bytes(9), b"\xff\xfe"):
            path.write_bytes(content[:cut] + tail)
            whole = content[:cut].count(b"\n") - 1
            for done in (14, 20, 200):
                expected = [row for row in rows[: max(0, whole)] if int(row["step"]) <= done]
                assert MetricsCSV(path, done).rows == expected, (cut, tail, done)
                assert not expected or rows_of(path) == expected
                path.write_bytes(content[:cut] + tail)


def test_new_run_begins_a_new_metrics_file(tmp_path):
    MetricsCSV(tmp_path / "metrics.csv").log_metrics({"a": 1}, step=20)
    MetricsCSV(tmp_path / "metrics.csv").log_metrics({"b": 2}, step=30)
    assert rows_of(tmp_path / "metrics.csv") == [{"step": "30", "b": "2"}]


def test_row_is_completed_in_a_new_file(tmp_path):
    """A kill while a row is overwritten in place would lose a value that a checkpoint needs."""
    log = MetricsCSV(tmp_path / "metrics.csv")
    log.log_metrics({"a": 1, "b": 1}, step=20)
    (tmp_path / "before").hardlink_to(tmp_path / "metrics.csv")
    log.log_metrics({"a": 2}, step=20)
    assert [rows_of(tmp_path / name)[0]["a"] for name in ("before", "metrics.csv")] == ["1", "2"]


@pytest.mark.slow
def test_wandb_step_is_the_x_axis_and_a_run_keeps_its_id(wandb_server, tmp_path):
    first = WandbRun(tmp_path, project="sr_lightning", name="n", group="g", tags=["t"], offline=False)
    first.log_hyperparams({"model": {"width": 3}})
    for step in (5, 10):
        first.log_metrics({"loss": 1 / step}, step)
    first.close(failed=True)
    assert [run.exit_code for run in wandb_server.runs.values()] == [1]

    resumed = WandbRun(tmp_path, project="sr_lightning", name="n", group="g", tags=["t"], offline=False)
    for step in (10, 15):
        resumed.log_metrics({"loss": 1 / step}, step)
    resumed.close()
    ((run_id, run),) = wandb_server.runs.items()
    assert run_id == (tmp_path / "wandb_id").read_text().strip()
    assert (run.name, run.group, run.tags, run.parts, run.exit_code) == ("n", "g", ["t"], 2, 0)
    assert run.config["model"]["value"] == {"width": 3}
    assert [(row["step"], row["loss"]) for _, row in sorted(run.history.items())] == [
        (step, pytest.approx(1 / step)) for step in (5, 10, 10, 15)
    ]


@pytest.mark.slow
def test_two_runs_of_one_process_are_separate(wandb_server, tmp_path):
    for name in ("a", "b"):
        run = WandbRun(tmp_path / name, project="sr_lightning", name=name, offline=False)
        run.log_metrics({"loss": 1.0}, 1)
        run.close()
    assert sorted(run.name for run in wandb_server.runs.values()) == ["a", "b"]
    assert [len(run.history) for run in wandb_server.runs.values()] == [1, 1]


def closed_port(server, patch):
    server.close()
    return "cannot be reached"


def silence(server, patch):
    server.silent = True
    return "timed out"


def error_500(server, patch):
    server.status = 500
    return "answers 500"


def refused_key(server, patch):
    server.status = 401
    return "401"


def no_key(server, patch):
    patch.delenv("WANDB_API_KEY")
    return "no key"


def half_a_key(server, patch):
    patch.setenv("WANDB_API_KEY", KEY[:20])
    return "API key must have"


@pytest.mark.parametrize(
    "trouble", slow_except([closed_port, silence, error_500, refused_key, no_key, half_a_key], no_key)
)
def test_unreachable_server_means_offline_recording(trouble, wandb_server, tmp_path, monkeypatch, caplog):
    words = trouble(wandb_server, monkeypatch)
    run = WandbRun(tmp_path, project="sr_lightning", offline=False, reply_timeout=0.5, init_timeout=5)
    run.log_metrics({"loss": 0.25}, 5)
    run.close()
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert words in warning and warning.endswith(f"wandb sync {tmp_path}/wandb/offline-run-*")
    assert history_of(next(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == [(5, 0.25)]


@pytest.mark.slow
def test_lost_connection_is_recovered_by_a_later_sync(wandb_server, tmp_path, caplog):
    run = WandbRun(tmp_path, project="sr_lightning", offline=False, finish_timeout=0.5)
    run.log_metrics({"loss": 1.0}, 5)
    wandb_server.status = 500
    run.log_metrics({"loss": 0.5}, 10)
    run.close()
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "Timed out" in warning

    wandb_server.status = None
    words = shlex.split(warning.split("To upload the rest later: ")[1])
    subprocess.run([WANDB, *words[1:]], cwd=tmp_path, check=True, timeout=120)
    (uploaded,) = wandb_server.runs.values()
    rows = [uploaded.history[i] for i in sorted(uploaded.history)]
    assert [(row["step"], row["loss"]) for row in rows] == [(5, 1.0), (10, 0.5)]


def test_what_a_lost_server_does_not_get_is_named_once(wandb_server, trained, tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained, tmp_path / "checkpoints" / "best.ckpt")
    run = WandbRun(tmp_path, project="sr_lightning", offline=False, finish_timeout=0.5)
    run.log_metrics({"loss": 1.0}, 5)
    wandb_server.status = 500
    row = {"model": "a", "dataset": "Set5", "image": "mean", "psnr_y": 30.5}
    run.log_outcome(Outcome([row], [], [], {"psnr": 30.5, "steps": 5}))
    run.close()
    first, second = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "answers 500" in first and first.endswith(f"; tables and checkpoints are in {tmp_path} only")
    assert "To upload the rest later" in second


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep to find the process")
def test_death_of_the_wandb_process_does_not_end_the_training(private_wandb, tmp_path, caplog):
    run = WandbRun(tmp_path, project="sr_lightning")
    run.log_metrics({"loss": 1.0}, 5)
    own = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True, check=True)
    os.kill(int(own.stdout), signal.SIGKILL)
    # The client reports this from a thread of its own for as long as the process lives, also into other tests' caplog
    logging.getLogger("wandb.sdk.lib.asyncio_manager").setLevel(logging.CRITICAL)
    for step in (10, 15, 20):
        run.log_metrics({"loss": 1.0}, step)
        time.sleep(0.1)
    run.close()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 and "training continues" in warnings[0] and "To upload the rest later" in warnings[1]


def test_run_id_is_written_before_the_run_starts(private_wandb, tmp_path, monkeypatch):
    def killed(**settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb, "init", killed)
    run = WandbRun(tmp_path, project="sr_lightning")
    with pytest.raises(KeyboardInterrupt):
        run.log_metrics({"loss": 1.0}, 5)
    assert run_id(tmp_path) == (tmp_path / "wandb_id").read_text().strip() == run.version


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"project": "a/b"}, "project name 'a/b'"),
        ({"project": "a", "tags": "x"}, r"logger.tags=x: .* a list such as \[a,b\]"),
        (
            {"project": "a", "offline": "flase"},
            r"offline=flase, logger\.tags=None: set true or false, and a list such as \[a,b\]",
        ),
        ({"project": "a", "tags": ["x" * 65]}, "64 characters"),
    ],
)
def test_invalid_wandb_settings_are_refused_before_the_training(private_wandb, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        WandbRun(tmp_path, **settings)


@pytest.mark.parametrize(("given", "mode"), [("run", "online"), ("dryrun", "offline"), ("disabled", "disabled")])
def test_earlier_names_of_modes_of_wandb_are_known(monkeypatch, given, mode):
    monkeypatch.setenv("WANDB_MODE", given)
    assert wandb_mode() == mode


@pytest.mark.parametrize("logger", ["wandb", "both"])
def test_unknown_mode_of_wandb_is_named_before_the_training(monkeypatch, logger):
    monkeypatch.setenv("WANDB_MODE", "nope")
    with pytest.raises(InputError, match=r"^WANDB_MODE=nope: choose online, offline or disabled"):
        check_loggers(compose(f"logger={logger}", "choices={data: demo}").logger)
