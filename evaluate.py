"""Score networks on benchmarks: python evaluate.py ckpt=FILE 'benchmarks=[Set5,BSD100]'."""

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import task


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@task
def main(cfg: DictConfig) -> float:
    from sr_lightning.scoring import evaluate

    return evaluate(cfg)


if __name__ == "__main__":
    main()
