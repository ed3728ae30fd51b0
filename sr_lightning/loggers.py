"""metrics.csv, the record of a run, and what Weights & Biases and TensorBoard are told beyond scalars."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from sr_lightning.files import replacing


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


@rank_zero_only
def log_pictures(loggers: Sequence[Logger], pictures: dict[str, Path], step: int) -> None:
    """Give pictures to the loggers that can show them.

    Args:
        loggers: Those of the run.
        pictures: Name -> PNG file.
        step: Batches done.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for name, path in pictures.items():
                logger.log_image(name, [str(path)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            for name, path in pictures.items():
                with Image.open(path) as image:
                    logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
            logger.experiment.flush()  # Lightning closes it with the training


@rank_zero_only
def log_results(loggers: Sequence[Logger], rows: Sequence[dict[str, Any]], pictures: Sequence[Path]) -> None:
    """Give the scores, as a table, and the comparison pictures to the loggers that can show them.

    Args:
        loggers: Those of the run.
        rows: As written to results.csv.
        pictures: PNG files.
    """
    means = {
        f"test/{row['dataset']}/{key}": row[key]
        for row in rows
        if row["image"] == "mean" and row["model"] != "bicubic"
        for key in row
        if key.startswith(("psnr", "ssim"))
    }
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(means)
            logger.log_table("results", columns=list(rows[0]), data=[list(row.values()) for row in rows])
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
