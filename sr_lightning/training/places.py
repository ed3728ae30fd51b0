"""Place of a process among those of its run that a user, torchrun or srun starts, from the environment."""

import os
import socket
from dataclasses import dataclass

from omegaconf import DictConfig

from sr_lightning.errors import InputError
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.processes import is_further_process, number_in_environment, srun_started
from sr_lightning.utils.messages import reason

STARTERS = {"TORCHELASTIC_RUN_ID": "torchrun", "KUBERNETES_PORT": "Kubeflow"}  # that set RANK, by a variable of theirs


@dataclass(frozen=True)
class Place:
    """Place of this process in its run.

    Attributes:
        rank: Number of the process, from 0.
        processes: Number of processes that are started from outside: all, or one for each machine.
        node: Number of the machine.
    """

    rank: int
    processes: int
    node: int

    def __str__(self) -> str:
        return f"node {self.node} ({socket.gethostname()})"


def place_of_process(trainer: DictConfig) -> Place | None:
    """Return the place of this process; None if it is the only one that is started from outside.

    Raises:
        InputError: The environment and the config do not fit together.
    """
    if is_further_process():
        return None
    nodes, devices = trainer.get("num_nodes") or 1, trainer.get("devices")
    devices = len(visible_devices()) if devices == -1 else devices
    if "RANK" in os.environ:
        starter = next((known for name, known in STARTERS.items() if name in os.environ), None)
        if starter is None and (os.environ["RANK"], os.environ.get("WORLD_SIZE", "1")) != ("0", "1"):
            raise InputError("the environment variable RANK is for torchrun: without it, set NODE_RANK on each machine")
        node = "GROUP_RANK" if "GROUP_RANK" in os.environ else "RANK"
        names = ("RANK", "WORLD_SIZE", node)
    elif srun_started():
        names, starter = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODEID"), "SLURM"
        set_address_by_slurm()
    else:
        return place_by_environment(nodes, devices)
    rank, processes, node = (number_in_environment(name) for name in names)
    if isinstance(devices, int) and nodes * devices != processes:
        raise InputError(
            f"{starter} has {processes} processes, and trainer.num_nodes={nodes} with trainer.devices={devices} makes "
            f"{nodes * devices}: give the number of machines and that of the processes on each"
        )
    return Place(rank, processes, node) if processes > 1 else None


def place_by_environment(nodes: int, devices: object) -> Place | None:
    """Return the place by NODE_RANK, and LOCAL_RANK where the user starts all processes of a machine."""
    node = number_in_environment("NODE_RANK", 0)
    if not 0 <= node < nodes:
        raise InputError(f"NODE_RANK={node}, and trainer.num_nodes={nodes}: number the machines from 0 to {nodes - 1}")
    each = devices if "LOCAL_RANK" in os.environ and isinstance(devices, int) else 1
    local = number_in_environment("LOCAL_RANK", 0)
    if not 0 <= local < each:
        raise InputError(f"LOCAL_RANK={local}, and trainer.devices={each}: number the processes from 0 to {each - 1}")
    return Place(node * each + local, nodes * each, node) if nodes * each > 1 else None


def set_address_by_slurm() -> None:
    """Set MASTER_ADDR and MASTER_PORT from SLURM's list of machines and number of the job, as Lightning does."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    try:
        slurm = SLURMEnvironment(auto_requeue=False)
        _ = slurm.main_address, slurm.main_port  # set the variables
    except (RuntimeError, ValueError) as error:
        raise InputError(f"SLURM: {reason(error)}") from None
