"""Score networks on benchmarks: python evaluate.py ckpt=FILE 'benchmarks=[Set5,BSD100]', or runs=SWEEP for a table."""

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import task


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@task
def main(cfg: DictConfig) -> float:
    if cfg.runs is None:
        from sr_lightning.scoring import evaluate
    else:
        from sr_lightning.leaderboard import evaluate

    return evaluate(cfg)


if __name__ == "__main__":
    main()
