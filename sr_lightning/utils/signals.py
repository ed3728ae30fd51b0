"""Signals that end a command: the first one raises an exception, a second one ends the process at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        signum: Number of the signal.
        exit_code: With which a shell reports it: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.exit_code = signum, 128 + signum


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, let SIGINT (Ctrl-C), SIGTERM and SIGHUP raise `Interrupted` in the main thread.

    The first one restores the default action of all three, so a second one ends the process at once. Signals that the
    process ignores stay ignored: SIGHUP under nohup, SIGINT in a shell's background. In another thread, where Python
    allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number in ENDING if earlier[number] not in (signal.SIG_IGN, None)]  # None: set outside Python

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        raise Interrupted(signum)

    try:
        for number in handled:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in handled:
            signal.signal(number, earlier[number])
