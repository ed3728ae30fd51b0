"""Train a network and score it.

Examples:
  python train.py                                       ESPCN x2 on photos bundled with scikit-image
  python train.py model=srcnn data=t91 scale=x3         another network, data set and factor
  python train.py experiment=espcn_fast seed=1          a recipe; any of its values can be changed
  python train.py resume=outputs/RUN                    continue a run, to the same bits
  python train.py -m model=srcnn,espcn seed=1,2,3       a sweep; the same command again: the runs that are missing
"""

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import prepare_command, task


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@task
def main(cfg: DictConfig) -> float:
    from sr_lightning.sweeps import agent_devices, in_sweep, run_cell, run_lock

    if cfg.dry_run:
        from sr_lightning.utils.large_imports import import_torchmetrics, large_imports

        with large_imports():
            import_torchmetrics()
            from sr_lightning.training.dry_run import dry_run

        return dry_run(cfg)
    if in_sweep():
        return run_cell(cfg)
    from sr_lightning.training.nodes import joined

    with joined(cfg), run_lock(cfg.run_dir):
        from sr_lightning.training.checks import checked, finished_score

        cfg = checked(cfg)  # before torch is imported: wrong input is named at once
        if (psnr := finished_score(cfg)) is not None:
            return psnr
        with agent_devices(cfg.trainer):
            from sr_lightning.training.preloaded import train

            return train(cfg)


if __name__ == "__main__":
    prepare_command(__doc__, "train")
    main()
