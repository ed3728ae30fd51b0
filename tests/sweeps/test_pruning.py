"""Pruning: a cell below the median of its rivals at the same step stops, and can be resumed."""

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from sr_lightning.callbacks.pruning import MIN_RIVALS, Pruning, best_until
from sr_lightning.checkpoints.checkpoint import read_checkpoint, steps_done
from sr_lightning.runs.result import read_result
from sr_lightning.sweeps.processes import CELL, PARENT
from sr_lightning.training.train import train
from tests.helpers import CONF, compose, rows_of


def cell(sweep, name, psnr, scale=2):
    """The directory of a cell with these PSNR at steps 10, 20, ..."""
    folder = sweep / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"choices: {{data: demo}}\nscale: {scale}\nmax_steps: 90\nprotocol: {{}}\n")
    rows = [f"{10 * i + 5},0.1,\n{10 * i + 10},0.1,{value}" for i, value in enumerate(psnr)]
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/psnr", *rows, ""]))
    return folder


def test_rivals_are_compared_by_their_best_score_until_that_step(tmp_path):
    metrics = cell(tmp_path, "a", [30.0, 33.0, 31.0]) / "metrics.csv"
    assert [best_until(metrics, step) for step in (10, 20, 30, 40)] == [30.0, 33.0, 33.0, None]
    assert best_until(tmp_path / "none" / "metrics.csv", 10) is None


def test_cell_below_the_median_is_pruned(tmp_path):
    for i in range(MIN_RIVALS):  # 31, 32, 33, 34: a median of 32.5
        cell(tmp_path, f"rival{i}", [20.0, 31.0 + i, 40.0])
    assert Pruning(cell(tmp_path, "worse", [29.0, 32.4]), after=10).is_hopeless(20)
    assert not Pruning(cell(tmp_path, "better", [29.0, 32.6]), after=10).is_hopeless(20)


def test_rivals_that_stopped_early_count_at_later_steps(tmp_path):
    for i in range(MIN_RIVALS):
        rival = cell(tmp_path, f"rival{i}", [20.0, 31.0 + i])
        (rival / "result.json").write_text('{"status": "finished", "stopped_early": "no gain"}')
    assert Pruning(cell(tmp_path, "worse", [29.0, 32.4, 32.4]), after=10).is_hopeless(30)
    (rival / "result.json").write_text('{"status": "pruned"}')
    assert not Pruning(cell(tmp_path, "other", [29.0, 32.4, 32.4]), after=10).is_hopeless(30)


def test_few_rivals_or_another_scale_do_not_prune(tmp_path):
    for i in range(MIN_RIVALS - 1):
        cell(tmp_path, f"rival{i}", [30.0, 40.0])
    for i in range(MIN_RIVALS):
        cell(tmp_path, f"other_scale{i}", [30.0, 40.0], scale=3)
    mine = Pruning(cell(tmp_path, "mine", [29.0, 29.0]), after=10)
    assert not mine.is_hopeless(20)
    cell(tmp_path, "one_more", [30.0, 40.0])
    assert mine.is_hopeless(20)


@pytest.mark.parametrize("config", ["scale: [", "choices: 3\nscale: 2\n", "choices: {data: demo}\n", "3"])
def test_a_rival_with_a_damaged_config_is_left_out(tmp_path, caplog, config):
    for i in range(MIN_RIVALS):
        cell(tmp_path, f"rival{i}", [30.0, 40.0])
    damaged = cell(tmp_path, "damaged", [30.0, 40.0])
    (damaged / "config.yaml").write_text(config)
    mine = Pruning(cell(tmp_path, "mine", [29.0, 29.0]), after=10)
    assert mine.is_hopeless(20)
    assert mine.is_hopeless(20)
    assert caplog.text.count(f"{damaged} is not compared with: ") == 1


@pytest.mark.slow
def test_pruned_cell_is_marked_and_resumes_without_pruning(command, tmp_path, monkeypatch):
    run_dir = tmp_path / "sweep" / "mine"
    words = [*command[1:], f"run_dir={run_dir}", "name=mine", "choices={data: demo, model: espcn, experiment: null}"]

    def train_here(*more):
        cfg = compose(*words, "max_steps=90", "num_comparisons=0", *more, hydra=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        train(cfg)
        return read_result(run_dir)

    monkeypatch.setenv(PARENT, "1")
    monkeypatch.setenv(CELL, "1")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # and afterwards
    for i in range(MIN_RIVALS):
        rival = cell(tmp_path / "sweep", f"rival{i}", [0.0, 20.0, 99.0])
        protocol = {"protocol": OmegaConf.to_container(OmegaConf.load(CONF / "protocol" / "standard.yaml"))}
        OmegaConf.save(OmegaConf.merge(OmegaConf.load(rival / "config.yaml"), protocol), rival / "config.yaml")
    result = train_here("prune_after=15", "save_every=50")
    assert (result["status"], result["steps"], result["max_steps"]) == ("pruned", 30, 90)
    assert result["psnr"] > 10
    last = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert steps_done(last) == 30

    result = train_here(f"resume={run_dir}", "prune_after=null", "save_every=50")
    assert (result["status"], result["steps"]) == ("finished", 90)
    validated = [row["step"] for row in rows_of(run_dir / "metrics.csv") if row["val/psnr"]]
    assert validated == [f"{10 * i}" for i in range(1, 10)]
