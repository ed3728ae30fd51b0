"""Train a network and score it: python train.py [model=… data=… scale=… experiment=…]; -m trains many."""

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import in_sweep, task


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@task
def main(cfg: DictConfig) -> float:
    from sr_lightning.sweeps import in_charge_of, run_cell

    if cfg.dry_run:
        from sr_lightning.dry_run import dry_run

        return dry_run(cfg)
    if in_sweep():
        return run_cell(cfg)
    with in_charge_of(cfg.run_dir):
        from sr_lightning.training import train

        return train(cfg)


if __name__ == "__main__":
    main()
