"""Every data set and recipe of conf/ composes, and none trains on a benchmark image."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.helpers import CONF, compose, slow_except

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


HEAVY = ("_paper", "article")  # networks of full size


@pytest.mark.parametrize(
    "name", slow_except(EXPERIMENTS, *(name for name in EXPERIMENTS if not any(part in name for part in HEAVY)))
)
def test_recipe_states_its_command_and_builds(name):
    head = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert head[0] == "# @package _global_"
    assert head[1].startswith(f"# python train.py experiment={name}")
    assert head[2].startswith("# ")
    assert "TBD" not in "".join(head[:6])
    cfg = compose(f"experiment={name}")
    if "content" in cfg.model.loss.get("terms", {}):
        cfg.model.loss.terms.content.weights = "random"  # a test fetches nothing
    module = instantiate(cfg.model, _convert_="all")
    configured = module.configure_optimizers()
    groups = [
        group
        for one in (configured if isinstance(configured, list) else [configured])
        for group in one["optimizer"].param_groups
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    of_one_size = OmegaConf.select(cfg, "model.discriminator._target_", default="").endswith("SRGANDiscriminator")
    patch_size = cfg.data.patch_size if of_one_size else 16
    batch = {
        "lr": torch.rand(1, 3, patch_size, patch_size),
        "hr": torch.rand(1, 3, patch_size * cfg.scale, patch_size * cfg.scale),
    }
    assert module.train().loss_of(batch).isfinite()


@pytest.mark.parametrize("name", ["bsds", "t91_bsds"])
def test_woman_of_set5_is_not_trained_on(name, data_root):
    assert (data_root / "BSDS500" / "train" / "302003.jpg").is_file()
    files = [pair.hr for pair in instantiate(compose(f"data={name}", f"data_root={data_root}").data.train)]
    assert len(files) == {"bsds": 399, "t91_bsds": 490}[name]
    assert not [file for file in files if file.stem == "302003"]


def test_no_data_set_trains_on_a_benchmark():
    for path in (CONF / "data").glob("*.yaml"):
        text = "".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        assert "benchmark" not in text
        assert "BSDS500/val" not in text


def test_demo_validates_on_other_photos_than_it_trains_on():
    data = compose("data=demo").data
    assert not set(data.train.names) & set(data.val.names)
    motorcycles = [name for name in [*data.train.names, *data.val.names] if name.startswith("motorcycle")]
    assert len(motorcycles) == len([name for name in data.train.names if name.startswith("motorcycle")]) == 2


def test_every_config_file_starts_with_a_comment():
    bare = [path for path in CONF.rglob("*.yaml") if not path.read_text().startswith("#")]
    assert not [Path(path).relative_to(CONF) for path in bare]
