"""A process that imports torch once and is forked for each command of a test.

The imports of `python train.py` take longer than the short trainings of tests. A forked command is still a process of
its own, with its own arguments, directory, environment and output; only the imports are already done.

Each line of standard input is a JSON object with one key; the answer is a line of standard output:
    {"start": {words, cwd, environment, stdout, stderr}} -> process id
    {"wait": process id} -> exit code, negative for a signal
    {"poll": process id} -> the same, or null while it runs
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
import tempfile
import threading
from typing import Any

IMPORTS = (
    "sr_lightning.evaluation.scoring",
    "sr_lightning.export",
    "sr_lightning.leaderboard",
    "sr_lightning.sweeps",
    "sr_lightning.training.dry_run",
    "sr_lightning.training.train",
    "sr_lightning.upscale.command",
)


def serve() -> dict[str, Any] | None:
    """Answer requests until standard input ends; in a forked process return the command it is for."""
    for line in sys.stdin:
        ((request, content),) = json.loads(line).items()
        if request == "start":
            answer = os.fork()
            if answer == 0:
                return content
        else:
            pid, status = os.waitpid(content, os.WNOHANG if request == "poll" else 0)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)
    return None


def become(words: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Run `python WORDS` in this process, as the leader of a process group."""
    import numpy as np

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    np.random.seed()  # of their own, as in any new process
    tempfile.tempdir = None
    code = 0
    try:
        if words[0] == "-m":
            sys.path[0], sys.argv = cwd, words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = os.path.dirname(os.path.abspath(words[0])), words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    leave(code)


def leave(code: int) -> None:
    """End this process as the interpreter does, but without freeing modules: that would copy all that is imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for module in IMPORTS:
        importlib.import_module(module)
    from hydra.core.plugins import Plugins

    Plugins.instance()
    gc.freeze()  # forked processes need not look through what was imported
    if (command := serve()) is not None:
        become(**command)
