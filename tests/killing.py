"""Driver that runs a command and ends it by signals at a named point: `python -m tests.killing train.py …`.

The variable SR_KILL is a JSON object. With {"count": FILE} the command runs to its end and writes the number of times
that it passed each point, {phase: {point: count}}. Otherwise

    {"phase": …, "point": …, "pass": n, "signals": [9], "share": 0.5}    at the n-th pass of a point
    {"seconds": 1.5, "signals": [9]}                                     at a random moment

With "second_process" the signals reach the further processes of the run instead, of which Lightning starts one for each
device but the first. Points of the phase "write" that are files end the process by its limit of file sizes, after a
share of the bytes. A second signal follows at the next point of any phase.
"""

import functools
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Functions by phase; each is two points, before and after a call.
PHASES = {
    "start": (
        *("training.checks:checked", "training.train:preflight", "training.train:start_run_folder"),
        *("training.train:build_loggers", "training.train:build_trainer", "modules.sr:SRModule.on_train_start"),
    ),
    "step": (
        *("modules.sr:SRModule.training_step", "modules.gan:GANModule.training_step"),
        *("modules.sr:SRModule.end_of_optimizer_step", "modules.sr:SRModule.log_scalars"),
    ),
    "validation": (
        *("modules.sr:SRModule.on_validation_epoch_start", "modules.sr:SRModule.validation_step"),
        "modules.sr:SRModule.on_validation_epoch_end",
    ),
    "scoring": (
        *("training.train:load_network", "evaluation.scoring:load_sample", "evaluation.images:EvaluationImages.add"),
        *("evaluation.score_table:write_results", "evaluation.evaluate:write_evaluation_report"),
        *("training.train:run_outcome", "runs.result:write_result"),
    ),
    "W&B": (
        *("loggers.wandb:WandbRun._init", "loggers.wandb:WandbRun.log_hyperparams"),
        *("loggers.wandb:WandbRun.log_metrics", "loggers.wandb:WandbRun.log_outcome", "loggers.wandb:WandbRun.close"),
    ),
}
WRITE = "write"  # phase of `replacing` and of the functions below, each with the file that it writes to
WRITERS = {
    "loggers.metrics_csv:MetricsCSV._append": "a row of metrics.csv",
    "data.store_build:UnfinishedStore.decode": "pixels of a store",
}


class Killer:
    """Count the passes of each point, and send signals at the chosen one.

    Args:
        plan: The content of SR_KILL.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.signals = plan, list(plan.get("signals", []))
        self.passes: dict[str, Counter[str]] = defaultdict(Counter)
        self.reached = False

    def send(self) -> None:
        if not self.signals:
            return
        signum, processes = self.signals.pop(0), [os.getpid()]
        if self.plan.get("second_process"):
            processes = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
        for process in processes:
            os.kill(process, signum)

    def is_next(self, phase: str, point: str) -> bool:
        """Count a pass; return True if signals follow here."""
        self.passes[phase][point] += 1
        wanted = tuple(self.plan.get(key) for key in ("phase", "point", "pass"))
        return self.reached or (phase, point, self.passes[phase][point]) == wanted

    def at(self, phase: str, point: str) -> None:
        if self.is_next(phase, point):
            self.reached = True
            self.send()

    @contextmanager
    def writing(self, point: str, size: int, begin: int = 0) -> Iterator[None]:
        """Let the process die in the block after a share of `size` bytes, or at its end.

        Args:
            point: The file.
            size: Expected number of bytes.
            begin: Bytes that the file has already.
        """
        dies = self.is_next(WRITE, point) and not self.reached
        if dies:
            limit = begin + int(self.plan["share"] * size)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        yield
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def report(self) -> None:
        Path(self.plan["count"]).write_text(json.dumps(self.passes))


def replace(path: str, build: Callable[[Callable], Callable]) -> None:
    """Replace a function, `module:name` or `module:Class.name`, wherever this project has imported it."""
    module, _, name = path.partition(":")
    owner = importlib.import_module(f"sr_lightning.{module}")
    *classes, name = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    original = getattr(owner, name)
    wrapped = build(original)
    owners = [owner] if classes else [m for n, m in sys.modules.items() if n.startswith("sr_lightning.")]
    for each in owners:
        if getattr(each, name, None) is original:
            setattr(each, name, wrapped)


def install(killer: Killer) -> None:
    """Make every point of every phase known to the killer."""

    def around(phase: str, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            killer.at(phase, f"before {name}")
            result = function(*args, **kwargs)
            killer.at(phase, f"after {name}")
            return result

        return call

    def writer(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            path = getattr(first, "path", None)
            begin = path.stat().st_size if isinstance(path, Path) else 0
            with killer.writing(name, 60 if begin else 100_000, begin):
                return function(first, *args, **kwargs)

        return call

    def replacing(function: Callable) -> Callable:
        @contextmanager
        def call(path: str | Path) -> Iterator[Path]:
            name = Path(path).name if Path(path).suffix != ".png" else "a picture"
            size = Path(path).stat().st_size if Path(path).is_file() else 3000
            with function(path) as temporary, killer.writing(name, size):
                yield temporary
            killer.at(WRITE, f"after {name}")

        return call

    for phase, functions in PHASES.items():
        for path in functions:
            replace(path, functools.partial(around, phase, path.rpartition(":")[2].rpartition(".")[2]))
    for path, name in WRITERS.items():
        replace(path, functools.partial(writer, name))
    replace("utils.atomic_files:replacing", replacing)


def main() -> None:
    plan = json.loads(os.environ["SR_KILL"])
    killer = Killer(plan)
    install(killer)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # a file beyond the limit ends the process; Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "seconds" in plan:

        def later() -> None:
            time.sleep(plan["seconds"])
            killer.send()

        threading.Thread(target=later, daemon=True).start()
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if "count" in plan:
            killer.report()


if __name__ == "__main__":
    main()
