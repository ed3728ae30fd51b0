"""TensorBoard: curves, pictures, settings with final scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.loggers.base import Outcome, RunLogger, settings_shown


class TensorBoard(RunLogger, TensorBoardLogger):
    """Lightning's logger, but steps that a resumed run repeats replace the earlier ones.

    The tab HPARAMS has the settings that affect the result from the start of a run, and all of its scalars.
    """

    _session_started = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._session_started:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            self._session_started = True
            start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            self.experiment.file_writer.add_event(start, step)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Write the settings for the tab HPARAMS, without a list of all settings: TensorBoard takes that of one run."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        super().log_hyperparams(params, *args, **kwargs)
        self.experiment.file_writer.add_summary(hparams_pb(settings_shown(params)))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._add_picture(name, path, step)
        self.experiment.flush()  # Lightning closes the writer at the end of training

    def log_summary(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.experiment.add_scalar(name, value)

    def log_outcome(self, outcome: Outcome) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.log_summary(outcome.means | {key: outcome.result[key] for key in ("psnr", "gain", "best_step")})
        *_, end = hparams({}, {})  # in HPARAMS the run has ended; a resumed run could not replace another status
        self.experiment.file_writer.add_summary(end)
        for path in outcome.pictures:
            self._add_picture(f"pictures/{path.stem}", path)
        self.experiment.flush()

    def _add_picture(self, name: str, path: Path, step: int | None = None) -> None:
        with Image.open(path) as image:
            self.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
