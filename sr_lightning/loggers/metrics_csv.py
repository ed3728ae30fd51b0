"""metrics.csv: the logged values of a run, written by every run."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.errors import InputError
from sr_lightning.loggers.base import RunLogger
from sr_lightning.runs.metrics_csv import read_metrics
from sr_lightning.utils.atomic_files import check_guards, replacing


class MetricsCSV(RunLogger):
    """One row per step, one column per metric; complete after every call, and continued by a resumed run.

    A resumed run keeps the rows up to its checkpoint. Lightning's CSVLogger deletes the file instead.

    Args:
        path: The file.
        steps_done: Batches of the checkpoint from which the run resumes; later rows of the file are dropped.
    """

    def __init__(self, path: str | Path, steps_done: int = 0) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []
        for row in read_metrics(self.path) if steps_done else []:
            if row["step"].isdecimal() and self._last_step < int(row["step"]) <= steps_done:
                self.rows.append(row)
        self._columns: list[str] = []  # of the file as this process has written it
        if self.rows:
            self._write_all()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has the settings."""

    @property
    def _last_step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else -1

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: f"{value:.9g}" for name, value in metrics.items()}
        new_row = step > self._last_step
        if new_row:
            self.rows.append({"step": str(step)})
        self.rows[-1] |= values
        if new_row and values.keys() <= set(self._columns):
            self._append()
        else:
            self._write_all()

    @rank_zero_only
    def save(self) -> None:
        """Flush the rows to the disk, so that a power cut cannot lose those before a checkpoint."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _text(self, rows: Sequence[dict[str, str]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    @rank_zero_only
    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.path) as temporary:
            temporary.write_bytes((",".join(self._columns) + "\n").encode() + self._text(self.rows))

    def _append(self) -> None:
        check_guards(self.path)
        try:
            with self.path.open("r+b") as file:  # not a new file if this one was removed
                file.seek(0, os.SEEK_END)
                file.write(self._text(self.rows[-1:]))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}. Solve that, then resume") from error
