"""Several processes on a CPU train and score like one, and end together."""

import socket
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from sr_lightning.checkpoints.checkpoint import read_checkpoint
from sr_lightning.data import FolderDataModule
from sr_lightning.degradations import Bicubic
from sr_lightning.images.files import read_image
from sr_lightning.loggers import MetricsCSV
from sr_lightning.metrics.protocol import Protocol, score
from sr_lightning.modules import SRModule
from sr_lightning.networks import ESPCN
from tests.helpers import Command, differences, rows_of, run


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
def test_validation_counts_each_image_once_in_any_number_of_processes(pictures, network, tmp_path, count, processes):
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


SMOOTH = (  # another order of sums stays a rounding error on every processor
    *("model.loss._target_=torch.nn.MSELoss", "model.network.activation=Tanh"),
    *("model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.03"),
    *("max_steps=10", "log_every=1", "val_every=5"),
)


def on(processes: int) -> list[str]:
    return ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]


@pytest.fixture(scope="module")
def one_and_two(command, tmp_path_factory) -> tuple[Path, Path]:
    """The directories of a run in one process and of the same run in two.

    Muon would amplify rounding errors: its steps have a fixed size, also along directions where the gradient is nearly
    zero.
    """
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        times = f"hydra.run.dir={folder}/{processes}/${{now:%H-%M-%S-%f}}"
        run(*command, *SMOOTH, "logger=both", *on(processes), times)
    return tuple(next((folder / str(processes)).iterdir()) for processes in (1, 2))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(one_and_two):
    one, two = (rows_of(folder / "metrics.csv") for folder in one_and_two)
    assert [row["step"] for row in one] == [row["step"] for row in two] == [str(step) for step in range(1, 11)]
    assert len({row["train/loss"] for row in one}) == 10
    assert float(one[0]["train/loss"]) == pytest.approx(float(two[0]["train/loss"]), rel=1e-6)  # the same samples
    for key in ("train/loss", "val/psnr", "val/ssim"):
        values = [[float(row[key]) for row in rows if row[key]] for rows in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    weights = [read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in one_and_two]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    best = max(float(row["val/psnr"]) for row in two if row["val/psnr"])  # over processes; the results are of one
    assert best == pytest.approx(float(rows_of(one_and_two[1] / "results.csv")[-1]["psnr_y"]), abs=1e-4)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(one_and_two):
    images = [[row["image"] for row in rows_of(folder / "results.csv")] for folder in one_and_two]
    assert images[0] == images[1]

    def files(folder):
        """Return the files, without those of W&B and TensorBoard, whose names contain their start time."""
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        return {str(name) for name in names if name.parts[0] not in ("wandb", "tensorboard")}

    assert files(one_and_two[0]) == files(one_and_two[1])
    for folder in one_and_two:
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    events = [len(list(folder.glob("tensorboard/events.*"))) for folder in one_and_two]
    assert events[0] == events[1]


@pytest.mark.slow
def test_two_machines_are_two_processes_of_one(one_and_two, command, tmp_path):
    """As Lightning's environment describes them: NODE_RANK, and the first machine's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    words = [*command, *SMOOTH, *on(1), "trainer.num_nodes=2", f"hydra.run.dir={tmp_path / 'run'}"]
    machines = [Command(*words, environment=address | {"NODE_RANK": str(rank)}) for rank in (0, 1)]
    done = [machine.wait() for machine in machines]
    assert [each.returncode for each in done] == [0, 0], done
    one, two = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (one_and_two[1], tmp_path / "run"))
    assert not list(differences(one["state_dict"], two["state_dict"], "weights"))
    assert "best" in done[0].stdout and "best" not in done[1].stdout


@pytest.mark.parametrize("call", [1, 4], ids=["before they have met", "in a step"])
@pytest.mark.slow
def test_failure_of_one_process_ends_the_run_with_its_error(command, tmp_path, monkeypatch, call):
    monkeypatch.setenv("SR_FAIL", f"1:{call}")
    words = ["model.loss._target_=tests.training.failing.FailingLoss", f"hydra.run.dir={tmp_path}"]
    done = run(*command, *words, *on(2), check=False)  # times out after five minutes
    assert done.returncode != 0
    assert "made to fail in process 1" in done.stdout + done.stderr
    assert not (tmp_path / "checkpoints").exists()
