import importlib.util
import re
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import sr_lightning
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.pretrained import card_of, default_for, included
from sr_lightning.upscale.command import main
from tests.helpers import ROOT, compose

NAMES = tuple(included())
spec = importlib.util.spec_from_file_location("make_weights", ROOT / ".ci" / "make_weights.py")
make_weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_weights)


def test_included_weights_are_those_of_the_recipes_within_three_megabytes():
    assert "luma_x2" in NAMES and make_weights.RECIPES.keys() >= set(NAMES)
    assert sum(path.stat().st_size for path in included().values()) <= 3e6


@pytest.mark.parametrize("name", NAMES)
def test_name_and_card_describe_the_network(name):
    card, trained = card_of(included()[name]), load_any(name)
    scale, channels = int(name[-1]), 3 if name.startswith("rgb") else 1
    assert (trained.network.scale, trained.network.num_channels) == (scale, channels)
    assert card["title"].startswith(f"{type(trained.network).__name__} x{scale}, ")
    assert card["recipe"] == f"python train.py {make_weights.RECIPES[name]}"
    assert re.fullmatch("[0-9a-f]{40}", card["commit"]) and card["licence"] == "MIT"
    assert all(scores["psnr"] > scores["bicubic"] + 1 for scores in card["scores"].values())


@pytest.mark.parametrize("name", NAMES)
def test_recipe_trains_on_no_test_image(name, data_root):
    cfg = compose(*make_weights.RECIPES[name].split())
    assert not any("val" in str(folder) for folder in cfg.data.train.hr) and cfg.data.train.exclude == ["302003"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_weights_reach_the_scores_on_their_card(name, data_root):
    card = card_of(included()[name])
    scores = sr_lightning.evaluate({"it": name}, "Set5", data_root=data_root, num_comparisons=0)
    bicubic, it = scores.means()
    assert it["protocol"] == card["protocol"]
    # another processor may round single pixels otherwise
    assert it["psnr_y"] == pytest.approx(card["scores"]["Set5"]["psnr"], abs=0.003)
    assert bicubic["psnr_y"] == pytest.approx(card["scores"]["Set5"]["bicubic"], abs=0.003)


@pytest.mark.parametrize("factor", [None, "1.5", "2", "2.01", "3", "4", "9"])
def test_default_is_the_smallest_scale_that_reaches_the_factor_in_one_pass(factor):
    scales = [int(name[-1]) for name in NAMES if name.startswith("luma")]
    fitting = [scale for scale in scales if scale >= Fraction(factor or 2)]
    assert default_for(factor and Fraction(factor)) == f"luma_x{min(fitting, default=max(scales))}"


def test_upscaler_needs_no_checkpoint_and_says_which_network_it_uses(tmp_path, caplog):
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), "--factor", "3", "-o", str(tmp_path / "b.png")]) == 0
    assert Image.open(tmp_path / "b.png").size == (18, 24)
    assert f"{default_for(Fraction(3))} comes with this program: +" in caplog.text and "noise of JPEG" in caplog.text


def test_file_has_priority_over_a_name_that_it_shares(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "luma_x2").write_bytes(trained.read_bytes())
    assert sr_lightning.load("luma_x2").name == "tiny"


def test_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(sr_lightning.errors.InputError, match=r"luma_x5 among .*luma_x2"):
        sr_lightning.load("luma_x5")


@pytest.mark.parametrize("path", [None, 3])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(sr_lightning.errors.InputError, match=f"^{path} is neither a path nor a name of weights$"):
        sr_lightning.load(path)
