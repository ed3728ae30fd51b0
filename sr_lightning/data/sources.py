"""Where images come from: lists of (HR, LR) files that a data set is made of."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """One image of a data set.

    Attributes:
        name: How tables and error messages call it: the stem of the HR file.
        hr: The high-resolution file.
        lr: The low-resolution file that belongs to it; None where LR is made from HR.
    """

    name: str
    hr: Path
    lr: Path | None = None
