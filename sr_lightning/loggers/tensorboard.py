"""TensorBoard: curves and pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.loggers.base import Outcome, RunLogger


class TensorBoard(RunLogger, TensorBoardLogger):
    """Lightning's logger, but steps that a resumed run repeats replace the earlier ones."""

    _session_started = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._session_started:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            self._session_started = True
            start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            self.experiment.file_writer.add_event(start, step)
        super().log_metrics(metrics, step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._add_picture(name, path, step)
        self.experiment.flush()  # Lightning closes the writer at the end of training

    def log_summary(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.experiment.add_scalar(name, value)

    def log_outcome(self, outcome: Outcome) -> None:
        self.log_summary(outcome.means)
        for path in outcome.pictures:
            self._add_picture(f"pictures/{path.stem}", path)
        self.experiment.flush()

    def _add_picture(self, name: str, path: Path, step: int | None = None) -> None:
        with Image.open(path) as image:
            self.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
