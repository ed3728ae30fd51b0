"""Several processes on a CPU: what they train on and score is what one process would, and they end together."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from sr_lightning.data import FolderDataModule
from sr_lightning.degradations import Bicubic
from sr_lightning.images.files import read_image
from sr_lightning.loggers import MetricsCSV
from sr_lightning.metrics.protocol import Protocol, score
from sr_lightning.modules import SRModule
from sr_lightning.networks import ESPCN
from tests.helpers import rows_of, run


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ESPCN(scale=2, num_features=[8, 4], kernel_sizes=[5, 3, 3], global_skip=True)


def folder_of(pictures, count, folder) -> Path:
    folder.mkdir()
    for path in sorted(pictures.iterdir())[:count]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(("count", "processes"), [(5, 1), (5, 2), (5, 4), (1, 2), (3, 4)])
def test_each_image_counts_once_whatever_the_number_of_processes(pictures, network, tmp_path, count, processes):
    if torch.cuda.is_initialized():
        pytest.skip("a process that uses a GPU cannot be forked")
    val = folder_of(pictures, count, tmp_path / "val")
    data = FolderDataModule(
        *(str(pictures),), val_hr=str(val), scale=2, degradation=Bicubic(), patch_size=8, batch_size=4, max_steps=1,
        seed=0, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_fork", logger=[MetricsCSV(tmp_path / "metrics.csv")],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = SRModule(network)
    data.setup()
    trainer.validate(module, data, verbose=False)

    one_by_one = []
    for path in sorted(val.iterdir()):
        levels = torch.from_numpy(read_image(path))
        lr, hr = (image[None].float().mul(1 / 255) for image in (Bicubic()(levels, 2), levels))
        with torch.inference_mode():
            one_by_one.append(score(module(lr), hr, 2, Protocol()))
    (row,) = rows_of(tmp_path / "metrics.csv")  # one logger, that of process 0
    for name in ("psnr", "ssim"):
        mean = sum(scores[name].item() for scores in one_by_one) / count
        assert float(row[f"val/{name}"]) == pytest.approx(mean, abs=1e-6)
        monitored = trainer.callback_metrics[f"val/{name}"].item()
        assert monitored == pytest.approx(mean, rel=2**-23)  # Lightning keeps it in float32


def on(processes: int) -> list[str]:
    return ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]


def test_two_processes_train_as_one_and_leave_the_same_directory(command, tmp_path):
    words = ["max_steps=10", "log_every=1", "val_every=5", "logger=both"]
    runs = {}
    for processes in (1, 2):
        place = tmp_path / str(processes)
        run(*command, *words, *on(processes), f"hydra.run.dir={place}/${{now:%H-%M-%S-%f}}")
        (runs[processes],) = place.iterdir()

    one, two = (rows_of(runs[processes] / "metrics.csv") for processes in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [str(step) for step in range(1, 11)]
    assert len({row["train/loss"] for row in one}) == 10
    assert float(one[0]["train/loss"]) == pytest.approx(float(two[0]["train/loss"]), rel=1e-6)  # the same samples
    for key in ("train/loss", "val/psnr", "val/ssim"):  # and then the same steps, but for the order of sums
        values = [[float(row[key]) for row in rows if row[key]] for rows in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    results = rows_of(runs[2] / "results.csv")
    assert [row["image"] for row in results] == [row["image"] for row in rows_of(runs[1] / "results.csv")]
    best = max(float(row["val/psnr"]) for row in two if row["val/psnr"])  # over processes; the results are of one
    assert best == pytest.approx(float(results[-1]["psnr_y"]), abs=1e-4)

    def left(folder):
        """Files, without those of W&B and TensorBoard, whose names tell when they were begun."""
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        return {str(name) for name in names if name.parts[0] not in ("wandb", "tensorboard")}

    assert left(runs[1]) == left(runs[2])
    for folder in runs.values():
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    events = [len(list(folder.glob("tensorboard/events.*"))) for folder in runs.values()]
    assert events[0] == events[1]


@pytest.mark.parametrize("call", [1, 4], ids=["before they have met", "in a step"])
def test_if_one_process_fails_the_run_ends_with_its_error(command, tmp_path, monkeypatch, call):
    monkeypatch.setenv("SR_FAIL", f"1:{call}")
    words = ["model.loss._target_=tests.training.failing.FailingLoss", f"hydra.run.dir={tmp_path}"]
    done = run(*command, *words, *on(2), check=False)  # which waits for five minutes at most
    assert done.returncode != 0
    assert "made to fail in process 1" in done.stdout + done.stderr
    assert not (tmp_path / "checkpoints").exists()
