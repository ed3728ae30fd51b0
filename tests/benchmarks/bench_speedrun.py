"""Seconds of one core until Set5 passes the numbers of the papers, and the search for the recipes that do it.

  python tests/benchmarks/bench_speedrun.py                     train for each goal and score on Set5 (SR_DATA_ROOT)
  python tests/benchmarks/bench_speedrun.py "FSRCNN x2"         for some goals
  python tests/benchmarks/bench_speedrun.py --search 15 "experiment=fsrcnn_fast" "experiment=fsrcnn_fast model.ema=0.99"
                            score variants that train for equal seconds on the three held-out photos, not on a benchmark

These are runs of train.py on one thread, without torch.compile. Seconds are the processor time of `Trainer.fit`: steps,
one validation at the end, checkpoints. Imports and scoring are not counted.
"""

import argparse
import csv
import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from sr_lightning.network_costs import count, lr_size
from sr_lightning.training.train import train
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.timings import processor
from tests.helpers import compose

PROBE = 150  # steps of the run that tells how many fit into the seconds of a search


class Goal(NamedTuple):
    """A published PSNR on Set5, the network of the paper, and the run to pass it with a network of at most its cost."""

    psnr: float
    published: str
    words: str


DEEP = "experiment=espcn_deep_fast"
GOALS = {
    "SRCNN x3": Goal(32.39, "experiment=srcnn_paper", f"{DEEP} max_steps=400 model.optimizer.lr=1e-2"),
    "ESPCN x3, T91": Goal(32.55, "experiment=espcn_paper", f"{DEEP} max_steps=700 model.optimizer.lr=1e-2"),
    "ESPCN x3, ImageNet": Goal(33.13, "experiment=espcn_paper", DEEP),
    "FSRCNN x3, T91": Goal(33.06, "experiment=fsrcnn_paper scale=x3", DEEP),
    "FSRCNN x3": Goal(33.16, "experiment=fsrcnn_paper scale=x3", DEEP),
    "FSRCNN x4": Goal(
        30.71,
        "experiment=fsrcnn_paper scale=x4",
        f"{DEEP} scale=x4 max_steps=8000 model.network.num_features=[16,16,16,16,16]",
    ),
    "FSRCNN x2": Goal(37.00, "experiment=fsrcnn_paper scale=x2", f"{DEEP} scale=x2"),
}


class Run(NamedTuple):
    """PSNR on the held-out photos and on Set5 (None if it is not scored), and processor seconds of training."""

    photos: float
    set5: float | None
    seconds: float


def run(words: list[str]) -> Run:
    """Train and score as train.py does, in a temporary directory."""
    fit, seconds = pl.Trainer.fit, []

    def timed(*args, **kwargs) -> None:
        start = time.process_time()
        fit(*args, **kwargs)
        seconds.append(time.process_time() - start)

    with tempfile.TemporaryDirectory() as folder, patch.object(pl.Trainer, "fit", timed):
        cfg = compose(*words, f"run_dir={folder}", "trainer=cpu", "compile=false", "num_comparisons=0")
        cfg.val_every = cfg.save_every = cfg.max_steps
        cfg.choices = dict.fromkeys(cfg.choices)  # those of a command line
        photos = train(cfg)
        with Path(folder, "results.csv").open(newline="") as file:
            means = [row for row in csv.DictReader(file) if (row["dataset"], row["image"]) == ("Set5", "mean")]
    return Run(photos, next((float(row["psnr_y"]) for row in means if row["model"] != "bicubic"), None), seconds[0])


def multiply_adds(cfg: DictConfig) -> str:
    network = OmegaConf.to_container(cfg.model.network, resolve=True)
    return f"{count(network, *lr_size(cfg.scale)).multiply_adds / 1e9:.2f} G"


def reach(names: list[str]) -> None:
    """Print the table of the goals; goals with the same run share it."""
    lines = [["goal", "published", "Set5", "seconds", "multiply-adds", "paper's", "python train.py …"]]
    runs: dict[str, Run] = {}
    for name in names:
        goal = GOALS[name]
        done = runs[goal.words] = runs.get(goal.words) or run(goal.words.split())
        costs = [multiply_adds(compose(*words.split())) for words in (goal.words, goal.published)]
        lines.append(
            [name, f"{goal.psnr:.2f}", f"{done.set5:.2f}", f"{done.seconds:.0f}", *costs, f"`{goal.words}`"],
        )
        print(f"{name}: {done.set5:.3f} dB, {done.seconds:.1f} s", flush=True)
    print(f"\n{processor()}, one core\n\n{markdown_table(lines)}")


def search(seconds: float, variants: list[str]) -> None:
    """Print PSNR on the held-out photos, seconds and steps of each variant."""
    for variant in variants:
        words = [*variant.split(), "benchmarks=[]"]
        steps = round(PROBE * seconds / run([*words, f"max_steps={PROBE}"]).seconds)
        done = run([*words, f"max_steps={steps}"])
        print(f"{done.photos:.3f} dB, {done.seconds:.1f} s, {steps} steps: {variant}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", type=float, metavar="SECONDS")
    parser.add_argument("words", nargs="*", help="goals, or variants of a search; default: all goals")
    options = parser.parse_args()
    if options.search:
        search(options.search, options.words)
    else:
        reach(options.words or list(GOALS))
