"""Times of several forms of one computation, measured on this machine and kept on disk.

Neither the name of a processor nor its flags tell which precision, memory format or number of threads is fastest.
"""

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import replacing

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GAIN = 1.1  # the first form is replaced by one that is this many times as fast
REPRODUCED = 1.15  # an undisturbed measurement reproduces its least times within this factor
MIN_ROUNDS, MAX_ROUNDS = 2, 12
PATIENCE = 4  # times the budget, for a measurement that is disturbed

Step = Callable[[], object]


def cache_dir() -> Path:
    """Return the folder of what is computed once and shared by all runs: SR_CACHE_DIR, or ~/.cache/sr_lightning."""
    return Path(os.environ.get("SR_CACHE_DIR") or "~/.cache/sr_lightning").expanduser()


@cache
def processor() -> str:
    """Name the processor, with a hash of the instruction sets that it shows: virtual machines hide some."""
    facts: dict[str, str] = {}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():  # Linux
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    name = facts.get("model name") or platform.processor() or platform.machine()
    limits = [os.environ.get(limit, "") for limit in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    flags = " ".join([facts.get("flags", facts.get("Features", "")), *limits])
    return f"{name}, {hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def fastest(seconds: Mapping[str, float]) -> str:
    """Return the name of the fastest form; the first one unless another is `GAIN` times as fast.

    >>> fastest({"float32": 1.0, "bfloat16": 0.95})
    'float32'
    >>> fastest({"float32": 1.0, "bfloat16": 0.5})
    'bfloat16'
    """
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * GAIN <= seconds[first] else first


def facts_of(module: "torch.nn.Module", device: "torch.device", *more: str) -> dict[str, Any]:
    """Return facts for a key of `Timings`: threads, device, and the structure of a module without its weights.

    Args:
        module: The module that is measured.
        device: Where it computes.
        *more: Further facts of the structure that neither `repr` nor the shapes of the parameters tell.
    """
    import torch

    shapes = [f"{name} {tuple(parameter.shape)}" for name, parameter in module.named_parameters()]
    description = "\n".join([repr(module), *shapes, *more])
    return {
        "structure": hashlib.sha256(description.encode()).hexdigest()[:24],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


class Timings:
    """Times of forms, one JSON file per key in the folder `timings` of a cache.

    Args:
        folder: The cache; None: that of this user.
        sweep: The folder of a sweep, whose cells share every measurement; None: outside a sweep.
    """

    def __init__(self, folder: str | Path | None = None, sweep: str | Path | None = None) -> None:
        self.kept = (Path(folder).expanduser() if folder else cache_dir()) / "timings"
        self.shared = None if sweep is None else Path(sweep) / "timings"

    def seconds(
        self, key: Mapping[str, Any], names: Sequence[str], build: Callable[[str], Step], budget: float
    ) -> dict[str, float]:
        """Return the least time of each form in seconds: kept ones, or measured now.

        One process at a time measures. Times that something else disturbed are not kept, except for the cells of one
        sweep, so that these agree.

        Args:
            key: All that decides the times except processor and torch: purpose, network, shapes, threads, device.
            names: Names of the forms.
            build: Makes the callable to measure, from a name; not called if the times are kept.
            budget: Seconds for the rounds of measurement after the first two.
        """
        import torch

        facts = {**key, "processor": processor(), "torch": torch.__version__, "forms": list(names)}
        text = json.dumps(facts, sort_keys=True)
        file = f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        paths = [folder / file for folder in (self.shared, self.kept) if folder is not None]
        seconds = read_times(paths, names)
        if seconds is not None and paths[0].exists():
            return seconds
        with ExitStack() as held:
            try:
                paths[0].parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(paths[0].with_name("measuring.lock")))
            except OSError as error:
                log.info("times of this machine cannot be kept: %s", error)
            seconds, reliable = read_times(paths, names), False
            if seconds is None:
                seconds, reliable = least_times({name: build(name) for name in names}, budget)
            for path in paths:
                if reliable or (path.parent == self.shared and not path.exists()):
                    with suppress(InputError), replacing(path) as temporary:
                        temporary.write_text(json.dumps(facts | {"seconds": seconds}, indent=1))
        return seconds


def read_times(paths: Sequence[Path], names: Sequence[str]) -> dict[str, float] | None:
    """Read the times of these forms from the first file that has them all; None: measure them."""
    for path in paths:
        try:
            seconds = {name: float(json.loads(path.read_text())["seconds"][name]) for name in names}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if all(0 < value < math.inf for value in seconds.values()):
            return seconds
    return None


def least_times(steps: Mapping[str, Step], budget: float) -> tuple[dict[str, float], bool]:
    """Measure each step in turn, several times.

    Returns:
        The least seconds of each, and False if something disturbed them: one did not reproduce its least time.
    """
    for step in steps.values():
        step()  # the first call prepares memory and kernels
    times: dict[str, list[float]] = {name: [] for name in steps}
    beginning = time.perf_counter()
    for rounds in range(1, MAX_ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name] = sorted([*times[name], time.perf_counter() - start])
        if rounds < MIN_ROUNDS:
            continue
        patience = budget if are_reproduced(times, REPRODUCED) else PATIENCE * budget
        if are_reproduced(times, 1.03) or time.perf_counter() - beginning > patience:
            break
    return {name: values[0] for name, values in times.items()}, are_reproduced(times, REPRODUCED)


def are_reproduced(times: Mapping[str, Sequence[float]], factor: float) -> bool:
    """Return True if the two least of each form's sorted times differ by at most a factor."""
    return all(values[1] <= factor * values[0] for values in times.values())
