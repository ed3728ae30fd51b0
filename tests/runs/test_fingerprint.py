"""Which settings make a cell, and what it is called."""

import re

import pytest
from omegaconf import OmegaConf

from sr_lightning.runs.fingerprint import NO_BEARING, bearing_settings, cell_name, changed_settings, fingerprint
from tests.helpers import compose


def composed(*overrides):
    return compose("name=net", "choices={data: t91, model: net, experiment: null}", "data=t91", *overrides)


@pytest.mark.parametrize(
    "words",
    [
        ["data_root=/elsewhere", "cache_dir=/tmp"],
        ["logger=wandb", "log_every=7", "save_every=3", "num_pictures=0", "benchmarks=[]"],
        ["trainer=ddp", "data.num_workers=4", "data.residence=memory"],
        ["sweep=other", "prune_after=100", "launcher=gpus", "search=optuna"],
    ],
)
def test_places_logs_and_devices_make_no_other_cell(words):
    assert cell_name(composed(*words)) == cell_name(composed())


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "max_steps=10",
        "model.optimizer.lr=1",
        "data.patch_size=10",
        "trainer.precision=32-true",
        "val_every=9",
    ],
)
def test_what_bears_on_the_result_makes_another_cell(word):
    assert fingerprint(composed(word)) != fingerprint(composed())


def test_of_each_setting_it_is_said_whether_it_bears_on_the_result():
    """A new one of train.yaml is listed here, or in NO_BEARING if a cell stays the same whatever it says."""
    bearing = {"name", "seed", "max_steps", "val_every", "scale", "model", "data", "degradation", "protocol", "trainer"}
    assert set(composed()) - set(NO_BEARING) == bearing


def test_a_setting_added_later_and_off_changes_no_name():
    assert fingerprint(composed("+model.invented_later=null")) == fingerprint(composed())


def test_a_config_read_from_a_runs_directory_is_the_cell_that_wrote_it():
    cfg = composed("data_root=/here")
    saved = OmegaConf.create(OmegaConf.to_container(composed("data_root=/there", "choices=null"), resolve=False))
    saved = OmegaConf.create({k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v
                              for k, v in saved.items()})  # fmt: skip
    assert bearing_settings(saved) == bearing_settings(cfg)
    assert bearing_settings(cfg)["data.train.hr"] == "<data_root>/T91"


def test_what_was_changed_is_named_with_both_values():
    was, asked = composed(), composed("name=other", "data_root=/elsewhere", "model.network.activation=Tanh")
    changes = ["model.network.activation: was ReLU, asked Tanh", "name: was net, asked other"]
    assert changed_settings(was, asked) == changes


def test_a_name_says_what_the_cell_is_and_is_safe_for_every_file_system():
    assert re.fullmatch(r"net_t91_x2_seed0_[0-9a-f]{8}", cell_name(composed()))
    odd = cell_name(composed("name='a=b/c d\"é'", "seed=5"))
    assert re.fullmatch(r"a-b-c-d-_t91_x2_seed5_[0-9a-f]{8}", odd)
    assert len(cell_name(composed(f"name={'long' * 100}"))) < 100
