"""A stand-in for train.py that trains nothing, for tests of the launching, locking and reporting of cells.

`max_steps` are hundredths of a second; seed=13 raises, seed=12 raises InputError, seed=9 is killed, seed=11 exits
without a result, seed=4 writes a checkpoint, with its devices, and hangs unless it is resumed, seed=8 kills the process
of its job.
"""

import os
import signal
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import in_sweep, task
from sr_lightning.errors import InputError
from sr_lightning.runs.result import write_result
from sr_lightning.sweeps import run_cell, run_lock
from sr_lightning.utils.cores import SHARE
from sr_lightning.utils.signals import handle_signals


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train")
@task
def main(cfg: DictConfig) -> float:
    if in_sweep():
        return run_cell(cfg)
    with run_lock(cfg.run_dir):
        print(f"{os.environ[SHARE]} cores, {cfg.num_comparisons} pictures", flush=True)
        if cfg.seed == 13:
            raise RuntimeError("thirteen")
        if cfg.seed == 12:
            raise InputError("seed=12: take another\nor none")
        if cfg.seed == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.seed == 8:
            os.kill(int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
            time.sleep(1000)
        if cfg.seed == 11:
            os._exit(0)
        if cfg.seed == 4 and not cfg.resume:
            Path(cfg.run_dir, "checkpoints").mkdir()
            Path(cfg.run_dir, "checkpoints", "last.ckpt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            time.sleep(1000)
        time.sleep(cfg.max_steps / 100)
        write_result(cfg.run_dir, "finished", cfg, psnr=30.0 + cfg.seed / 10, steps=cfg.max_steps, seconds=0.0)
        return 30.0 + cfg.seed / 10


if __name__ == "__main__":
    handle_signals()
    main()
