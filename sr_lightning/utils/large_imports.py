"""Import of torch, Lightning and the libraries around them by the commands, in less time."""

import gc
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HIDDEN = {"librosa", "matplotlib", "scipy"}  # packages that torchmetrics imports if they are installed


@contextmanager
def large_imports() -> Iterator[None]:
    """Import torch and what needs it without garbage collection, and exempt all objects so far from later collections.

    The objects of torch and Lightning, 400,000, live until the process ends. The collector examines them several times
    while they are imported, sometimes during training, and when the process ends: a third of the time of a short
    command. In a program that has torch already nothing changes, so that its own objects remain collectable.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_torchmetrics() -> None:
    """Import torchmetrics, which Lightning needs, without the packages of metrics that are not used here.

    It would import those that are installed, for plots and for metrics of sound: matplotlib and scipy alone
    are 600 modules, 90 MB, and a fifth of the time until the first training step. In this process torchmetrics finds
    none of them, for `Metric.plot` neither; other modules may import them.
    """
    from lightning_utilities.core import imports

    def unless_hidden(check: Callable[..., Any]) -> Callable[..., Any]:
        def check_others(requirement: str = "", *further: Any, **options: Any) -> Any:
            name = re.split(r"[^\w.-]", requirement)[0]  # without bounds of versions
            return name not in HIDDEN and check(requirement, *further, **options)

        return check_others

    checks = {name: getattr(imports, name) for name in ("RequirementCache", "package_available")}
    for name, check in checks.items():
        setattr(imports, name, unless_hidden(check))
    try:
        importlib.import_module("torchmetrics")
    finally:
        for name, check in checks.items():
            setattr(imports, name, check)
