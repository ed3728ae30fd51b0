"""MLflow: settings, curves and final scores of many runs."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.errors import InputError
from sr_lightning.loggers.base import Outcome, RunLogger, settings_shown
from sr_lightning.utils.atomic_files import replacing
from sr_lightning.utils.messages import reason
from sr_lightning.utils.signals import Interrupted

log = logging.getLogger(__name__)

# Before MLflow is imported: no reports on its use, no search for git, and no minutes of waiting for a server.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class MLflowRun(RunLogger, MLFlowLogger):
    """Lightning's logger tied to a run's directory, whose file mlflow_id names the run that a resumed one continues.

    Parameters are the settings that affect the result, as they were when the run began: MLflow cannot change them.
    Values that a resumed run repeats are not recorded again. The run ends as FINISHED, FAILED, or KILLED by a signal
    that it could handle. If MLflow fails, a line is logged and the training goes on.

    Args:
        save_dir: The run's directory.
        experiment: Name of the experiment.
        name: Name of the run.
        tracking_uri: Server or database; None: mlflow.db in the directory of the run, or of its sweep.

    Raises:
        InputError: MLflow cannot use the address or the file.
    """

    def __init__(
        self, save_dir: str | Path, *, experiment: str, name: str | None = None, tracking_uri: str | None = None
    ) -> None:
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from mlflow.exceptions import MlflowException

        for noisy in ("mlflow", "alembic", "pytorch_lightning.loggers.mlflow"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        run_dir = Path(save_dir).absolute()
        folder = run_dir.parent if (run_dir.parent / ".sweep").is_dir() else run_dir
        self.id_file, self.lock = run_dir / "mlflow_id", FileLock(folder / ".mlflow.lock")
        self._steps: dict[str, int] = {}  # the last step of each metric
        self._failed = False
        uri = tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        try:
            with self.lock:  # of several processes, one makes the database
                files = None if tracking_uri else (folder / "mlflow_files").as_uri()
                super().__init__(str(experiment), name, uri, artifact_location=files)
        except MlflowException as error:
            raise InputError(f"logger.tracking_uri={uri}: {reason(error)}") from error

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if not self._initialized:
            with self.lock:
                self._start()
        return self._mlflow_client

    def _start(self) -> None:
        """Continue the run that the directory names, or begin one and name it there."""
        from mlflow.exceptions import MlflowException

        if self.id_file.is_file():
            self._run_id = self.id_file.read_text().strip()
            try:
                self._mlflow_client.update_run(self._run_id, status="RUNNING")
            except MlflowException as error:
                log.warning("MLflow: the run %s is not continued: %s", self._run_id, reason(error))
                self._run_id = None
        _ = super().experiment
        with replacing(self.id_file) as temporary:
            temporary.write_text(f"{self._run_id}\n")

    def _send(self, message: Callable[[Any], Any]) -> None:
        """Call `message` with MLflow's client, unless MLflow has failed."""
        from mlflow.exceptions import MlflowException

        if self._failed:
            return
        try:
            message(self.experiment)
        except MlflowException as error:
            self._failed = True
            log.warning("MLflow has failed (%s); training continues, and metrics.csv has every value", reason(error))

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        def send(client: Any) -> None:
            known = client.get_run(self.run_id).data.params
            new = {key: value for key, value in settings_shown(params).items() if key not in known}
            MLFlowLogger.log_hyperparams(self, new)

        self._send(send)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        def send(client: Any) -> None:
            new = {key: value for key, value in metrics.items() if step is None or step > self._last_step(client, key)}
            MLFlowLogger.log_metrics(self, new, step)
            self._steps |= dict.fromkeys(new, step or 0)

        self._send(send)

    def _last_step(self, client: Any, key: str) -> int:
        if key not in self._steps:
            values = client.get_metric_history(self.run_id, key)
            self._steps[key] = max((value.step for value in values), default=-1)
        return self._steps[key]

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        self.log_metrics(values)

    @rank_zero_only
    def log_outcome(self, outcome: Outcome) -> None:
        """Record the final scores as metrics, status and protocol as tags."""
        numbers = {key: value for key, value in outcome.result.items() if isinstance(value, int | float)}
        self.log_summary(numbers | outcome.means)
        for key in ("status", "stopped_early", "protocol"):
            if key in outcome.result:
                self._send(lambda client, key=key: client.set_tag(self.run_id, key, outcome.result[key]))

    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning calls it before the run is scored."""

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """End the run: within the handling of `Interrupted`, as killed."""
        if self._initialized:
            status = "KILLED" if isinstance(sys.exception(), Interrupted) else "FAILED" if failed else "FINISHED"
            self._send(lambda client: client.set_terminated(self.run_id, status))
