"""metrics.csv, the record of a run; and Weights & Biases and TensorBoard, which show the same curves and more."""

import csv
import http.client
import io
import logging
import os
import secrets
import shlex
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from sr_lightning.errors import InputError
from sr_lightning.evaluation.score_table import NOT_SCORES
from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """One row per step, one column per metric; complete after every call and continued by a resumed run.

    Rows of steps that a resumed run makes again are replaced. Lightning's CSVLogger deletes the file instead.

    Args:
        path: The csv file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []
        self._columns: list[str] = []
        self._last_row = 0  # where it begins in the file
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run directory's config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        rolled_back = False
        while self.rows and int(self.rows[-1]["step"]) > step:
            self.rows.pop()
            rolled_back = True
        values = {name: f"{value:.9g}" for name, value in metrics.items()}
        new_row = not self.rows or int(self.rows[-1]["step"]) < step
        if new_row:
            self.rows.append({"step": str(step)})
        self.rows[-1] |= values
        if rolled_back or not values.keys() <= set(self._columns):
            self._write_all()
        else:
            self._write_last(append=new_row)

    def _text(self, rows: Sequence[dict[str, str]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        head = (",".join(self._columns) + "\n").encode() + self._text(self.rows[:-1])
        self._last_row = len(head)
        with replacing(self.path) as temporary:
            temporary.write_bytes(head + self._text(self.rows[-1:]))

    def _write_last(self, append: bool) -> None:
        with open(self.path, "r+b") as file:
            self._last_row = file.seek(0, os.SEEK_END) if append else file.seek(self._last_row)
            file.write(self._text(self.rows[-1:]))
            file.truncate()


class TensorBoard(TensorBoardLogger):
    """Lightning's, but what a resumed run makes again takes the place of what was there."""

    _begun = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._begun:
            self._begun = True
            start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            self.experiment.file_writer.add_event(start, step)
        super().log_metrics(metrics, step)


class WandbRun(WandbLogger):
    """A run of Weights & Biases that is one for the life of its directory, and that never stops the training.

    Its id is kept in the directory before it begins, so that a resumed run goes on in it. The x-axis of all curves is
    `step`: batches. It is written to the directory, to be uploaded later, where that is asked for; where W&B cannot be
    reached, does not answer or knows no key; and where parts of the run from before are yet to be uploaded. All of
    these are found out within seconds and said in one line.

    Args:
        save_dir: The run directory.
        project: W&B's name for a collection of runs.
        name: Of the run.
        entity: User or team; None: the user's own.
        group: Of runs that belong together; here: a sweep.
        tags: Of the run.
        offline: Write to the directory and use no network.
        reply_timeout: Seconds that W&B has to answer at all.
        init_timeout: Seconds that it has to begin a run.
        finish_timeout: Seconds that the rest of the uploads may take when the run has come to its end.

    Raises:
        InputError: A name, tags or anything else that W&B would refuse.
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
        offline: bool = True,
        reply_timeout: float = 5.0,
        init_timeout: float = 20.0,
        finish_timeout: float = 20.0,
    ) -> None:
        import wandb

        if not isinstance(offline, bool) or isinstance(tags, str):
            raise InputError(f"logger.offline={offline} logger.tags={tags}: true or false, and a list such as [a,b]")
        try:
            wandb.Settings(project=project, run_name=name, entity=entity, run_group=group, run_tags=tags)
        except (wandb.Error, ValueError) as error:
            raise InputError(f"logger: {error}") from error
        super().__init__(
            name=name, save_dir=save_dir, project=project, offline=offline, entity=entity, group=group, tags=tags
        )
        self.reply_timeout, self.init_timeout, self.finish_timeout = reply_timeout, init_timeout, finish_timeout
        self._lost = False  # W&B's own process has ended
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
            "WANDB_DATA_DIR": str(self._folder.absolute()),  # tables wait for their upload there, not in the home
            "WANDB_ERROR_REPORTING": "false",  # it would be sent when the process ends, and a lost network waited for
        }
        self._variables = [name for name in defaults if name not in os.environ]
        os.environ |= {name: defaults[name] for name in self._variables}
        self._wandb_init["id"] = self._id = run_id(Path(self.save_dir))
        mode = "offline" if self._offline else os.environ.get("WANDB_MODE", "online")
        if mode == "online":
            try:
                if (trouble := self._trouble()) is None:
                    return self._init("online")
            except wandb.Error as error:
                wandb.teardown()  # a run that failed to begin leaves its id in use
                trouble = str(error).replace("\n", " ")
            log.warning(
                "Weights & Biases: %s. The run is recorded in %s instead; to upload it later: %s",
                *(trouble, self._folder, self._sync_command()),
            )
        return self._init("offline" if mode == "online" else mode)

    def _init(self, mode: str) -> Any:
        import wandb

        wandb.setup(wandb.Settings(mode=mode, silent=True))  # given to init alone, offline runs would use the network
        settings = wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds that a kill may cost
        )
        run = wandb.init(**self._wandb_init, mode=mode, reinit="create_new", settings=settings)
        run.define_metric("step")
        run.define_metric("*", step_metric="step", step_sync=True)
        if mode == "online":
            log.info("Weights & Biases: %s", run.url)
        return run

    def _trouble(self) -> str | None:
        """Why this run cannot be online; None if it looks as if it can.

        Raises:
            wandb.Error: A key that cannot be one.
        """
        import wandb

        if self._not_uploaded():
            return "earlier parts of this run are not uploaded yet, and the order matters"
        settings = wandb.setup(wandb.Settings(mode="online", silent=True)).settings
        if not wandb.login(prompt=False, verify=False):
            return f"no key for {settings.base_url}: `wandb login` asks for it once"
        if settings.http_proxy or settings.https_proxy:  # which only W&B's own client uses
            return None
        return no_answer(f"{settings.base_url}/graphql", self.reply_timeout)

    @property
    def _folder(self) -> Path:
        return Path(self.save_dir, "wandb")

    def _not_uploaded(self) -> list[Path]:
        """The offline parts of this run that `wandb sync` has not uploaded."""
        parts = self._folder.glob(f"offline-run-*/run-{self._id}.wandb")
        return [part for part in parts if not part.with_name(f"{part.name}.synced").exists()]

    def _sync_command(self, part: str = "offline-run-*") -> str:
        """How to upload what is offline, or an online part that was not done in time."""
        online = "" if part.startswith("offline-run-") else "--include-online "
        return f"wandb sync {online}{shlex.quote(str(self._folder))}/{part}"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.tell(lambda run: run.log(dict(metrics) | ({} if step is None else {"step": step})))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self.tell(lambda run: run.config.update(params, allow_val_change=True))

    def tell(self, message: Callable[[Any], Any]) -> None:
        """Call `message` with the run of `wandb`, as long as W&B's process lives."""
        import wandb

        if self._lost:
            return
        try:
            message(self.experiment)
        except (wandb.Error, ConnectionError) as error:
            self._lost = True
            log.warning("Weights & Biases has stopped (%s); training goes on, and metrics.csv has it all", error)

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """End the run; what cannot be uploaded in time stays in the directory, and how to upload it is said.

        Args:
            failed: How the run is marked.
        """
        run, self._experiment = self._experiment, None
        if run is None:
            return
        part = Path(run.dir).parent.name
        try:
            run.finish(exit_code=int(failed))
        except Exception as error:  # of W&B's many processes and threads; the results are safe by now
            reason = str(error) or type(error).__name__
            log.warning("Weights & Biases: %s To upload the rest later: %s", reason, self._sync_command(part))
        else:
            if part.startswith("offline-run-"):
                log.info("Weights & Biases, to upload this run: %s", self._sync_command())
        for name in self._variables:
            del os.environ[name]


def run_id(run_dir: Path) -> str:
    """W&B's id of a run, which its directory keeps for life; made and written where there is none."""
    path = run_dir / "wandb_id"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def no_answer(url: str, timeout: float) -> str | None:
    """What is wrong with a server, in words; None if it answers, whatever it says of the request.

    Certificates are not judged: W&B's client may know others.

    Args:
        url: Of the server.
        timeout: Seconds.
    """
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code} {error.reason}" if error.code >= 500 else None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return None if isinstance(reason, ssl.SSLCertVerificationError) else f"{url} cannot be reached ({reason})"
    return None


@contextmanager
def finishing(loggers: Sequence[Logger]) -> Iterator[None]:
    """End W&B's run with the block, marked as failed if it raises."""
    runs = [logger for logger in loggers if isinstance(logger, WandbRun)]
    try:
        yield
    except BaseException:
        for run in runs:
            run.finish(failed=True)
        raise
    for run in runs:
        run.finish()


@rank_zero_only
def log_pictures(loggers: Sequence[Logger], pictures: dict[str, Path], step: int) -> None:
    """Give pictures to the loggers that can show them.

    Args:
        loggers: Those of the run.
        pictures: Name -> PNG file.
        step: Batches done.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            for name, path in pictures.items():
                logger.log_image(name, [str(path)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            for name, path in pictures.items():
                with Image.open(path) as image:
                    logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
            logger.experiment.flush()  # Lightning closes it with the training


@rank_zero_only
def log_results(
    loggers: Sequence[Logger],
    rows: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
    crops: Sequence[dict[str, Any]],
    outcome: dict[str, Any],
) -> None:
    """Give what came of a run to the loggers that can show it.

    W&B gets the scores as the table "results"; and the table "crops", a row per image whose column `image` is the same
    in all runs, to join them by.

    Args:
        loggers: Those of the run.
        rows: As written to results.csv, of bicubic and the run's network.
        pictures: PNG files.
        crops: As `scoring.Shown` has them.
        outcome: As written to result.json.
    """
    means = {
        f"test/{row['dataset']}/{key}": row[key]
        for row in rows
        if row["image"] == "mean" and row["model"] != "bicubic"
        for key in row
        if key not in NOT_SCORES
    }
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.tell(lambda run: run.summary.update(outcome | means))
            logger.log_table("results", columns=list(rows[0]), data=[list(row.values()) for row in rows])
            if crops:
                table = crops_table(rows, crops)
                logger.log_table("crops", columns=list(table[0]), data=[list(row.values()) for row in table])
            if pictures:
                captions = [path.stem for path in pictures]
                logger.log_image("pictures", [str(path) for path in pictures], caption=captions)
        elif isinstance(logger, TensorBoardLogger):
            for name, value in means.items():
                logger.experiment.add_scalar(name, value)
            for path in pictures:
                with Image.open(path) as image:
                    logger.experiment.add_image(f"pictures/{path.stem}", np.asarray(image), dataformats="HWC")
            logger.experiment.flush()  # Lightning has closed it with the training


def crops_table(rows: Sequence[dict[str, Any]], crops: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of W&B's table "crops": `image`, the model's name, four pictures of one place, the image's scores.

    Args:
        rows: As written to results.csv, of bicubic and one network.
        crops: As `scoring.Shown` has them.
    """
    from wandb import Image as Picture

    scored = {(row["dataset"], row["scale"], row["image"], row["model"]): row for row in rows}
    table = []
    for crop in crops:
        place = (crop["dataset"], crop["scale"], crop["image"])
        (model,) = crop["models"].keys() - {"bicubic"}
        own, baseline = scored[*place, model], scored[*place, "bicubic"]
        bicubic, sr = crop["models"]["bicubic"], crop["models"][model]
        table.append(
            {"image": f"{crop['dataset']} {crop['image']} x{crop['scale']}", "model": model}
            | {"lr": Picture(crop["lr"]), "bicubic": Picture(bicubic), "sr": Picture(sr), "hr": Picture(crop["hr"])}
            | {key: own[key] for key in own if key not in NOT_SCORES}
            | {f"bicubic {key}": baseline[key] for key in own if key not in NOT_SCORES}
        )
    return table
