"""Reading of metrics.csv, which `sr_lightning.loggers.MetricsCSV` writes."""

import csv
import io
from pathlib import Path


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of logged values, one per step; none if the file does not exist.

    A row that a kill or power cut has left in part, or as NUL bytes, is not read.
    """
    path = Path(path)
    if not path.is_file():
        return []
    whole = path.read_bytes().partition(b"\0")[0].rpartition(b"\n")[0]
    rows = csv.DictReader(io.StringIO(whole.decode(errors="replace"), newline=""))
    return [row for row in rows if None not in row and None not in row.values()]


def last_step(path: str | Path) -> int:
    """Return the last step with a logged value; 0 if there is none."""
    steps = [row["step"] for row in read_metrics(path) if (row.get("step") or "").isdecimal()]
    return int(steps[-1]) if steps else 0


def validation_psnr(path: str | Path) -> list[tuple[int, float]]:
    """Return step and mean PSNR in dB of each validation."""
    rows = [row for row in read_metrics(path) if row.get("step") and row.get("val/psnr")]
    return [(int(row["step"]), float(row["val/psnr"])) for row in rows]
