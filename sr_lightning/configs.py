"""Location of the commands train.py and evaluate.py, and of the Hydra configs."""

import os
import shlex
from pathlib import Path

_CHECKOUT, _INSTALLED = Path(__file__).parents[1], Path(__file__).parent / "project"
PROJECT = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT  # a wheel contains the files inside the package
CONF = PROJECT / "conf"


def command(script: str) -> str:
    """Return the command that runs train.py or evaluate.py from the working directory, which a notebook's may not be.

    Args:
        script: The name, or the path by which it was called. Of an installed package, the command is sr-train or
            sr-evaluate.
    """
    given = Path(script)
    if PROJECT == _INSTALLED:
        return f"sr-{given.stem}"
    ours = PROJECT / given.name
    is_elsewhere = ours.exists() and not (given.exists() and given.samefile(ours))
    return f"python {shlex.quote(os.path.relpath(ours) if is_elsewhere else str(given))}"
