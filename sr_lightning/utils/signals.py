"""Signals that end a command: the first one raises an exception, a second one ends the process at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_pending: list[int] = []  # received while postponed


class Interrupted(SystemExit):
    """A signal asked the process to end: uncaught, it exits with the code that a shell reports for the signal.

    Args:
        signum: Number of the signal.
        note: What was saved, such as "saved at step 300".

    Attributes:
        code: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP.
    """

    def __init__(self, signum: int, note: str = "") -> None:
        super().__init__(128 + signum)
        self.signum, self.note = signum, note

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{f', {self.note}' if self.note else ''}"


def handle_signals(first: Callable[[], Any] | None = None) -> None:
    """From now on, let SIGINT (Ctrl-C), SIGTERM and SIGHUP raise `Interrupted` in the main thread.

    The first one restores the default action of all three, so a second one ends the process at once. Signals that the
    process ignores stay ignored: SIGHUP under nohup, SIGINT in a shell's background. In another thread, where Python
    allows no handlers, nothing changes.

    Args:
        first: Called before the exception is raised.
    """

    def action(signum: int) -> None:
        if first is not None:
            first()
        _interrupt(signum)

    _handle(action)


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle signals as `handle_signals` does, within the block."""
    earlier = _handle(_interrupt)
    try:
        yield
    finally:
        _restore(earlier)


@contextmanager
def postponed() -> Iterator[None]:
    """Within the block, let the first signal become `pending_signal`, and raise `Interrupted` at the end of the block.

    Work that must not be cut ends it at a suitable place.
    """
    earlier = _handle(_pending.append)
    try:
        yield
        if _pending:
            raise Interrupted(_pending[0])
    finally:
        _restore(dict.fromkeys(earlier, signal.SIG_DFL) if _pending else earlier)
        _pending.clear()


def pending_signal() -> int:
    """Return the number of the signal that waits for the end of `postponed`, 0 without one."""
    return _pending[0] if _pending else 0


def _interrupt(signum: int) -> None:
    raise Interrupted(signum)


def _handle(action: Callable[[int], Any]) -> dict[int, Any]:
    """Call `action` with the number of the first signal; return the earlier handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    earlier = {number: signal.getsignal(number) for number in ENDING}
    handled = {n: handler for n, handler in earlier.items() if handler not in (signal.SIG_IGN, None)}

    def handle(signum: int, frame: FrameType | None) -> None:
        _restore(dict.fromkeys(handled, signal.SIG_DFL))
        action(signum)

    _restore(dict.fromkeys(handled, handle))
    return handled


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
