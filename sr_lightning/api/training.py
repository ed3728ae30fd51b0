"""Training from Python: train.py in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_lightning.api.scores import Scores, read_scores
from sr_lightning.api.settings import arguments
from sr_lightning.cli import compose_config
from sr_lightning.configs import PROJECT
from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.result import read_result
from sr_lightning.sweeps.processes import ANSWER, PARENT
from sr_lightning.sweeps.run import exit_reason
from sr_lightning.upscale.upscaler import Upscaler

QUOTED = 20  # last lines of the output of a training that failed without a message


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A finished training. It can be given wherever its folder can: to `load`, `evaluate` and `train(resume=run)`.

    Attributes:
        estimate: Only of a dry run, `train(dry_run=True)`, which has nothing else: parameters, steps, patches, memory
            in bytes and seconds of the training.
    """

    _folder: Path | None
    estimate: dict[str, float] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self._folder)!r})" if self.estimate is None else f"Run(estimate={self.estimate})"

    @property
    def folder(self) -> Path:
        """The run's directory.

        Raises:
            InputError: It was a dry run.
        """
        if self._folder is None:
            raise InputError("dry_run=True trains nothing, and leaves no files: the run has only an `estimate`")
        return self._folder

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def result(self) -> dict[str, Any]:
        """The outcome: psnr and bicubic on the validation images in dB, best_step, steps, seconds, and others."""
        return read_result(self.folder) or {}

    @property
    def scores(self) -> Scores:
        """The scores of the best checkpoint, and of bicubic, on the validation images and the benchmarks."""
        return read_scores(self.folder)

    def load(self, **options: Any) -> Upscaler:
        """Load the best checkpoint; options as for `Upscaler`."""
        return Upscaler.load(self.folder, **options)


def train(*overrides: str, **settings: Any) -> Run:
    """Train as `python train.py` does, with the same bits; the output is printed as it comes.

    The training is a process of its own, which exits with this one. Ctrl-C, or the interruption of a notebook's cell,
    saves it at the step reached; `train(resume=FOLDER)` then continues it to the same bits.

    Args:
        *overrides: Settings as on the command line, such as "model.optimizer.lr=1e-3".
        **settings: Settings by name: model="espcn", scale=2, data="t91" or a folder of images, max_steps=2000,
            experiment="espcn_fast". A table is the settings below it: data={"batch_size": 8}. dry_run=True estimates
            memory and time, and trains nothing.

    Raises:
        InputError: As train.py reports it.
        RuntimeError: The training failed for another reason.
        KeyboardInterrupt: It was interrupted, and is saved.
    """
    words = arguments(overrides, settings)
    if flags := [word for word in words if word.startswith("-")]:
        raise InputError(f"{flags[0]}: train() starts one run; sweeps are started by python train.py -m")
    compose_config("train", words)  # names a wrong key or option at once
    with tempfile.TemporaryDirectory(prefix="sr_lightning_") as folder:
        answer = Path(folder, "answer.json")
        code, lines = _run([str(PROJECT / "train.py"), *words], {ANSWER: str(answer)})
        told = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        text = "\n".join(lines[-QUOTED:])
        if error := told.get("error") or next((line[7:] for line in lines if line.startswith("error: ")), None):
            raise InputError(error)
        raise RuntimeError(f"training: {exit_reason(code)}{_way_on(told)}\n{text}")
    if "estimate" in told:
        return Run(None, told["estimate"])
    return Run(RunFolder(told["run_dir"]).path.absolute())


def _way_on(told: Mapping[str, Any]) -> str:
    """Return the call that resumes a run that was killed, if it was saved."""
    saved = "run_dir" in told and RunFolder(told["run_dir"]).last.is_file()
    return f"\nTo go on: train(resume={told['run_dir']!r})" if saved else ""


def _run(words: list[str], variables: Mapping[str, str]) -> tuple[int, list[str]]:
    """Run `python WORDS`, print its output line by line, and return the exit code and the lines.

    A process group of its own: in a terminal, Ctrl-C would reach it twice otherwise.
    """
    environment = os.environ | variables | {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    while True:
        try:
            line = process.stdout.readline()
            if not line:
                return process.wait(), lines
            lines.append(line.rstrip("\n"))
            print(lines[-1], flush=True)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # the first one saves, a second one ends it at once
        except BaseException:
            process.terminate()
            process.wait()
            raise
