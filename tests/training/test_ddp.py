"""Several processes on a CPU train and score like one, and end together."""

import json
import os
import signal
import socket
import subprocess
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
from tests.helpers import Command, differences, metrics_of, rows_of, run


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


def by_environment(node: int, local: int) -> dict[str, str]:
    return {"NODE_RANK": str(node), "LOCAL_RANK": str(local)}


def by_slurm(node: int, local: int) -> dict[str, str]:
    """As srun starts one process on each of two machines."""
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "run", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "2"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    return job | tasks | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}


class Machines:
    """Machines that train one run, each with as many processes as there are devices, which are forked one by one.

    Args:
        words: The command.
        devices: Processes on each machine.
        nodes: Machines.
        describe: Environment of a process by the numbers of its machine and of the process on it.
        kills: Plan of `tests.killing` by rank.
    """

    def __init__(self, *words: object, devices: int = 1, nodes: int = 2, describe=by_environment, kills=None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        if not str(words[-1]).startswith("resume="):
            words = [*words, *on(devices), f"trainer.num_nodes={nodes}"]
        self.processes = []
        for rank in range(nodes * devices):
            plan = (kills or {}).get(rank)
            driver, kill = (["-m", "tests.killing"], {"SR_KILL": json.dumps(plan)}) if plan else ([], {})
            environment = address | describe(*divmod(rank, devices)) | kill
            self.processes.append(Command(*driver, *words, environment=environment))

    def wait(self, timeout: float = 300) -> list[subprocess.CompletedProcess]:
        return [process.wait(timeout) for process in self.processes]


FOUR = (*SMOOTH, "model.ema=0.9", "save_every=2")
AT_STEP_7 = {"phase": "step", "point": "before training_step", "pass": 7}


def state(run_dir: Path) -> dict:
    """Weights, their average, optimizer and schedule in the last checkpoint."""
    checkpoint = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


@pytest.mark.parametrize("describe", [by_environment, by_slurm])
@pytest.mark.slow
def test_two_machines_are_two_processes_of_one(one_and_two, command, tmp_path, describe):
    done = Machines(*command, *SMOOTH, f"hydra.run.dir={tmp_path / 'run'}", describe=describe).wait()
    assert [each.returncode for each in done] == [0, 0], done
    assert not list(differences(state(one_and_two[1]), state(tmp_path / "run"), "state"))
    assert "best" in done[0].stdout and "best" not in done[1].stdout


@pytest.fixture(scope="module")
def four(command, tmp_path_factory) -> Path:
    """The directory of a run in two processes on each of two machines."""
    folder = tmp_path_factory.mktemp("four") / "run"
    done = Machines(*command, *FOUR, f"hydra.run.dir={folder}", devices=2).wait()
    assert [each.returncode for each in done] == [0] * 4, done
    return folder


@pytest.mark.slow
def test_four_processes_of_two_machines_take_the_steps_of_one(one_and_two, four):
    one, of_four = (rows_of(folder / "metrics.csv") for folder in (one_and_two[0], four))
    assert [row["step"] for row in of_four] == [row["step"] for row in one]
    for key in ("train/loss", "val/psnr", "val/ssim"):
        values = [[float(row[key]) for row in rows if row[key]] for rows in (one, of_four)]
        if key == "train/loss":  # the scores are those of the average
            assert values[0] == pytest.approx(values[1], rel=1e-5)
        assert len(values[0]) == len(values[1])
    assert sorted(path.name for path in four.glob("*.json")) == ["provenance.json", "result.json"]
    assert len(json.loads((four / "provenance.json").read_text())) == 1


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.cluster
@pytest.mark.slow
def test_kill_of_one_process_ends_all_of_two_machines_and_the_run_resumes_in_the_same_bits(
    four, command, tmp_path, rank
):
    """Of process 0, another one of its machine, or one of the other machine."""
    words = [*command, *FOUR, f"hydra.run.dir={tmp_path}"]
    done = Machines(*words, devices=2, kills={rank: AT_STEP_7 | {"signals": [signal.SIGKILL]}}).wait(60)
    assert [each.returncode for each in done] == [-9 if n == rank else 1 for n in range(4)], done
    for each in done[:rank] + done[rank + 1 :]:
        assert " has ended without a word: it was killed, or" in each.stdout
        assert "Traceback" not in each.stdout + each.stderr
    assert 0 < state(tmp_path)["global_step"] < 10
    if rank == 0:  # on one machine with one process: the same samples, other sums
        run("train.py", f"resume={tmp_path}", "trainer.num_nodes=1", "trainer.devices=1")
        torch.testing.assert_close(state(tmp_path)["state_dict"], state(four)["state_dict"], rtol=0, atol=1e-6)
    elif rank == 2:
        done = Machines("train.py", f"resume={tmp_path}", devices=2).wait()
        assert [each.returncode for each in done] == [0] * 4, done
        assert not list(differences(state(four), state(tmp_path), "state"))
        assert metrics_of(four) == metrics_of(tmp_path)


@pytest.mark.cluster
@pytest.mark.slow
def test_kill_before_the_first_step_ends_the_other_machine(command, tmp_path):
    """Torch has not connected the processes yet."""
    kills = {1: {"phase": "start", "point": "before preflight", "pass": 1, "signals": [signal.SIGKILL]}}
    done = Machines(*command, *SMOOTH, f"hydra.run.dir={tmp_path}", kills=kills).wait(60)
    assert [each.returncode for each in done] == [1, -9]
    assert f"error: node 1 ({socket.gethostname()}) has ended without a word" in done[0].stdout
    assert not (tmp_path / ".owner").exists()


@pytest.mark.cluster
@pytest.mark.slow
def test_machine_that_falls_silent_is_named_after_the_timeout(command, tmp_path):
    kills = {1: AT_STEP_7 | {"signals": [signal.SIGSTOP]}}
    machines = Machines(*command, *FOUR, f"hydra.run.dir={tmp_path}", "trainer.timeout=2", kills=kills)
    try:
        first = machines.processes[0].wait(60)
    finally:
        os.kill(machines.processes[1].pid, signal.SIGCONT)  # it ends as soon as it wakes
    assert first.returncode == 1
    lines = [line for line in first.stdout.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "another process has not answered for 2 s (trainer.timeout): it is suspended, or its machine" in lines[0]
    assert f"Without an answer: node 1 ({socket.gethostname()}). To go on: " in lines[0]
    assert machines.processes[1].wait(60).returncode == 1


@pytest.mark.slow
def test_signal_to_one_machine_saves_and_stops_the_run_on_both(command, tmp_path):
    kills = {1: AT_STEP_7 | {"signals": [signal.SIGTERM]}}
    done = Machines(*command, *SMOOTH, f"hydra.run.dir={tmp_path}", kills=kills).wait(60)
    assert [each.returncode for each in done] == [143, 0], done
    assert "stopped by SIGTERM, saved at step 7. To go on: " in done[0].stdout
    assert state(tmp_path)["global_step"] == 7
    assert not (tmp_path / ".owner").exists()


IMPATIENT = """
import runpy, sys
from sr_lightning.training import nodes
nodes.VISIBLE = 1  # seconds in which a file must appear
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_machines_without_a_shared_folder_end_in_one_line_and_leave_no_file(command, tmp_path):
    run_dirs = [tmp_path / "shared" / "run", tmp_path / "own" / "run"]
    impatient = tmp_path / "impatient.py"
    impatient.write_text(IMPATIENT)
    both = Machines(impatient, *command, "hydra.run.dir=${oc.env:RUN_DIR}", describe=lambda node, _: {
        "NODE_RANK": str(node), "RUN_DIR": str(run_dirs[node])
    })  # fmt: skip
    for done in both.wait(60):
        assert done.returncode == 1
        assert f"does not see {run_dirs[0]} of node 0 ({socket.gethostname()}): give hydra.run.dir" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
    assert not run_dirs[0].exists() and not run_dirs[1].exists()


@pytest.mark.slow
def test_torchrun_on_two_machines_is_one_run(one_and_two, command, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    words += ["--nproc-per-node=1"]
    run_words = [*command, *SMOOTH, *on(1), "trainer.num_nodes=2", f"hydra.run.dir={tmp_path}"]
    machines = [Command(*words, f"--node-rank={node}", *run_words) for node in (0, 1)]
    done = [machine.wait() for machine in machines]
    assert [each.returncode for each in done] == [0, 0], done
    assert not list(differences(state(one_and_two[1]), state(tmp_path), "state"))


@pytest.mark.parametrize("call", [1, 4], ids=["before they have met", "in a step"])
@pytest.mark.cluster
@pytest.mark.slow
def test_failure_of_one_process_ends_the_run_with_its_error(command, tmp_path, monkeypatch, call):
    monkeypatch.setenv("SR_FAIL", f"1:{call}")
    words = ["model.loss._target_=tests.training.failing.FailingLoss", f"hydra.run.dir={tmp_path}"]
    done = run(*command, *words, *on(2), check=False)  # times out after five minutes
    assert done.returncode != 0
    assert "made to fail in process 1" in done.stdout + done.stderr
    assert not (tmp_path / "checkpoints").exists()
