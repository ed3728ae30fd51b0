"""Scores written into the runs of Weights & Biases that they belong to, and the upload of a sweep."""

import json
import os
import re
import subprocess

import pytest

from sr_lightning.errors import InputError
from sr_lightning.evaluation.checks import check_request
from sr_lightning.evaluation.wandb_scores import summary_scores, write_scores
from sr_lightning.leaderboard.ranking import write_run_scores
from sr_lightning.leaderboard.runs import Run, group
from sr_lightning.loggers.wandb import WandbRun
from sr_lightning.runs.wandb_record import record_path, run_id
from sr_lightning.sweeps.callback import upload_hint
from sr_lightning.sweeps.invocation import SweepInvocation
from tests.helpers import compose, run
from tests.loggers.wandb_server import KEY, WANDB

LOGGER = {"_target_": "sr_lightning.loggers.WandbRun", "project": "sr_lightning", "entity": "me"}
ROW = {"dataset": "Set5", "image": "mean", "model": "a", "scale": 2, "psnr_y": 30.5, "ssim_y": 0.9, "protocol": "p"}


def record(run_dir, **settings):
    """Log a run with a score of its own."""
    part = WandbRun(run_dir, project="sr_lightning", checkpoints=[], **settings)
    part.log_summary({"psnr": 31.5, "test/Set5/psnr_y": 1.0})
    part.close()


def test_scores_are_added_to_the_summary_of_the_run(wandb_server, tmp_path):
    record(tmp_path, offline=False)
    write_scores(tmp_path, LOGGER, {"test/Set5/psnr_y": 30.5, "test/Set14/psnr_y": 28.5})
    summary = json.loads(wandb_server.runs[run_id(tmp_path)].summary)
    assert {key: summary[key] for key in ("psnr", "test/Set5/psnr_y", "test/Set14/psnr_y")} == {
        "psnr": 31.5,
        "test/Set5/psnr_y": 30.5,
        "test/Set14/psnr_y": 28.5,
    }


def test_run_that_the_server_does_not_know_is_named(wandb_server, tmp_path, caplog):
    with pytest.raises(
        InputError, match=rf"{tmp_path}: its run in Weights & Biases, me/sr_lightning/\w+: Could not find run"
    ):
        write_scores(tmp_path, LOGGER, {"a": 1.0})
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("logger", "path"),
    [
        (LOGGER, "me/sr_lightning/"),
        (LOGGER | {"entity": None}, "sr_lightning/"),
        ({"tensorboard": {"_target_": "x"}, "wandb": LOGGER}, "me/sr_lightning/"),
    ],
)
def test_record_of_a_run_is_found_by_its_config(tmp_path, logger, path):
    assert record_path(logger, tmp_path) == path + run_id(tmp_path)


def test_scores_have_the_names_that_the_run_wrote_unless_they_mean_something_else():
    cfg = compose("ckpt=a", "wandb=true", config="evaluate")
    own = compose(config="evaluate")
    config = {key: dict(own[key]) for key in ("protocol", "degradation")}
    others = [ROW | {"image": "baby"}]
    assert summary_scores([ROW, *others], config, cfg) == {"test/Set5/psnr_y": 30.5, "test/Set5/ssim_y": 0.9}
    assert "last/Set5/psnr_y" in summary_scores([ROW], config, cfg, "last")
    cfg.self_ensemble = True
    assert "test+/Set5/psnr_y" in summary_scores([ROW], config, cfg)
    cfg.protocol.border = 4
    assert "test+/Set5 p/psnr_y" in summary_scores([ROW], config, cfg)


def test_what_cannot_be_written_is_refused_before_anything_is_scored(wandb_server, trained, tmp_path, data_root):
    cfg = compose(f"ckpt={trained}", "wandb=true", f"data_root={data_root}", config="evaluate")
    with pytest.raises(
        InputError, match=r"has no run in Weights & Biases for wandb=true: it was trained without logger=wandb"
    ):
        check_request(cfg)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(trained.read_bytes())
    record(tmp_path, offline=True)
    cfg.ckpt = str(tmp_path)
    command = re.escape(f"wandb sync {tmp_path}/wandb/offline-run-*")
    with pytest.raises(
        InputError, match=rf"is not in Weights & Biases yet, for wandb=true; upload it first: {command}$"
    ):
        check_request(cfg)
    with pytest.raises(InputError, match="wandb=true: only scores of ckpt= and runs="):
        check_request(compose("model=bicubic", "scale=x2", "wandb=true", f"data_root={data_root}", config="evaluate"))
    cfg.wandb = "yes"
    with pytest.raises(InputError, match="wandb=yes: choose true or false"):
        check_request(cfg)


def test_without_a_key_scores_are_refused_before_anything_is_scored(wandb_server, trained, data_root, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(InputError, match=r"wandb=true: no key for .*`wandb login`"):
        check_request(compose(f"ckpt={trained}", "wandb=true", f"data_root={data_root}", config="evaluate"))


def test_command_that_a_sweep_prints_uploads_all_of_its_cells(wandb_server, tmp_path):
    invocation = SweepInvocation(tmp_path / "a b" / ".sweep" / "now")
    invocation.directory.mkdir(parents=True)
    for number, cell in enumerate(("x", "y")):
        invocation.report(number, cell=cell, status="finished")
        assert number or upload_hint(invocation) == ""
        record(tmp_path / "a b" / cell, name=cell)
    command = upload_hint(invocation).removeprefix("\nWeights & Biases, to upload the sweep: ")
    path = os.pathsep.join((str(WANDB.parent), os.environ["PATH"]))
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=os.environ | {"PATH": path}, timeout=120)
    assert sorted(run.name for run in wandb_server.runs.values()) == ["x", "y"]
    assert upload_hint(invocation) == ""


@pytest.mark.slow
def test_evaluation_and_leaderboard_write_their_scores_into_the_run(wandb_server, command, data_root, tmp_path, caplog):
    folder = tmp_path / "runs" / "one"
    run(*command, "logger=wandb", "logger.offline=false", f"hydra.run.dir={folder}")
    (uploaded,) = wandb_server.runs.values()
    before = json.loads(uploaded.summary)
    sets = ["wandb=true", f"data_root={data_root}", f"hydra.run.dir={tmp_path}/scores"]
    reference = f"wandb:me/sr_lightning/model-{run_id(folder)}:best"  # notes the run beside its checkpoint
    run("evaluate.py", f"ckpt={reference}", *sets, "num_comparisons=0", "report_images=0")
    after = json.loads(uploaded.summary)
    assert after["test/Set5/psnr_y"] > 30 and "test/Set5/psnr_y" not in before
    assert {key: after[key] for key in before} == before

    cfg = compose(f"runs={folder.parent}", "wandb=true", "self_ensemble=true", config="evaluate")
    groups, _ = group([Run.read(folder)])
    write_run_scores(cfg, groups, {folder: {"Set5": [ROW]}})
    assert json.loads(uploaded.summary)["test+/Set5/psnr_y"] == 30.5

    (folder / "wandb_id").unlink()
    write_run_scores(cfg, groups, {folder: {"Set5": [ROW]}})
    assert "scores of 1 of 1 runs are not in Weights & Biases" in caplog.text
