"""Score networks on benchmarks: a table, pictures and report.html.

Examples:
  python evaluate.py ckpt=best.ckpt 'benchmarks=[Set5,BSD100]'     a checkpoint describes its network
  python evaluate.py 'ckpt=[a.ckpt,b.ckpt]' self_ensemble=true     several, side by side
  python evaluate.py model=bicubic scale=x3                        the baseline
  python evaluate.py ckpt=edsr.pt model=edsr_baseline scale=x2     another project's file
  python evaluate.py runs=multirun/NAME                            all runs of a sweep in one table
"""

import hydra
from omegaconf import DictConfig

from sr_lightning.cli import prepare_command, task


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@task
def main(cfg: DictConfig) -> float:
    from sr_lightning.evaluation.checks import check_request
    from sr_lightning.utils.cores import limit_threads
    from sr_lightning.utils.large_imports import large_imports

    check_request(cfg)  # before torch is imported: wrong input is named at once
    with large_imports():
        if cfg.runs is None:
            from sr_lightning.evaluation.evaluate import evaluate
        else:
            from sr_lightning.leaderboard import evaluate
    limit_threads()
    return evaluate(cfg)


if __name__ == "__main__":
    prepare_command(__doc__, "evaluate")
    main()
