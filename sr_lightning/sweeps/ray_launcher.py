"""Launcher of `launcher=ray`: cells as tasks of Ray, on this machine or on the nodes of a cluster."""

import functools
import logging
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from sr_lightning.errors import InputError
from sr_lightning.runs.result import FAILED, write_result
from sr_lightning.sweeps import ray_task
from sr_lightning.sweeps.devices import devices_wanted
from sr_lightning.sweeps.invocation import VARIABLE, SweepInvocation
from sr_lightning.sweeps.processes import GRACE, PAUSE
from sr_lightning.sweeps.run import CellFailed, Reporter, undamaged_result
from sr_lightning.utils.cores import usable_cores
from sr_lightning.utils.messages import show
from sr_lightning.utils.signals import pending_signal, postponed

TARGET = "hydra_plugins.sr_lightning.RayLauncher"  # in conf/launcher/ray.yaml: Hydra wants launchers of this package
SECONDS = 10  # in which an address must answer
MEMORY = 80_000_000  # bytes of a local Ray's object store, about the least it accepts: cells exchange files
PASSED_ON = ("SR_DATA_ROOT", "SR_CACHE_DIR")  # variables of the command that cells get, unless a node has its own


def connect(settings: DictConfig) -> str:
    """Start a Ray on this machine, or join a cluster, and let Hydra know the launcher.

    Args:
        settings: hydra.launcher.

    Returns:
        The cluster's address; "local" for a Ray that ends with this process.

    Raises:
        InputError: Ray is missing, the address does not answer, or the cluster refuses this process.
    """
    if missing := [name for name in ("ray", "grpc") if find_spec(name) is None]:
        raise InputError(f"launcher=ray needs {' and '.join(missing)}: pip install 'sr_lightning[ray]'")
    check_settings(settings)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}  # no statistics; no hints on the screen
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    if settings.address is None:
        if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":  # no other user can run code as this one
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray would write one to the home folder
        os.environ.setdefault("RAY_worker_niceness", "0")  # as under other launchers; 15 in Ray
        address = "local"
        options |= {"num_cpus": usable_cores(), "object_store_memory": MEMORY, "include_dashboard": False}
    else:
        address = answering(settings.address)
    import ray  # reads the variables

    try:
        ray.init(address, **options)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        hint = "; all machines of a cluster need the same Ray, Python and token (docs/sweeps.md)"
        raise InputError(
            f"hydra.launcher.address={settings.address or 'null'}: Ray: {reason}{hint if settings.address else ''}"
        ) from error
    Plugins.instance().class_name_to_class[TARGET] = RayLauncher
    return address


def check_settings(settings: DictConfig) -> None:
    """Raise InputError if a value of hydra.launcher is none that Ray knows."""
    wrong = []
    if settings.address is not None and not isinstance(settings.address, str):
        wrong.append(f"hydra.launcher.address={settings.address}: give null, auto, HOST:PORT or ray://HOST:PORT")
    if isinstance(settings.num_cpus, bool) or not isinstance(settings.num_cpus, int) or settings.num_cpus < 1:
        wrong.append(f"hydra.launcher.num_cpus={settings.num_cpus}: give the cores of each cell, 1 or more")
    if isinstance(settings.retries, bool) or not isinstance(settings.retries, int) or settings.retries < 0:
        wrong.append(f"hydra.launcher.retries={settings.retries}: give a number of times, 0 or more")
    if wrong:
        raise InputError("; ".join(wrong))


def answering(address: str) -> str:
    """Resolve the address of a cluster and check that it answers: Ray itself would try for two minutes.

    Raises:
        InputError: There is no cluster, or nothing that speaks its protocol answers in time.
    """
    import grpc
    from ray._private.services import canonicalize_bootstrap_address_or_die

    given = f"hydra.launcher.address={address}"
    way_out = "start one with `ray start --head`, or leave the address out for a Ray on this machine"
    try:
        if not address.startswith("ray://"):
            address = canonicalize_bootstrap_address_or_die(address)
    except ConnectionError:
        raise InputError(f"{given}: no Ray runs on this machine; {way_out}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{given}: {error}; give auto, HOST:PORT or ray://HOST:PORT") from error
    if os.environ.get("RAY_USE_TLS", "0") == "0":
        with grpc.insecure_channel(address.removeprefix("ray://"), [("grpc.enable_http_proxy", 0)]) as channel:
            try:
                grpc.channel_ready_future(channel).result(SECONDS)
            except grpc.FutureTimeoutError:
                raise InputError(f"{given}: no Ray answers at {address} within {SECONDS} seconds; {way_out}") from None
    return address


def nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of the nodes that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def cells_of_nodes(config: DictConfig) -> tuple[int, int]:
    """Return the GPUs that a cell needs, and the cells that the nodes can train at the same time.

    Args:
        config: Of the cell, with Hydra's settings. Without GPUs in the cluster, cells train on the CPU.

    Raises:
        InputError: No node has as many GPUs or cores as a cell needs.
    """
    has = [node["Resources"] for node in nodes()]
    most = max(int(node.get("GPU", 0)) for node in has)
    gpus, cores = devices_wanted(config.trainer, [str(i) for i in range(most)]), config.hydra.launcher.num_cpus
    room = sum(int(min(node.get("CPU", 0) // cores, node.get("GPU", 0) // gpus if gpus else math.inf)) for node in has)
    if room == 0:
        cell = f"hydra.launcher.num_cpus={cores}" + (f" and {gpus} GPUs (trainer.devices)" if gpus else "")
        nodes_have = ", ".join(f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs" for node in has)
        raise InputError(f"{cell}: no node of Ray has so many; the nodes have: {nodes_have}")
    return gpus, room


@dataclass
class Job:
    """Job of a cell.

    Attributes:
        number: In the sweep's invocation.
        overrides: Of the cell.
        config: Of the cell, with Hydra's settings.
        resources: Options of its task.
        losses: How often its worker or node was lost.
    """

    number: int
    overrides: Sequence[str]
    config: DictConfig
    resources: dict[str, float]
    losses: int = 0

    @property
    def cell(self) -> Path:
        HydraConfig.instance().set_config(self.config)  # the settings refer to it
        return Path(self.config.hydra.sweep.dir, self.config.hydra.sweep.subdir)


class RayLauncher(Launcher):
    """Run each cell as a task of Ray, and again if its worker or node is lost; it resumes from its last checkpoint.

    Args:
        address: Of the cluster; None: of this machine. See `connect`.
        num_cpus: Cores of each cell.
        retries: How often a cell is started again.
    """

    def __init__(self, address: str | None, num_cpus: int, retries: int) -> None:
        self.num_cpus, self.retries = num_cpus, retries
        self.unfit: dict[str, str] = {}  # Ray's id of a node that cannot train -> its name and the reason

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            return self.run([self.job(number, words) for number, words in enumerate(job_overrides, initial_job_idx)])
        except InputError as error:
            sys.exit(f"error: {error}")

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """Prepare the job of a cell.

        Raises:
            InputError: No node has the cores and GPUs that it needs.
        """
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        resources = {"num_cpus": self.num_cpus, "num_gpus": cells_of_nodes(config)[0]}
        return Job(number, overrides, config, resources)

    def run(self, jobs: Sequence[Job]) -> list[JobReturn]:
        """Run jobs and wait for them; if that is interrupted, the cells in work save and end.

        Raises:
            InputError: No node can train.
        """
        import ray

        running, outcomes = {}, {}
        try:
            with postponed():  # Ray would replace the exception of a signal
                for job in jobs:
                    running[self.start(job)] = job
                while running and not pending_signal():
                    for task in ray.wait(list(running), timeout=PAUSE)[0]:
                        job = running.pop(task)
                        outcome = self.outcome(job, task)
                        if outcome is None:
                            running[self.start(job)] = job
                        else:
                            outcomes[job.number] = outcome
        finally:
            for task in running:
                ray.cancel(task)
            ray.wait(list(running), num_returns=len(running), timeout=GRACE)
        return [outcomes[job.number] for job in jobs]

    def start(self, job: Job) -> Any:
        """Start the task of a job, on a node that is not known to be unfit."""
        import ray

        ray.cloudpickle.register_pickle_by_value(ray_task)
        elsewhere = {"label_selector": {"ray.io/node-id": f"!in({','.join(self.unfit)})"}} if self.unfit else {}
        function = functools.partial(
            run_cell_job, self.hydra_context, job.config, self.task_function, Singleton.get_state()
        )
        task = ray.remote(ray_task.run_on_node).options(name=job.cell.name, max_retries=0, **job.resources, **elsewhere)
        return task.remote(ray.cloudpickle.dumps(function), needs_of_job())

    def outcome(self, job: Job, task: Any) -> JobReturn | None:
        """Return the outcome of a job whose task has ended; None if it must be started again.

        Raises:
            InputError: No node can train.
        """
        import ray

        try:
            answer = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            return failed(job, f"{type(error.cause).__name__}: {error.cause}")
        except ray.exceptions.RayError as error:
            job.losses += 1
            reason = f"its worker or node was lost ({type(error).__name__})"
            if job.losses > self.retries:
                return failed(job, f"{reason}, {job.losses} times")
            say(f"{job.cell.name}  {reason}; started again, {job.losses} of {self.retries} times")
            return None
        if "unfit" not in answer:
            return answer["result"]
        if answer["node"] not in self.unfit:
            self.unfit[answer["node"]] = f"{answer['host']}: {answer['unfit']}"
            say(f"node {self.unfit[answer['node']]}; it trains no cells")
        if not {node["NodeID"] for node in nodes()} - self.unfit.keys():
            raise InputError("no node can train:" + "".join(f"\n  node {reason}" for reason in self.unfit.values()))
        return None


def needs_of_job() -> dict[str, Any]:
    """Return what a node must have to run the jobs of this process; see `missing_on_node`."""
    invocation = SweepInvocation.current()
    record = invocation.directory / "call.json"
    return {
        "folder": str(Path.cwd()),
        "files": {str(record): record.read_text()},
        "program": invocation.facts["command"][0],
        "versions": {name: ray_task.version_of(name) for name in ("sr_lightning", "torch")},
        "environment": {name: os.environ[name] for name in (*PASSED_ON, VARIABLE) if name in os.environ},
    }


def run_cell_job(
    hydra_context: HydraContext, config: DictConfig, task_function: TaskFunction, state: dict[Any, Any]
) -> JobReturn:
    """Run a job on a node, as Hydra's own launchers do.

    Args:
        hydra_context: Of the command.
        config: Of the cell, with Hydra's settings.
        task_function: Of train.py.
        state: Of Hydra's singletons.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # cancels; ignored if Ray was started in the background
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=hydra_context,
        config=config,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def failed(job: Job, error: str) -> JobReturn:
    """Report that a cell has failed for a reason that its own process cannot report; return the outcome for Hydra."""
    cell, words = job.cell, list(job.config.hydra.overrides.task)
    if undamaged_result(cell) is None:
        write_result(cell, FAILED, job.config, error=error)
    Reporter(SweepInvocation.current(), job.number, cell.name, words)(FAILED, error=error, ended=time.time())
    return JobReturn(words, status=JobStatus.FAILED, _return_value=CellFailed(f"{cell.name}: {error}"))


def say(text: str) -> None:
    """Print a line between those of the cells."""
    show(time.strftime("[%H:%M:%S] ") + text)
