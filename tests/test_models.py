"""python -m sr_lightning.models: the networks in numbers."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from sr_lightning import inference, network_costs
from sr_lightning.models import main, networks
from sr_lightning.network_costs import MultiplyAdds, build, count, lr_size, measure, measure_in_subprocess
from sr_lightning.utils.cuda_graphs import Replays
from tests.fake_graph import FakeGraph
from tests.helpers import CONF, ROOT, slow_except, use_times

# Multiply-adds for a 1280x720 output in units of 1e9, from the tables of CARN (arXiv 1803.08664, section 4.3), of its
# followers for EDSR and RCAN, and for SRCNN 9-1-5 its weights times the pixels
PUBLISHED = {
    ("edsr_baseline", 2): 316.3,
    ("edsr_baseline", 3): 160.2,
    ("edsr_baseline", 4): 114.0,
    ("edsr", 2): 9384.7,
    ("edsr", 4): 2894.5,
    ("srresnet", 4): 127.8,
    ("rcan", 2): 3529.7,
    ("vdsr", 2): 612.6,
    ("safmn", 2): 51.532,  # its authors' option files
    ("safmn", 4): 13.555,
    ("srcnn", 2): 8032 * 1280 * 720 / 1e9,
}


@pytest.mark.parametrize(("name", "scale"), slow_except(PUBLISHED, ("edsr_baseline", 3), ("vdsr", 2)))
def test_multiply_adds_equal_published_numbers(name, scale):
    counted = count(networks(scale)[name], *lr_size(scale)).multiply_adds / 1e9
    assert counted == pytest.approx(PUBLISHED[name, scale], rel=0.004)


@pytest.mark.parametrize("choice", ["espcn", "rrdbnet model.network.unshuffle=2", "swinir_light"])
def test_multiply_adds_of_an_image_follow_from_those_of_tiny_ones(choice):
    """SwinIR pads the sides to multiples of its windows, RRDBNet to pairs of pixels."""
    name = choice.split()[0]
    description = networks(2, [name])[name] | ({"unshuffle": 2} if "unshuffle" in choice else {})
    description |= {key: 1 for key in ("num_blocks", "num_groups") if key in description}
    with torch.no_grad(), MultiplyAdds() as counter:
        network = build(description)
        network(torch.zeros(1, network.num_channels, 27, 41))
    assert count(description, 27, 41).multiply_adds == counter.total


def test_convolution_is_counted_once_per_pixel_and_weight():
    espcn = {"_target_": "sr_lightning.networks.ESPCN", "scale": 2, "num_features": [7], "kernel_sizes": [5, 3]}
    numbers = count(espcn, 10, 12)
    assert numbers.multiply_adds == 10 * 12 * (7 * 25 + 4 * 7 * 9)
    assert numbers.parameters == 7 * 25 + 7 + 4 * 7 * 9 + 4
    assert numbers.receptive_field == 7


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_smallest_lr_of_a_720p_output_is_used(scale):
    height, width = lr_size(scale)
    assert 0 <= height * scale - 720 < scale
    assert 0 <= width * scale - 1280 < scale


def test_networks_of_recipes_are_counted_for_an_lr_of_a_given_size(capsys):
    main(["edsr_fast", "espcn", "--lr", "2000x1000", "--scale", "3"])
    title, _, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "x3, output 6000x3000, receptive field in LR pixels"
    counted = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines}
    assert list(counted) == ["espcn", "edsr_fast"]
    weights = 24 * 9 * (1 + 9 * 24 + 24 * 9 + 9)  # first, of the blocks, upsampler, last at high resolution
    assert float(counted["edsr_fast"].removesuffix(" G")) == pytest.approx(weights * 2e-3, rel=0.01)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["edsr_fats", "espcn"], "is named edsr_fats"),
        (["--lr", "256"], "--lr 256: give width and height"),
        (["--lr", "0x9"], "--lr 0x9: give"),
    ],
)
def test_unknown_names_and_sizes_are_errors(words, expected, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_every_model_with_a_network_has_a_line(capsys):
    main(["--scale", "8"])
    lines = capsys.readouterr().out.splitlines()
    names = {path.stem for path in (CONF / "model").glob("*.yaml")}
    shown = [line.split("|")[1].strip() for line in lines[3:]]
    assert {"edsr_baseline", "msrresnet", "bicubic"} <= set(shown) <= names - {"base"}
    assert len(shown) == len(set(shown))
    assert next(line for line in lines if "| rcan" in line).endswith("| whole image     |")
    assert "1,665,283" in next(line for line in lines if "| edsr_baseline" in line)
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.slow
def test_network_is_measured_unless_over_budget():
    edsr = {"_target_": "sr_lightning.networks.EDSR", "scale": 2, "num_features": 64, "num_blocks": 1}
    cost = measure_in_subprocess(edsr, 64, 96, budget=600)
    assert cost.milliseconds > 0
    features = 64 * (2 * 64) * (2 * 96) * 4 / 2**20  # MiB of one layer's output at high resolution
    assert features < cost.mebibytes < 100 * features
    assert measure(edsr, 64, 96, budget=0) is None


def test_a_network_that_is_fastest_as_a_graph_is_measured_as_one(monkeypatch):
    replays = []

    def record(program):
        replay = FakeGraph(program)
        return lambda: replays.append(replay) or replay()

    names = [f"{form}{graph}" for form in ("float32", "float32 by NNPACK", "bfloat16") for graph in ("", " as a graph")]
    use_times(monkeypatch, dict.fromkeys(names, 1.0) | {"float32 as a graph": 0.5})
    monkeypatch.setattr(inference, "records_graphs", lambda device: True)
    monkeypatch.setattr(network_costs, "Replays", partial(Replays, record=record))
    assert measure(networks(2, ["espcn"])["espcn"], 16, 20, budget=600, fastest=True).milliseconds > 0
    assert len(set(replays)) == 2 and len(replays) == 1 + 4  # a small image, then the one that is measured


def test_help_has_an_example_and_imports_no_torch():
    code = """
import runpy, sys
sys.argv = ["models", "--help"]
try:
    runpy.run_module("sr_lightning.models", run_name="__main__")
except SystemExit:
    assert not {"torch", "hydra"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sr-models --scale 4 --measure" in done.stdout
