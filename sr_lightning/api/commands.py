"""sr-train and sr-evaluate: train.py and evaluate.py of an installed package."""

import runpy
import sys

from sr_lightning.configs import PROJECT
from sr_lightning.errors import require_training_packages


def train() -> None:
    """Run train.py."""
    _run("train.py")


def evaluate() -> None:
    """Run evaluate.py."""
    _run("evaluate.py")


def _run(name: str) -> None:
    require_training_packages("__main__")
    sys.argv[0] = str(PROJECT / name)
    runpy.run_path(sys.argv[0], run_name="__main__")
