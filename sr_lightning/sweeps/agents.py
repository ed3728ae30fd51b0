"""Runs that sweep agents of Weights & Biases start: `wandb agent` names sweep and run in the environment."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.wandb_record import agent_run_id
from sr_lightning.sweeps.devices import acquire_devices, devices_wanted, visible_devices
from sr_lightning.sweeps.processes import process_rank

PLACED = ("hydra.run.dir=", "resume=")


def place_run(arguments: Sequence[str]) -> list[str]:
    """Complete the arguments of a run that an agent has started: its directory is multirun/SWEEP/RUN.

    If the directory has a checkpoint, because the agent starts the run again, the run resumes. Without an agent, or if
    the directory is given, the arguments are returned unchanged.
    """
    run = agent_run_id()
    if run is None or {"-m", "--multirun"} & set(arguments) or any(word.startswith(PLACED) for word in arguments):
        return list(arguments)
    sweep = os.environ["WANDB_SWEEP_ID"]
    folder = Path("multirun", sweep, run)
    key = "resume" if RunFolder(folder).last.is_file() else "hydra.run.dir"
    values = [f"{word.removesuffix('None')}null" if word.endswith("=None") else word for word in arguments]
    return [*values, f"sweep={sweep}", f"{key}={folder}"]


@contextmanager
def agent_devices(trainer: DictConfig) -> Iterator[None]:
    """Wait for GPUs that no other agent or sweep of this machine uses, and use only them; without an agent do nothing.

    Args:
        trainer: The config's trainer, with the number of devices.
    """
    if agent_run_id() is None or process_rank() > 0:
        yield
        return
    available = visible_devices()
    with acquire_devices(devices_wanted(trainer, available), available) as devices:
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        yield
