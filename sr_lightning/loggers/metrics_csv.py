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
from sr_lightning.utils.atomic_files import replacing


class MetricsCSV(RunLogger):
    """One row per step, one column per metric; complete after every call, and continued by a resumed run.

    A resumed run replaces the rows of steps that it repeats. Lightning's CSVLogger deletes the file instead.

    Args:
        path: The file, continued if it exists.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, str]] = read_metrics(self.path)
        self._columns: list[str] = []
        self._last_row = 0  # offset of the last row in the file, bytes

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has the settings."""

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
        try:
            with self.path.open("r+b") as file:
                self._last_row = file.seek(0, os.SEEK_END) if append else file.seek(self._last_row)
                file.write(self._text(self.rows[-1:]))
                file.truncate()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}. Solve that, then resume") from error
