"""Train a network and score it: python train.py [model=… data=… scale=… experiment=…]."""

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import task


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@task
def main(cfg: DictConfig) -> float:
    from sr_lightning.training import train

    return train(cfg)


if __name__ == "__main__":
    main()
