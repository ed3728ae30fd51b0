"""Networks that this project lacks run in spandrel's form, if spandrel is installed; otherwise a sentence says so."""

import importlib

import numpy as np
import pytest
import torch

from sr_lightning import load
from sr_lightning.checkpoints import spandrel_networks
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.errors import InputError
from sr_lightning.evaluation.evaluate import requested_models
from sr_lightning.export import GRAPHS, export

UNKNOWN = {"features.0.weight": torch.zeros(4, 3, 3, 3), "classifier.bias": torch.zeros(10)}


@pytest.fixture
def omnisr(spandrel, tmp_path):
    """A file of a small OmniSR with random weights; and spandrel's form of it."""
    torch.manual_seed(0)
    network = importlib.import_module("spandrel.architectures.OmniSR").OmniSR(num_feat=16, res_num=1, up_scale=2)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "x.pth")
    return tmp_path / "x.pth", spandrel.ModelLoader().load_from_state_dict(network.state_dict())


@pytest.mark.parametrize("size", [(16, 24), (19, 33), (3, 70)])
def test_network_computes_the_same_as_in_spandrel(omnisr, size):
    path, theirs = omnisr
    trained = load_any(path)
    lr = torch.rand(1, 3, *size)
    with torch.inference_mode():
        sr = trained.network(lr)
        if min(size) >= 16:  # spandrel cannot reflect more pixels than the image has
            torch.testing.assert_close(sr.clamp(0, 1), theirs(lr), rtol=0, atol=1e-6)
    assert sr.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert (trained.name, trained.step) == ("x", None)


@pytest.mark.parametrize("prefix", ["model.", "net_g.", "module.", "sr."])
def test_a_network_under_a_prefix_is_found(omnisr, prefix):
    path, _ = omnisr
    state = torch.load(path, weights_only=True)["params_ema"]
    torch.save({prefix + key: value for key, value in state.items()}, path)
    assert type(load_any(path).network).__name__ == "OmniSR"


@pytest.mark.parametrize("prefix", ["", "net_g."])
def test_a_network_whose_own_names_begin_as_prefixes_do_is_found(spandrel, tmp_path, prefix):
    assert spandrel
    esrgan_plus = importlib.import_module("spandrel.architectures.ESRGAN").ESRGAN(
        num_filters=8, num_blocks=1, plus=True
    )
    state = esrgan_plus.state_dict()
    assert all(key.startswith("model.") for key in state)
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "x.pth")
    found = load_any(tmp_path / "x.pth").network
    assert type(found).__name__ == "ESRGAN" and torch.equal(
        found.state_dict()["model.0.weight"], state["model.0.weight"]
    )


def test_architecture_is_shown_and_the_licence_left_to_the_reader(omnisr, caplog):
    path, _ = omnisr
    upscaler = load(path)
    (message,) = caplog.messages
    assert message == f"{path} holds OmniSR x2, which spandrel reads: look up its licence at its source"
    assert "x x2: OmniSR on RGB" in repr(upscaler) and upscaler.sees_whole_image
    assert upscaler.upscale(np.zeros((21, 30, 3), np.uint8)).shape == (42, 60, 3)


def test_network_is_scored_at_its_own_scale(omnisr):
    path, _ = omnisr
    (model,) = requested_models([path], scale=2)
    assert (model.name, model.network.scale) == ("x", 2)
    with pytest.raises(InputError, match=r"x\.pth holds OmniSR with scale=2, not 3: leave it out"):
        requested_models([path], scale=3)


@pytest.mark.parametrize(("to", "layout"), [("safetensors", "ours"), ("torch", "published")])
def test_weights_are_exported_under_their_names_and_graphs_are_refused(omnisr, tmp_path, to, layout):
    path, _ = omnisr
    for graph in GRAPHS:
        with pytest.raises(InputError, match=f"--to {graph}: OmniSR cannot be converted"):
            export(path, graph)
    written = export(path, to, tmp_path / ("a.pth" if to == "torch" else "a.safetensors"), layout).path
    state, expected = load_any(written).network.state_dict(), torch.load(path, weights_only=True)["params_ema"]
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("spandrel", r"Spandrel knows more networks: pip install spandrel$"),
        ("torchvision", r"needs a working torchvision: pip install torchvision \(No module named 'torchvision'\)$"),
    ],
)
def test_missing_package_is_named_in_the_same_line(tmp_path, monkeypatch, missing, message):
    def fail(name):
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(spandrel_networks, "find_spec", lambda name: None if name == missing else True)
    monkeypatch.setattr(spandrel_networks.importlib, "import_module", fail)
    torch.save(UNKNOWN, tmp_path / "x.pth")
    with pytest.raises(InputError, match=f"holds weights of no network that this project has.*{message}") as error:
        load_any(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


def test_weights_that_spandrel_does_not_know_or_cannot_use_are_errors_of_one_line(omnisr, tmp_path):
    path, _ = omnisr
    torch.save(UNKNOWN, tmp_path / "y.pth")
    with pytest.raises(InputError, match=r"no network that this project has.*Spandrel does not know them either$"):
        load_any(tmp_path / "y.pth")
    state = torch.load(path, weights_only=True)["params_ema"]
    state["input.weight"] = torch.zeros(16, 3, 5, 5)
    torch.save(state, tmp_path / "z.pth")
    with pytest.raises(InputError, match=r"no network that this project has.*Spandrel cannot use them: ") as error:
        load_any(tmp_path / "z.pth")
    assert "\n" not in str(error.value)


def test_network_that_does_not_upscale_is_refused_by_name(spandrel, tmp_path):
    network = importlib.import_module("spandrel.architectures.NAFNet").NAFNet(
        width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]
    )
    torch.save(network.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth holds NAFNet, which does not upscale RGB or luma images"):
        load_any(tmp_path / "x.pth")
