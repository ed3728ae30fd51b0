"""Location of the commands train.py and evaluate.py, and of the Hydra configs."""

from pathlib import Path

_CHECKOUT, _INSTALLED = Path(__file__).parents[1], Path(__file__).parent / "project"
PROJECT = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT  # a wheel contains the files inside the package
CONF = PROJECT / "conf"


def command(script: str) -> str:
    """Return the command that runs train.py or evaluate.py: of an installed package sr-train or sr-evaluate."""
    return f"sr-{Path(script).stem}" if PROJECT == _INSTALLED else f"python {script}"
