"""Trials (`debug=`): short, overfit and limit, away from runs and their names."""

import pytest
from hydra.utils import instantiate

from sr_lightning.errors import InputError
from sr_lightning.leaderboard.runs import Run
from sr_lightning.runs.fingerprint import fingerprint
from sr_lightning.training import checks
from sr_lightning.training.checks import check_directory
from tests.helpers import ROOT, compose, rows_of, run

CHOICES = "choices={data: demo, model: espcn, experiment: null}"


def psnr_of_batch(run_dir):
    return [float(row["train/psnr"]) for row in rows_of(run_dir / "metrics.csv") if row["train/psnr"]]


def overfit(command, run_dir, *settings):
    words = [word for word in command if "every" not in word and "steps" not in word]
    output = run(*words, "debug=overfit", "max_steps=60", *settings, f"hydra.run.dir={run_dir}").stdout
    return output, psnr_of_batch(run_dir)


def test_overfitted_batch_climbs(command, tmp_path):
    output, psnr = overfit(command, tmp_path)
    assert len(psnr) == 3
    assert psnr == sorted(psnr)
    assert "debug    the first batch at every step" in output
    assert f"{psnr[-1]:.2f} dB at last\n" in output
    assert "compare  " not in output
    run_of_trial = Run.read(tmp_path)
    assert (run_of_trial.status, run_of_trial.reason) == ("finished", "it is a trial, debug=overfit")
    assert not run_of_trial.is_scorable


def test_batch_that_does_not_climb_is_reported(command, tmp_path):
    output, psnr = overfit(command, tmp_path, "model.optimizer.lr=0", "model.scheduler=null")
    assert len(set(psnr)) == 1
    assert len({row["train/loss"] for row in rows_of(tmp_path / "metrics.csv")}) == 1  # the same batch at every step
    assert "it has not risen" in output


def test_short_trial_does_everything_once_below_a_folder_of_its_own(command, tmp_path):
    words = [word for word in command[1:] if "every" not in word and "steps" not in word]
    run(ROOT / "train.py", *words, "debug=short", cwd=tmp_path)
    (run_dir,) = tmp_path.glob("outputs/debug/espcn_folder_x2/*")
    assert [row["step"] for row in rows_of(run_dir / "metrics.csv")] == ["5", "10"]
    assert list(run_dir.glob("pictures/validation/*/step_0000010.png"))
    assert (run_dir / "report.html").is_file()


@pytest.mark.parametrize("option", ["short", "overfit", "limit"])
def test_trial_has_another_name_and_sweep_than_the_run(option):
    usual, trial = (compose(CHOICES, "sweep=mine", *words, hydra=True) for words in ([], [f"debug={option}"]))
    assert trial.debug == option
    assert fingerprint(trial) != fingerprint(usual)
    assert [cfg.hydra.sweep.dir for cfg in (usual, trial)] == ["multirun/mine", "multirun/debug/mine"]


def test_settings_of_a_trial_go_before_those_of_a_recipe():
    assert compose("experiment=espcn_fast", "debug=short").max_steps == 10
    assert compose("experiment=espcn_fast", "debug=short", "max_steps=3").max_steps == 3


def test_trial_does_not_overwrite_a_run(tmp_path):
    cfg = compose("debug=short", f"run_dir={tmp_path}")
    check_directory(cfg)
    (tmp_path / "config.yaml").write_text("debug: short\n")
    check_directory(cfg)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(InputError, match="is the directory of a run; leave"):
        check_directory(cfg)


def test_new_run_does_not_overwrite_another(tmp_path, monkeypatch):
    cfg = compose(f"run_dir={tmp_path}")
    check_directory(cfg)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match=r"has the checkpoints of a run: go on with .* resume=.*, or name another dir"):
        check_directory(cfg)
    check_directory(compose(f"run_dir={tmp_path}", f"resume={tmp_path}"))
    monkeypatch.setattr(checks, "is_cell", lambda: True)
    check_directory(cfg)


def test_part_of_the_images_is_used_and_at_least_one_of_each_set():
    data = instantiate(compose("data.limit=0.2").data)
    whole = instantiate(compose().data)
    assert (data.train, data.val) == (whole.train[:3], whole.val[:1])
    with pytest.raises(Exception, match=r"data\.limit=0: give a part of the images above 0 and up to 1"):
        instantiate(compose("data.limit=0").data)
