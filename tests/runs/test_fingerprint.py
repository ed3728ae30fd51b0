"""The settings that identify a cell, and its name."""

import re

import pytest
from omegaconf import OmegaConf

from sr_lightning.runs.fingerprint import IRRELEVANT_SETTINGS, cell_name, changed_settings, fingerprint, result_settings
from tests.helpers import ROOT, compose


def composed(*overrides):
    return compose("name=net", "choices={data: t91, model: net, experiment: null}", "data=t91", *overrides)


@pytest.mark.parametrize(
    "words",
    [
        ["data_root=/elsewhere", "cache_dir=/tmp"],
        ["logger=wandb", "log_every=7", "save_every=3", "num_comparisons=0", "benchmarks=[]"],
        ["trainer=ddp", "data.num_workers=4", "data.residence=memory"],
        ["sweep=other", "prune_after=100", "extend=stretch", "launcher=gpus", "search=optuna"],
    ],
)
def test_folders_loggers_and_devices_do_not_change_the_cell(words):
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
def test_settings_that_change_the_result_change_the_cell(word):
    assert fingerprint(composed(word)) != fingerprint(composed())


def test_every_setting_is_classified():
    """List a new setting of train.yaml here, or in IRRELEVANT_SETTINGS."""
    identifying = {
        "compile",
        "graph",
        "debug",
        "name",
        "seed",
        "max_steps",
        "val_every",
        "scale",
        "model",
        "data",
        "degradation",
        "protocol",
        "trainer",
    }
    assert set(composed()) - set(IRRELEVANT_SETTINGS) == identifying


def test_new_setting_that_is_off_changes_no_name():
    assert fingerprint(composed("+model.invented_later=null")) == fingerprint(composed())


def test_saved_config_names_the_cell_that_wrote_it():
    cfg = composed("data_root=/here")
    saved = OmegaConf.create(OmegaConf.to_container(composed("data_root=/there", "choices=null"), resolve=False))
    saved = OmegaConf.create({k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v
                              for k, v in saved.items()})  # fmt: skip
    assert result_settings(saved) == result_settings(cfg)
    assert result_settings(cfg)["data.train.hr"] == "<data_root>/T91"


def test_changed_settings_are_named_with_both_values():
    was, requested = composed(), composed("name=other", "data_root=/elsewhere", "model.network.activation=Tanh")
    changes = ["model.network.activation: was ReLU, requested Tanh", "name: was net, requested other"]
    assert changed_settings(was, requested) == changes


def test_cell_name_is_descriptive_and_safe_for_file_systems():
    assert re.fullmatch(r"net_t91_x2_seed0_[0-9a-f]{8}", cell_name(composed()))
    odd = cell_name(composed("name='a=b/c d\"é'", "seed=5"))
    assert re.fullmatch(r"a-b-c-d-_t91_x2_seed5_[0-9a-f]{8}", odd)
    assert len(cell_name(composed(f"name={'long' * 100}"))) < 100


def test_the_documentation_lists_every_irrelevant_setting():
    """All but those that a command cannot set, or that name the run itself."""
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").partition("## Identity of a cell")[2]
    listed = re.search(r"whatever the values of:\s+`([^`]+)`", text)[1].split()
    aliases = {"model.log_every": "log_every", "data.cache_dir": "cache_dir"}  # set by the same key
    internal = {"choices", "chosen", "teacher_file", "run_dir", "resume", "dry_run"}
    expected = {aliases.get(key, key) for key in IRRELEVANT_SETTINGS} - internal
    assert len(listed) == len(set(listed)) and set(listed) == expected
