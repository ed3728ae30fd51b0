"""Seconds of a training by phase."""

import time

DATA, FORWARD_AND_BACKWARD, OPTIMIZER = "data", "forward and backward", "optimizer"
VALIDATION, OTHER = "validation", "other"
PHASES = (DATA, FORWARD_AND_BACKWARD, OPTIMIZER, VALIDATION, OTHER)


class Stopwatch:
    """Measure the seconds of a training by phase; `enter` ends one phase and begins the next.

    The clock is that of this process. A GPU runs behind it, and no phase waits for the GPU: see docs/tracking.md.

    Attributes:
        seconds: Seconds by phase since `start`, without those of the current phase since it was entered.
        earlier: Seconds of the earlier parts of a resumed training.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.earlier = 0.0
        self._phase, self._since = OTHER, None

    def start(self) -> None:
        """Begin to measure; until then `enter` does nothing."""
        self._since = time.perf_counter()

    def enter(self, phase: str) -> None:
        """End the current phase and begin another, one of `PHASES`."""
        if self._since is None:
            return
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    @property
    def elapsed(self) -> float:
        """Seconds since `start`."""
        self.enter(self._phase)
        return sum(self.seconds.values())

    @property
    def total(self) -> float:
        """Seconds since `start` and of the earlier parts."""
        return self.earlier + self.elapsed
