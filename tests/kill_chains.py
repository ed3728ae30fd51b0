"""Chains of kills: a run that is killed and resumed until it has finished equals an uninterrupted one in every bit.

    python -m tests.kill_chains --chains 100 --seed 15
    python -m tests.kill_chains --seed 15 --number 4      # one chain again, whose folder stays

A chain trains one configuration without interruption, and again with kills, each in a phase drawn from those of the
configuration: the start, a step, the writing of a file, a validation, the scoring at the end, Weights & Biases, or any
moment. Most are SIGKILL, some SIGINT, SIGTERM or SIGHUP, which save the run, and some two of them. After some kills the
rows of metrics.csv that no checkpoint needs are cut at a random byte, or become NUL bytes, as after a power cut. Then
the run is resumed by `resume=RUN`. Compared are files, checkpoints, metrics.csv, scores, pictures, config and the
records of Weights & Biases; processes and temporary files that are left are reported as well.

Prints the kills by phase, and each chain that differs. Exits with 1 if there is one. All is drawn from seed and number
of the chain, except that kills at any moment do not repeat exactly.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.runs.folder import RunFolder
from tests.helpers import Command, differences, metrics_of, rows_of
from tests.killing import PHASES, WRITE

ANY, SECOND = "any moment", "second process"
WEIGHTS = {"start": 1, WRITE: 4, "W&B": 4}  # of the phases in which kills are drawn; 2 for others
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WANDB = Path(sys.executable).with_name("wandb")

# Checkpoints fall before, on and between validations, and between two logged means.
COMMON = (
    *("data=folder", "data.val_fraction=0.3", "data.patch_size=8", "data.batch_size=4", "trainer=cpu", "scale=x2"),
    *("trainer.precision=32-true", "compile=false", "num_comparisons=1", "benchmarks=[Tiny]"),
    *("max_steps=50", "val_every=20", "save_every=5", "log_every=7"),
)
ESPCN = ("model=espcn", "model.network.num_features=[8,4]", "model.network.kernel_sizes=[5,3,3]")
GAN = (
    *("model=srresnet", "model.network.num_features=8", "model.network.num_blocks=1", "gan=srgan"),
    *("data.patch_size=16", "model.loss.terms.content.weights=random", "~model.loss.terms.content.layers.5_4"),
    *("+model.loss.terms.content.layers.1_2=1", "model.discriminator.num_features=4"),
)
KINDS = {
    "pixel": ESPCN,
    "GAN": (*GAN, "model.ema=0.9"),
    "EMA": (*ESPCN, "model.ema=0.99", "comparisons_every=20"),
    "accumulated gradients": (*ESPCN, "+trainer.accumulate_grad_batches=2"),
    "accumulated GAN": (*GAN, "model.accumulate=2"),
    "two workers": (*ESPCN, "data.num_workers=2", "degradation=blur_noise_jpeg"),
    "W&B": (*ESPCN, "logger=wandb"),
    "extended, stretch": (*ESPCN, "model.ema=0.9"),
    "extended, restart": (*ESPCN, "logger=both"),
    "two processes": (*GAN, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
}
TWO_PROCESSES = "two processes"
FIRST_STEPS = 30  # of a run that is extended
SLOW = 600.0  # seconds after which a command counts as hanging


@dataclass
class Chain:
    """One configuration, trained without and with kills.

    Attributes:
        number: The chain's number; with the seed it determines everything.
        kind: Key of KINDS.
        random: Source of its choices.
        folder: Has `whole` and `killed`, each with run, cache, and folders for temporary files.
        kills: Kills that have happened, by phase.
        points: The same by point.
        faults: What was wrong.
    """

    number: int
    kind: str
    random: random.Random
    folder: Path
    kills: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def words(self, side: Path) -> list[str]:
        """Return the command of a new run, as a user types it in the folder `side`."""
        shared = self.folder.parent / "shared"
        paths = [f"data.hr={shared}/pictures", f"data_root={shared}", f"cache_dir={side}/cache", "hydra.run.dir=run"]
        return [*COMMON, *KINDS[self.kind], *paths, f"seed={self.number}"]

    def run(self, side: Path, words: list[str], plan: dict[str, Any]) -> tuple[int, str]:
        """Run train.py in the folder `side` until it and its processes have ended; return exit code and output."""
        for name in ("tmp", "wandb"):
            (side / name).mkdir(parents=True, exist_ok=True)
        environment = {
            "SR_KILL": json.dumps(plan),
            "SR_CHAIN": str(side),
            "TMPDIR": f"{side}/tmp",
            "WANDB_MODE": "offline",
            **{f"WANDB_{name}_DIR": f"{side}/wandb" for name in ("CACHE", "CONFIG", "ARTIFACT")},
            "SR_CACHE_DIR": str(self.folder.parent / "shared" / "cache"),  # of measured times
        }
        program = Path(__file__).parents[1] / "train.py"
        command = Command("-m", "tests.killing", program, *words, cwd=side, environment=environment)
        try:
            done = command.wait(SLOW)
        except TimeoutError:
            self.faults.append(f"{words} does not end")
            return -1, ""
        deadline = time.monotonic() + 30
        while (left := processes_of(side)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            self.faults.append(f"process {pid} outlives its run: {Path(f'/proc/{pid}/cmdline').read_bytes()}")
            os.kill(pid, signal.SIGKILL)
        return done.returncode, done.stdout + done.stderr

    def expect(self, code: int, output: str, expected: tuple[int, ...], words: list[str]) -> bool:
        """Record a fault if a command has ended in an unexpected way."""
        may_fail = self.kind == TWO_PROCESSES and code != 0  # one process fails when the other is killed
        if code in expected and (may_fail or "Traceback" not in output):
            return True
        self.faults.append(f"{words[-3:]} ended with {code}, not {expected}:\n{output[-3000:]}")
        return False

    def train(self) -> None:
        """Train without interruption, then with kills, and compare."""
        whole, killed = self.folder / "whole", self.folder / "killed"
        first = self.words(whole)
        if self.extends:
            code, output = self.begin(whole, first)
            if not self.expect(code, output, (0, 143, -9), first):
                return
            shutil.copytree(whole, killed, symlinks=True)
            config = RunFolder(killed / "run").config
            config.write_text(replaced(config.read_text(), {str(whole): str(killed)}))
        start = [f"cache_dir={killed}/cache" if w.startswith("cache_dir=") else w for w in first]
        extension = ["resume=run", "max_steps=60", f"extend={self.kind.split()[-1]}"]
        count = {"count": str(self.folder / "count.json")}
        begun = time.monotonic()
        words = extension if self.extends else first
        if not self.expect(*self.run(whole, words, count), (0,), words):
            return
        seconds = time.monotonic() - begun
        passes = json.loads(Path(count["count"]).read_text())

        words = extension if self.extends else start
        for plan in self.plans(passes, seconds):
            code, output = self.run(killed, words, plan)
            if code == 0:
                break
            if not self.expect(code, output, ends_of(plan), words):
                return
            self.kills[SECOND if "second_process" in plan else plan.get("phase", ANY)] += 1
            self.points[" ".join(map(str, (plan.get("phase", ANY), plan.get("point", ""))))] += 1
            words = self.next_words(killed / "run", start, extension, output)
        else:
            code, output = self.run(killed, words, {})
        if self.expect(code, output, (0,), words):
            self.faults += differences_of_sides(whole, killed)

    @property
    def extends(self) -> bool:
        return self.kind.startswith("extended")

    def begin(self, side: Path, words: list[str]) -> tuple[int, str]:
        """Train the run that is extended later, to its end or to a signal."""
        words = [f"max_steps={FIRST_STEPS}" if word.startswith("max_steps=") else word for word in words]
        step = {"phase": "step", "point": "before training_step", "pass": self.random.randrange(10, FIRST_STEPS)}
        best = {"phase": WRITE, "point": "after best.ckpt", "pass": 1}  # with a last.ckpt of an earlier step
        plans = [{}, step | {"signals": [signal.SIGTERM]}, best | {"signals": [signal.SIGKILL]}]
        return self.run(side, words, self.random.choice(plans))

    def plans(self, passes: dict[str, dict[str, int]], seconds: float) -> Iterator[dict[str, Any]]:
        """Yield what ends each process, ordered so that no kill passes over those of an earlier phase.

        Args:
            passes: {phase: {point: count}} of the uninterrupted run.
            seconds: That it took.
        """
        names = [*PHASES, WRITE, ANY]
        phases = [name for name in names if passes.get(name) or name == ANY]
        drawn = [phases[self.number // len(KINDS) % len(phases)]]  # each phase has its turn
        weights = [WEIGHTS.get(name, 2) for name in phases]
        drawn += self.random.choices(phases, weights, k=self.random.randint(2, 4))
        for phase in sorted(drawn, key=lambda name: (name == "scoring", self.random.random())):
            plan = {"signals": self.signals(), "share": self.random.random()}
            if phase == ANY:
                yield plan | {"seconds": self.random.uniform(0, 0.8 * seconds)}
            else:
                point = self.random.choice(list(passes[phase]))
                count = self.random.randint(1, max(1, passes[phase][point] // 2))
                plan |= {"phase": phase, "point": point, "pass": count}
                if self.kind == TWO_PROCESSES and phase in ("step", "validation") and self.random.random() < 0.4:
                    plan |= {"second_process": True, "signals": [signal.SIGKILL]}
                yield plan

    def signals(self) -> list[int]:
        if self.random.random() < 0.75:
            return [signal.SIGKILL]
        return [self.random.choice(SIGNALS) for _ in range(self.random.randint(1, 2))]

    def next_words(self, run_dir: Path, start: list[str], extension: list[str], output: str) -> list[str]:
        """Return the command that a user types after a kill; before that, sometimes damage metrics.csv."""
        run = RunFolder(run_dir)
        if not run.last.is_file():
            return start
        done = steps_done(read_checkpoint(run.last))
        if f"saved at step {done}" in output and "To go on: python" not in output:
            self.faults.append(f"a signal does not name the way to go on:\n{output[-1000:]}")
        if run.metrics.is_file() and self.random.random() < 0.3:
            cut_power(run.metrics, done, self.random)
            self.kills["metrics.csv damaged"] += 1
        if not self.extends:
            return ["resume=run"]
        is_extended = "extended" in yaml.safe_load(run.config.read_text())
        return self.random.choice([["resume=run"], extension]) if is_extended else extension


def ends_of(plan: dict[str, Any]) -> tuple[int, ...]:
    """Return the exit codes of a process that a plan has ended."""
    if "second_process" in plan:  # the first one fails, or is killed by Lightning
        return (1, -signal.SIGKILL, -signal.SIGTERM)
    first, *more = plan["signals"]
    codes = [-signal.SIGKILL, -signal.SIGXFSZ] if plan.get("phase") == WRITE or first == signal.SIGKILL else []
    codes += [] if first == signal.SIGKILL else [128 + first, -first]
    return (*codes, *(-signum for signum in more))


def processes_of(side: Path) -> list[int]:
    """List the living processes that commands of a folder have started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            alive = status.read_text().rpartition(")")[2].split()[0] not in "ZX"
            if alive and f"SR_CHAIN={side}\0".encode() in status.with_name("environ").read_bytes():
                found.append(int(status.parent.name))
        except OSError:  # has ended
            continue
    return found


def cut_power(metrics: Path, done: int, source: random.Random) -> None:
    """Cut the rows after `done` steps at any byte, or replace what follows by NUL bytes."""
    content = metrics.read_bytes()
    durable = 0
    for line in content.splitlines(keepends=True):
        step = line.partition(b",")[0]
        if step.isdigit() and int(step) > done:
            break
        durable += len(line)
    cut = source.randint(durable, len(content))
    metrics.write_bytes(content[:cut] + source.choice([b"", bytes(len(content) - cut + 1)]))


def differences_of_sides(whole: Path, killed: Path) -> Iterator[str]:
    """Yield what differs between an uninterrupted run, with its cache and temporary files, and another."""
    yield from differences_of_runs(whole / "run", killed / "run")
    one, other = ({comparable(path, side) for path in files_of(side)} for side in (whole, killed))
    if one != other:
        yield f"files: missing {sorted(one - other)}, left {sorted(other - one)}"
    if (whole / "run" / "wandb").is_dir():
        yield from differences_of_wandb(whole / "run", killed / "run")


def files_of(side: Path) -> Iterator[Path]:
    """Yield files and folders of a run, of its cache, and of the folder for temporary files.

    There, W&B and Python's worker processes leave files that no killed process removes; the system does.
    """
    yield from (path for name in ("run", "cache") for path in (side / name).rglob("*"))
    if not (side / "run" / "wandb").is_dir():
        yield from (path for path in (side / "tmp").rglob("*") if "/pymp-" not in str(path))


def comparable(path: Path, side: Path) -> str:
    """Name a file by its path, or, if that contains times, by its kind."""
    parts = path.relative_to(side).parts
    return "/".join(parts[:2]) if parts[1] in ("wandb", "tensorboard") else "/".join(parts)


def differences_of_runs(whole: Path, other: Path) -> Iterator[str]:
    """Yield in what the results of two runs differ, except for paths and seconds."""
    moved = {str(other): str(whole), str(other.parent): str(whole.parent)}
    for name in ("last.ckpt", "best.ckpt"):
        one, two = (checkpoint_without_seconds(run / "checkpoints" / name) for run in (whole, other))
        yield from differences(one, replaced(two, moved), name)
    yield from differences(metrics_of(whole), metrics_of(other), "metrics.csv")
    seconds = [float(row["seconds"]) for row in rows_of(other / "metrics.csv")]
    if seconds != sorted(seconds):
        yield f"metrics.csv: the seconds {seconds} go back"
    yield from differences(rows_of(whole / "results.csv"), rows_of(other / "results.csv"), "results.csv")
    one, two = (json.loads((run / "result.json").read_text()) | {"seconds": None} for run in (whole, other))
    yield from differences(one, two, "result.json")
    validated = {int(row["step"]): float(row["val/psnr"]) for row in rows_of(other / "metrics.csv") if row["val/psnr"]}
    if two["best_step"] not in (max(validated, key=validated.get), max(validated)):  # the latest is a GAN's best
        yield f"best.ckpt is of step {two['best_step']}, validated {validated}"
    one, two = (yaml.safe_load((run / "config.yaml").read_text()) for run in (whole, other))
    yield from differences(without_resume(one), without_resume(replaced(two, moved)), "config.yaml")
    for picture in whole.rglob("*.png"):
        path = other / picture.relative_to(whole)
        if path.is_file() and path.read_bytes() != picture.read_bytes():
            yield f"{path.name} is another picture"


def checkpoint_without_seconds(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    checkpoint["callbacks"]["Progress"]["seconds"] = None
    checkpoint.pop("provenance")
    return checkpoint | {"hyper_parameters": without_resume(checkpoint["hyper_parameters"])}


def without_resume(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out the settings in which a resumed run differs from a new one."""
    return config | dict.fromkeys(("resume", "run_dir"))


def replaced(value: Any, texts: dict[str, str]) -> Any:
    """Replace texts in all strings of nested containers."""
    if isinstance(value, str):
        for old, new in texts.items():
            value = value.replace(old, new)
    elif isinstance(value, dict):
        return type(value)((replaced(key, texts), replaced(item, texts)) for key, item in value.items())
    elif isinstance(value, list | tuple):
        return type(value)(replaced(item, texts) for item in value)
    return value


def differences_of_wandb(whole: Path, killed: Path) -> Iterator[str]:
    """Yield what is wrong in the records of Weights & Biases.

    Each part has the run's id and increasing steps. Steps that a resumed part repeats have equal values, and the last
    part has the outcome. The last second before a kill may be missing.
    """
    expected = [recorded_by_wandb(part) for part in wandb_parts(whole)]
    values = [value for part in expected for value in part.values]
    parts = [recorded_by_wandb(part) for part in wandb_parts(killed)]
    run_id = (killed / "wandb_id").read_text().strip()
    for part in parts:
        if part.run_id not in ("", run_id):
            yield f"W&B: a part has the id {part.run_id}, not {run_id}"
        steps = [step for step, _ in part.values]
        if steps != sorted(steps):
            yield f"W&B: the steps of a part go back: {steps}"
        for value in part.values:
            if value not in values:
                yield f"W&B: {value} is not a value of the uninterrupted run"
    if parts[-1].outcome != expected[-1].outcome:
        yield f"W&B: outcome {parts[-1].outcome}, not {expected[-1].outcome}"


@dataclass
class WandbPart:
    """Records of one part: id, (step, values) in order, and the summary of the outcome."""

    run_id: str
    values: list[tuple[int, dict[str, float]]]
    outcome: dict[str, Any]


def wandb_parts(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))


def recorded_by_wandb(part: Path) -> WandbPart:
    """Read a part by W&B's own reader."""
    done = subprocess.run([WANDB, "leet", "inspect", "--json", part], capture_output=True, check=True)
    run_id, values, outcome = "", [], {}
    for record in map(json.loads, done.stdout.splitlines()):
        run_id = record.get("run", {}).get("run_id", run_id)
        if "history" in record:
            item = record["history"]["item"]
            values.append((item["step"], {key: item[key] for key in item if key[:4] in ("trai", "val/")}))
        summary = record.get("summary", {}).get("update", {})
        outcome |= {key: summary[key] for key in summary if key.startswith("test/") or key in ("psnr", "steps")}
    return WandbPart(run_id, [value for value in values if value[1]], outcome)


def make_pictures(shared: Path) -> None:
    """Write six training pictures of 96 x 80 pixels, and a benchmark of two."""
    source = np.random.default_rng(0)
    for i in range(8):
        path = shared / (f"pictures/{i}.png" if i < 6 else f"benchmark/Tiny/HR/{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(source.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        coarse.resize((80, 96), Image.Resampling.BICUBIC).save(path)
        os.utime(path, (0, 0))  # digests of files that have just changed are not cached


@cache
def prepare_process() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for signum in SIGNALS:  # also if those who run the chains ignore them, as nohup does
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


def run_chain(seed: int, folder: Path, keep: bool, number: int) -> Chain:
    """Run one chain in `folder`, which has the pictures in `shared`."""
    prepare_process()
    own = folder / f"chain_{number}"
    chain = Chain(number, list(KINDS)[number % len(KINDS)], random.Random(f"{seed} {number}"), own)
    try:
        chain.train()
    except Exception as error:
        chain.faults.append(f"{type(error).__name__}: {error}")
    if not keep:
        shutil.rmtree(own, ignore_errors=True)
    return chain


def run_chains(seed: int, numbers: Sequence[int], folder: Path, jobs: int = 1, keep: bool = False) -> Iterator[Chain]:
    """Run chains, several at a time in processes of their own."""
    make_pictures(folder / "shared")
    chain = partial(run_chain, seed, folder, keep)
    if jobs == 1:
        yield from map(chain, numbers)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(chain, numbers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--number", type=int, help="only this chain; its folder stays")
    parser.add_argument("--jobs", type=int, default=2, help="chains at a time")
    options = parser.parse_args()
    numbers = range(options.chains) if options.number is None else range(options.number, options.number + 1)
    begun, kills, chains, points, faulty = time.monotonic(), Counter(), Counter(), Counter(), 0
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kill_chains_"))
    for chain in run_chains(options.seed, numbers, folder, options.jobs, keep=options.number is not None):
        kills, points = kills + chain.kills, points + chain.points
        chains[chain.kind] += 1
        faulty += bool(chain.faults)
        parts = ", ".join(f"{phase} {count}" for phase, count in sorted(chain.kills.items()))
        print(f"{chain.number:4} {chain.kind}: {parts or 'no kill'}", flush=True)
        for fault in chain.faults[: None if options.number is not None else 5]:
            print(f"     --seed {options.seed} --number {chain.number}: {fault}", flush=True)
    if options.number is None:
        shutil.rmtree(folder)
    else:
        print(folder)
    print("\nchains by kind:", ", ".join(f"{kind} {count}" for kind, count in chains.items()))
    print("kills by phase:", ", ".join(f"{phase} {count}" for phase, count in kills.most_common()))
    print("kills by point:", ", ".join(f"{point} {count}" for point, count in sorted(points.items())))
    total = sum(kills.values()) - kills["metrics.csv damaged"]
    print(f"{len(numbers)} chains, {total} kills, {faulty} chains differ; {time.monotonic() - begun:.0f} s")
    return bool(faulty)


if __name__ == "__main__":
    sys.exit(main())
