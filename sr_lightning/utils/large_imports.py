"""Import of torch, Lightning and the libraries around them by the commands, in less time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
