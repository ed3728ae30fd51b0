"""A failed and resumed run in MLflow, read by MLflow's own client."""

import shutil
import tomllib
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.loggers import MLflowRun, closing
from sr_lightning.runs.result import read_result
from sr_lightning.training import checks
from sr_lightning.utils.signals import Interrupted
from tests.helpers import ROOT, compose, rows_of, run


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_in(folder: Path) -> list:
    client = client_of(folder)
    return [one for experiment in client.search_experiments() for one in client.search_runs([experiment.experiment_id])]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """An empty database, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    MLflowRun(folder, experiment="mine")
    return folder / "mlflow.db"


@pytest.fixture
def run_dir(database, tmp_path) -> Path:
    shutil.copy(database, tmp_path)
    return tmp_path


def settings(*overrides):
    cfg = compose("choices={data: t91, model: net, experiment: null}", "data=t91", *overrides)
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.slow
def test_failed_and_resumed_run_is_one_run_with_each_value_once(command, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setenv("SR_FAIL", "0:17")  # the first call is the preflight's
        words = ["logger=mlflow", "model.loss._target_=tests.training.failing.FailingLoss"]
        run(*command, *words, f"hydra.run.dir={run_dir}", check=False)
    (failed,) = runs_in(run_dir)
    assert failed.info.status == "FAILED"
    output = run("train.py", f"resume={run_dir}", "allow=tests").stdout
    assert "mlflow" not in output.lower()
    assert "alembic" not in output
    (resumed,) = runs_in(run_dir)
    assert (resumed.info.run_id, resumed.info.status) == (failed.info.run_id, "FINISHED")
    for key in ("train/loss", "train/gradient", "val/psnr"):
        history = client_of(run_dir).get_metric_history(resumed.info.run_id, key)
        expected = [(int(row["step"]), float(row[key])) for row in rows_of(run_dir / "metrics.csv") if row[key]]
        assert [(value.step, value.value) for value in history] == [(s, pytest.approx(v)) for s, v in expected]
    result = read_result(run_dir)
    assert {key: resumed.data.metrics[key] for key in ("psnr", "bicubic")} == {
        k: result[k] for k in ("psnr", "bicubic")
    }
    assert resumed.data.metrics["test/held-out/psnr_y"] == pytest.approx(result["psnr"])
    assert resumed.data.tags["status"] == "finished"
    assert resumed.data.params["model.network._target_"] == "sr_lightning.networks.ESPCN"


def test_runs_of_a_sweep_are_one_experiment_in_its_folder(run_dir):
    (run_dir / ".sweep").mkdir()
    for seed in (1, 2):
        logger = MLflowRun(run_dir / str(seed), experiment="mine", name=f"cell {seed}")
        logger.log_hyperparams(settings(f"seed={seed}"))
        logger.close()
    assert {one.info.run_name: one.data.params["seed"] for one in runs_in(run_dir)} == {"cell 1": "1", "cell 2": "2"}
    assert len({one.info.experiment_id for one in runs_in(run_dir)}) == 1


def test_run_that_a_signal_ends_is_killed_and_keeps_its_settings_when_it_goes_on(run_dir):
    logger = MLflowRun(run_dir, experiment="mine")
    with pytest.raises(Interrupted), closing([logger]):
        logger.log_hyperparams(settings())
        logger.log_metrics({"val/psnr": 30.0}, step=10)
        raise Interrupted(2)
    assert [one.info.status for one in runs_in(run_dir)] == ["KILLED"]
    logger = MLflowRun(run_dir, experiment="mine")
    logger.log_hyperparams(settings("max_steps=9000"))  # as after an extension
    logger.log_metrics({"val/psnr": 30.0, "val/ssim": 0.9}, step=10)
    (one,) = runs_in(run_dir)
    assert (one.info.status, one.data.params["max_steps"]) == ("RUNNING", "4500")
    history = {key: client_of(run_dir).get_metric_history(one.info.run_id, key) for key in ("val/psnr", "val/ssim")}
    assert [len(values) for values in history.values()] == [1, 1]


def test_training_goes_on_without_mlflow_after_one_line(run_dir, monkeypatch, caplog):
    logger = MLflowRun(run_dir, experiment="mine")
    logger.log_metrics({"val/psnr": 30.0}, step=10)

    def fail(*args, **kwargs):
        raise MlflowException("database is locked")

    monkeypatch.setattr(MlflowClient, "log_batch", fail)
    for step in (20, 30):
        logger.log_metrics({"val/psnr": 30.0}, step=step)
    logger.close()
    (line,) = [record.message for record in caplog.records if "MLflow" in record.message]
    assert "MLflow has failed (database is locked); training continues" in line


def test_address_that_mlflow_does_not_know_is_refused(run_dir):
    with pytest.raises(InputError, match=r"logger\.tracking_uri=ftp://nowhere: "):
        MLflowRun(run_dir, experiment="mine", tracking_uri="ftp://nowhere")


def test_missing_package_of_a_logger_is_one_line_with_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    for option, extra in (("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboard")):
        with pytest.raises(InputError) as raised:
            checks.check_loggers(compose(f"logger={option}").logger)
        assert len(str(raised.value).splitlines()) == 1
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
        assert str(raised.value).endswith("pip install " + " ".join(f'"{package}"' for package in wanted))
    with pytest.raises(InputError, match=r"TensorBoard needs tensorboard:.*\n.*WandbRun needs wandb:"):
        checks.check_loggers(compose("logger=both").logger)
