"""Weights & Biases: curves, tables and pictures of many runs."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.errors import InputError
from sr_lightning.evaluation.score_table import NOT_SCORES
from sr_lightning.loggers.base import Outcome, RunLogger
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.metrics_csv import read_metrics
from sr_lightning.runs.result import FAILED
from sr_lightning.runs.wandb_record import agent_run_id, not_uploaded, run_id, sync_command, wandb_mode
from sr_lightning.utils.signals import Interrupted
from sr_lightning.utils.wandb_server import connection_problem, server_problem

log = logging.getLogger(__name__)

CHECKPOINTS = ("last", "best")  # the order of uploads: W&B's alias `latest` is that of the last one
UPLOAD_SPEED = 1e6  # bytes in a second, for which the end of a run waits


class WandbRun(RunLogger, WandbLogger):
    """A W&B run tied to its directory, with a fallback to offline mode instead of a failure.

    The directory stores the run's id, so a resumed run continues it; a sweep agent gives the id. The x-axis of all
    curves is `step`: batches.
    The run is written to the directory, for a later upload, if offline mode is set; if W&B cannot be reached, does not
    answer or has no key; or if earlier parts of the run are not uploaded yet. This is detected within seconds and
    logged in one line.

    Args:
        save_dir: The run directory.
        project: W&B's project.
        name: The run's name in W&B; None: W&B's choice.
        entity: User or team; None: the user's default.
        group: Runs with the same group are shown together, such as those of a sweep.
        tags: Labels to filter runs by.
        notes: A text about the run.
        job_type: Its kind, to filter and group by.
        checkpoints: Which of the run's checkpoints, "best" and "last", are uploaded at its end.
        offline: Write to the directory and use no network.
        reply_timeout: Seconds to wait for any reply of the server.
        init_timeout: Seconds to wait for the start of the run.
        finish_timeout: Seconds to wait for the remaining uploads at the end.

    Raises:
        InputError: W&B would refuse a setting, such as name or tags.
    """

    def __init__(
        self,
        save_dir: str | Path,
        *,
        project: str,
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        job_type: str | None = None,
        checkpoints: Sequence[str] | None = ("best",),
        offline: bool = True,
        reply_timeout: float = 5.0,
        init_timeout: float = 20.0,
        finish_timeout: float = 20.0,
    ) -> None:
        import wandb

        if not isinstance(offline, bool) or isinstance(tags, str):
            raise InputError(
                f"logger.offline={offline}, logger.tags={tags}: set true or false, and a list such as [a,b]"
            )
        if isinstance(checkpoints, str) or not set(checkpoints or ()) <= set(CHECKPOINTS):
            raise InputError(f"logger.checkpoints={checkpoints}: give a list, [best], [best,last] or [] for none")
        shown = {"name": name, "group": group, "tags": tags, "notes": notes, "job_type": job_type}
        try:
            wandb.Settings(project=project, entity=entity, **{f"run_{key}": value for key, value in shown.items()})
        except (wandb.Error, ValueError) as error:
            raise InputError(f"logger: {error}") from error
        super().__init__(save_dir=save_dir, project=project, entity=entity, offline=offline, **shown)
        self.reply_timeout, self.init_timeout, self.finish_timeout = reply_timeout, init_timeout, finish_timeout
        self.checkpoints = [name for name in CHECKPOINTS if name in (checkpoints or ())]
        self._connection_lost = False  # W&B's own process has ended
        self._lost = False  # the server does not answer
        self._variables: list[str] = []  # of the environment, set for this run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        defaults = {
            "WANDB_DATA_DIR": str(self._folder.absolute()),  # tables wait there for their upload, not in ~
            "WANDB_ERROR_REPORTING": "false",  # would wait at exit for a lost connection
        }
        self._variables = [name for name in defaults if name not in os.environ]
        os.environ |= {name: defaults[name] for name in self._variables}
        self._wandb_init["id"] = self._id = run_id(self.save_dir, agent_run_id())
        mode = "offline" if self._offline else wandb_mode()
        if mode == "online":
            try:
                if (reason := self._offline_reason()) is None:
                    return self._init("online")
            except wandb.Error as error:
                wandb.teardown()  # a run that failed to start leaves its id in use
                reason = str(error).replace("\n", " ")
            log.warning(
                "Weights & Biases: %s. The run is recorded in %s instead; to upload it later: %s",
                *(reason, self._folder, sync_command(self.save_dir)),
            )
            mode = "offline"
        return self._init(mode)

    def _init(self, mode: str) -> Any:
        import wandb

        wandb.setup(wandb.Settings(mode=mode, silent=True))  # not only to init, or offline runs use the network
        settings = wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds of values lost by a kill
        )
        run = wandb.init(**self._wandb_init, mode=mode, reinit="create_new", settings=settings)
        run.define_metric("step")
        run.define_metric("*", step_metric="step", step_sync=True)
        for score in ("val/psnr", "val/ssim"):
            run.define_metric(score, step_metric="step", step_sync=True, summary="max,last")
        if mode == "online":
            log.info("Weights & Biases: %s", run.url)
            if agent_run_id() is not None:  # from now on W&B gives the run to an agent again, unless its exit code is 0
                run.mark_preempting()
        return run

    def _offline_reason(self) -> str | None:
        """Return the reason why this run cannot be online; None if nothing is known against it."""
        if not_uploaded(self.save_dir):
            return "earlier parts of this run are not uploaded yet, and the order matters"
        return connection_problem(self.reply_timeout)

    @property
    def _folder(self) -> Path:
        return Path(self.save_dir, "wandb")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._send(lambda run: run.log(dict(metrics) | ({} if step is None else {"step": step})))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self._send(lambda run: run.config.update(params, allow_val_change=True))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self.log_image(name, [str(path)], step=step)

    def log_resources(self, values: Mapping[str, float], step: int) -> None:
        self.log_metrics(values, step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._send(lambda run: run.summary.update(dict(values)))

    def log_outcome(self, outcome: Outcome) -> None:
        """Write the tables "results" and "crops"; the column `image` of "crops" joins runs."""
        self.log_summary(outcome.result | outcome.means)
        self.log_metrics({"psnr": outcome.result["psnr"]}, outcome.result["steps"])  # the metric of W&B's sweeps
        if not self._takes_artifacts():
            return
        rows = outcome.rows
        self.log_table("results", columns=list(rows[0]), data=[list(row.values()) for row in rows])
        if outcome.crops:
            table = crops_table(rows, outcome.crops)
            self.log_table("crops", columns=list(table[0]), data=[list(row.values()) for row in table])
        if outcome.pictures:
            captions = [path.stem for path in outcome.pictures]
            self.log_image("pictures", [str(path) for path in outcome.pictures], caption=captions)

    def _send(self, message: Callable[[Any], Any]) -> None:
        """Call `message` with W&B's run, unless W&B's process has ended."""
        import wandb

        if self._connection_lost:
            return
        try:
            message(self.experiment)
        except (wandb.Error, ConnectionError) as error:
            self._connection_lost = True
            log.warning("Weights & Biases has stopped (%s); training continues, and metrics.csv has every value", error)

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """End the run. Uploads that do not finish in time stay in the directory; the command to resume them is logged.

        Args:
            failed: Mark the run as failed: by its exit code, or, since W&B would give it to an agent again, which then
                fails as well, by the status in its summary.
        """
        run = self._experiment
        if run is None:
            return
        if failed and agent_run_id() is not None and not isinstance(sys.exception(), Interrupted):
            self.log_summary({"status": FAILED})
            failed = False
        part = Path(run.dir).parent.name
        try:
            try:
                self._upload_checkpoints(run)
            finally:
                run.finish(exit_code=int(failed))
        except Exception as error:  # whatever W&B's processes raise: the results are already written
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("Weights & Biases: %s To upload the rest later: %s", reason, sync_command(self.save_dir, part))
        else:
            if part.startswith("offline-run-"):
                log.info("Weights & Biases, to upload this run: %s", sync_command(self.save_dir))
        self._experiment = None
        for name in self._variables:
            del os.environ[name]

    def _takes_artifacts(self) -> bool:
        """Return True if tables, pictures and checkpoints can be recorded; W&B's client would wait 20 s for each.

        It asks the server about each artifact, unless it is offline, and records none without an answer.
        """
        if self._experiment is None or self._experiment.offline or self._lost:
            return not self._lost
        if problem := server_problem(self._experiment.settings, self.reply_timeout):
            self._lost = True
            log.warning("Weights & Biases: %s; tables and checkpoints are in %s only", problem, self.save_dir)
        return not self._lost

    def _upload_checkpoints(self, run: Any) -> None:
        """Add each checkpoint to the artifact `model-ID`, with its facts; W&B uploads no content that it has."""
        import wandb

        paths = {name: RunFolder(self.save_dir).checkpoints / f"{name}.ckpt" for name in self.checkpoints}
        paths = {name: path for name, path in paths.items() if path.is_file()}
        if not paths or not self._takes_artifacts():
            return
        for name, path in paths.items():
            facts = checkpoint_facts(path) | {"run": self._id}
            artifact = wandb.Artifact(f"model-{self._id}", "model", metadata=facts)
            snapshot = linked(path, Path(run.dir).with_name(path.name).absolute())
            artifact.add_file(str(snapshot), path.name, skip_cache=True, policy="immutable")
            run.log_artifact(artifact, aliases=[name, f"step_{facts['step']}"])
            if not run.offline:
                artifact.wait(timeout=int(self.finish_timeout + path.stat().st_size / UPLOAD_SPEED))
                snapshot.unlink()


def linked(path: Path, link: Path) -> Path:
    """Create `link`, which keeps the content of a file that is replaced later; where links are not possible, a copy."""
    try:
        link.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, link)
    return link


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """Describe a checkpoint of a run: name, scale, step, PSNR on the validation images (None: unknown) and network.

    Raises:
        InputError: It cannot be read.
    """
    checkpoint = read_checkpoint(path)
    config, step = checkpoint["hyper_parameters"], steps_done(checkpoint)
    network = config["model"]["network"]
    rows = read_metrics(RunFolder(path.parents[1]).metrics)
    psnr = [float(row["val/psnr"]) for row in rows if row["step"] == str(step) and row.get("val/psnr")]
    facts = {"name": config["name"], "scale": network["scale"], "step": step, "psnr": psnr[-1] if psnr else None}
    return facts | {"network": network}


def crops_table(rows: Sequence[dict[str, Any]], crops: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build the rows of W&B's table "crops": `image`, the model's name, four pictures of one place, the image's scores.

    Args:
        rows: As written to results.csv, of bicubic and one network.
        crops: As in `Outcome`.
    """
    from wandb import Image

    scored = {(row["dataset"], row["scale"], row["image"], row["model"]): row for row in rows}
    table = []
    for crop in crops:
        place = (crop["dataset"], crop["scale"], crop["image"])
        (model,) = crop["models"].keys() - {"bicubic"}
        own, baseline = scored[*place, model], scored[*place, "bicubic"]
        bicubic, sr = crop["models"]["bicubic"], crop["models"][model]
        table.append(
            {"image": f"{crop['dataset']} {crop['image']} x{crop['scale']}", "model": model}
            | {"lr": Image(crop["lr"]), "bicubic": Image(bicubic), "sr": Image(sr), "hr": Image(crop["hr"])}
            | {key: own[key] for key in own if key not in NOT_SCORES}
            | {f"bicubic {key}": baseline[key] for key in own if key not in NOT_SCORES}
        )
    return table
