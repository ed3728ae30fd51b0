"""Launcher of `launcher=slurm`: submitit's, which submits each cell once, however often the sweep's command runs."""

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import config as submitit_config
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from omegaconf import OmegaConf, open_dict

from sr_lightning.errors import InputError
from sr_lightning.sweeps.cells import read_json
from sr_lightning.sweeps.invocation import FINAL_STATUSES, VARIABLE, SweepInvocation, relative
from sr_lightning.sweeps.processes import stop
from sr_lightning.sweeps.run import CellFailed, Reporter, earlier_result, numbers
from sr_lightning.sweeps.slurm_queue import queued_cells, slurm_message
from sr_lightning.utils.atomic_files import one_at_a_time

PAUSES = (1.0, 30.0)  # seconds between two looks at the queue: the first, and the longest


@dataclass
class Job:
    """Job of a cell.

    Attributes:
        number: In this invocation.
        overrides: Of the cell.
        report: Writes the cell's report in this invocation.
        source: The report that the cell's job writes, in this invocation or an earlier one; None without a job.
        missed: Looks at the queue, one after the other, that did not find it.
    """

    number: int
    overrides: Sequence[str]
    report: Reporter
    source: Path | None = None
    missed: int = 0

    @property
    def own_report(self) -> Path:
        return self.report.invocation.report_file(self.number)


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Submit the cells that have not ended and are not queued as a job array, and wait for all of them.

    With `sweep_wait=false` it does not wait. A job is known by its name, which the reports of the invocation contain
    before sbatch is run, and its index in the array: wherever this process is killed, the next one finds the job.
    """

    @classmethod
    def replace_submitit(cls) -> None:
        """Let Hydra, which accepts launchers of `hydra_plugins` only, use this class in the place of submitit's."""
        base = submitit_launcher.SlurmLauncher
        Plugins.instance().class_name_to_class[f"{base.__module__}.{base.__name__}"] = cls

    def __call__(self, *arguments: Any) -> JobReturn:
        os.environ[VARIABLE] = self.invocation  # not of a cluster that gives jobs an environment of their own
        return super().__call__(*arguments)

    def checkpoint(self, *arguments: Any, **named: Any) -> Any:
        """Let the cell save before the job is queued again: SLURM's SIGTERM would be its second one, which ends it."""
        for process in multiprocessing.active_children():
            stop(process)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # scontrol inherits it, which SLURM signals too
        return super().checkpoint(*arguments, **named)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        invocation = SweepInvocation.current()
        self.invocation = str(invocation.directory)
        locks = invocation.sweep_dir / ".sweep"
        try:
            if self.params["nodes"] != 1 or self.params["tasks_per_node"] != 1:
                raise InputError(
                    "launcher=slurm: a cell is one task; leave out hydra.launcher.nodes and tasks_per_node"
                )
            with one_at_a_time(locks / "submit.lock", f"jobs of {relative(invocation.sweep_dir)}"):
                queued = queued_cells(invocation.sweep_dir)
                numbered = enumerate(job_overrides, initial_job_idx)
                jobs = [self.job_of_cell(invocation, number, overrides, queued) for number, overrides in numbered]
                if new := [job for job in jobs if job.source is None and not job.own_report.exists()]:
                    self.submit(new)
        except InputError as error:
            if not invocation.reports():
                shutil.rmtree(invocation.directory)
            sys.exit(f"error: {error}")
        if self.config.sweep_wait is not False:
            wait_for(jobs)
        return [outcome(job) for job in jobs if is_final(job) or self.config.sweep_wait is not False]

    def job_of_cell(
        self, invocation: SweepInvocation, number: int, overrides: Sequence[str], queued: dict[str, Path]
    ) -> Job:
        """Return the job of a cell, and report the cell if it has ended, is queued already, or cannot be trained.

        Args:
            invocation: Of the sweep.
            number: Of the job.
            overrides: Of the cell.
            queued: Cells with jobs, and the reports of these; a cell that needs a job is added.
        """
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config.hydra.job):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        HydraConfig.instance().set_config(config)  # as in a job: the settings refer to it
        cell = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
        job = Job(number, overrides, Reporter(invocation, number, cell.name, list(config.hydra.overrides.task)))
        if cell.name in queued:
            job.source = queued[cell.name]
            job.report("waiting", job=None)
            return job
        try:
            if result := earlier_result(config, cell):
                job.report("skipped", **numbers(result))
            else:
                queued[cell.name] = job.own_report  # of equal cells in this invocation
        except InputError as error:
            job.report("failed", error=str(error))
        return job

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as an array.

        Raises:
            InputError: sbatch refuses them; their reports are removed.
        """
        import submitit

        name = re.sub(r"[^\w.-]", "-", f"{self.params['name']}.{Path(self.invocation).name}.{jobs[0].number}")
        for index, job in enumerate(jobs):
            job.source = job.own_report
            job.report("waiting", job=[name, index])
        arguments = [
            (list(job.overrides), "hydra.sweep.dir", job.number, f"job_id_for_{job.number}", Singleton.get_state())
            for job in jobs
        ]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # of sbatch, which the error repeats
                self.executor(name).map_array(self, *zip(*arguments, strict=True))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            for job in jobs:
                job.own_report.unlink()
            folder = submitit.core.utils.JobPaths.get_first_id_independent_folder(self.params["submitit_folder"])
            for path in [*folder.glob(".submission_file_*.sh"), *folder.glob(f"{'[0-9a-f]' * 32}.pkl")]:
                path.unlink()
            raise InputError(f"launcher=slurm: {slurm_message(str(error))} ({self.settings()})") from None

    def executor(self, name: str) -> Any:
        """Return submitit's executor with the settings of hydra.launcher."""
        import submitit

        params = {key: value for key, value in self.params.items() if value is not None} | {"name": name}
        if self.config.trainer.accelerator == "cpu":
            params.pop("gpus_per_node", None)
        if cpus := params.get("cpus_per_task"):  # which srun does not take from sbatch since SLURM 22.05
            params["srun_args"] = [f"--cpus-per-task={cpus}"]
        params.pop("_target_", None)
        folder, timeouts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = submitit.AutoExecutor(cluster="slurm", folder=folder, slurm_max_num_timeout=timeouts)
        common = OmegaConf.structured(submitit_config.BaseQueueConf).keys()
        executor.update_parameters(**{key if key in common else f"slurm_{key}": v for key, v in params.items()})
        return executor

    def settings(self) -> str:
        """Name the settings that differ from submitit's."""
        usual = OmegaConf.to_container(OmegaConf.structured(submitit_config.SlurmQueueConf), resolve=False)
        unnamed = {"_target_", "name", "submitit_folder"}
        own = {key: value for key, value in self.params.items() if value not in (None, usual.get(key))}
        return ", ".join(f"hydra.launcher.{key}={value}" for key, value in own.items() if key not in unnamed)


def is_final(job: Job) -> bool:
    """Return True if the cell of a job has ended."""
    return read_json(job.own_report).get("status") in FINAL_STATUSES


def wait_for(jobs: Sequence[Job]) -> None:
    """Wait until the cells have ended, and report those whose jobs another invocation has submitted.

    A job that leaves the queue without a final report was cancelled or killed. It must be missing twice: on a shared
    file system the report may be seen later than the end of the job.
    """
    pause, longest = PAUSES
    while waiting := [job for job in jobs if job.source and not is_final(job) and job.missed < 2]:
        time.sleep(pause)
        pause = min(longest, 1.5 * pause)
        try:
            queued = queued_cells(waiting[0].report.invocation.sweep_dir)
        except InputError:  # the controller is restarted
            continue
        for job in waiting:
            seen = read_json(job.source)
            if job.source != job.own_report and seen.get("status") in FINAL_STATUSES:
                facts = {key: value for key, value in seen.items() if key not in ("number", "cell", "words", "job")}
                job.report(**facts)
            job.missed = 0 if seen.get("cell") in queued else job.missed + 1
            if job.missed == 2 and not is_final(job):
                job.report("interrupted", error="its job has ended without a result; .submitit/ has the job's log")


def outcome(job: Job) -> JobReturn:
    """Return the score of a cell that has ended, or its failure."""
    facts = read_json(job.own_report)
    if facts["status"] in ("failed", "interrupted"):
        failure = CellFailed(f"{facts['cell']}: {facts.get('error', facts['status'])}")
        return JobReturn(overrides=job.overrides, status=JobStatus.FAILED, _return_value=failure)
    return JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=facts.get("psnr"))
