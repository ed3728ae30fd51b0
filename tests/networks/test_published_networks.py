"""Networks with published weights compute the same as spandrel's, which reads the files of many projects."""

import pytest
import torch

from sr_lightning.checkpoints.interop import load_weights
from sr_lightning.networks import PLKSR, SAFMN, SPAN, Compact, RealPLKSR, RRDBNet, SwinIR

TINY = {"num_features": 16, "num_blocks": 1, "kernel_size": 5, "attention": False}
SMALL = {
    "compact": (Compact, {"num_features": 8, "num_blocks": 3}),
    "plksr": (PLKSR, {"num_features": 16, "num_blocks": 2, "kernel_size": 9}),
    "plksr without attention": (PLKSR, TINY),
    "plksr, tiny": (PLKSR, TINY | {"mixer_kernels": (3, 3)}),
    "plksr, inverted": (PLKSR, TINY | {"mixer_kernels": (1, 3)}),
    "realplksr": (RealPLKSR, {"num_features": 16, "num_blocks": 2, "kernel_size": 9}),
    "realplksr, small": (RealPLKSR, TINY),
    "realplksr, layer norm": (RealPLKSR, {"num_features": 16, "num_blocks": 2, "kernel_size": 5, "layer_norm": True}),
    "realplksr, dysample": (RealPLKSR, TINY | {"dysample": True}),
    "realplksr, both": (RealPLKSR, TINY | {"dysample": True, "layer_norm": True}),
    "rrdbnet": (RRDBNet, {"num_features": 32, "num_blocks": 2}),
    "rrdbnet, unshuffled": (RRDBNet, {"num_features": 32, "num_blocks": 1, "unshuffle": 2}),
    "safmn": (SAFMN, {"num_features": 16, "num_blocks": 2}),
    "span": (SPAN, {"num_features": 16}),
    "span, normalised": (SPAN, {"num_features": 16, "norm": True}),
    "swinir": (SwinIR, {"num_features": 12, "num_groups": 2, "num_blocks": 2, "num_heads": 6}),
}
SCALES = {"rrdbnet": (2, 4), "rrdbnet, unshuffled": (2,)}
CASES = [(name, scale) for name in SMALL for scale in SCALES.get(name, (2, 3, 4))]


def perturbed(name: str, scale: int) -> torch.nn.Module:
    cls, options = SMALL[name]
    torch.manual_seed(0)
    network = cls(scale=scale, **options).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_spandrel_computes_the_same_with_the_same_weights(spandrel, name, scale):
    network = perturbed(name, scale)
    state = getattr(network, "published_state", network.state_dict)()
    theirs = spandrel.ModelLoader().load_from_state_dict({key: value.clone() for key, value in state.items()})
    assert theirs.scale == scale
    lr = torch.rand(1, 3, 24, 32)
    with torch.inference_mode():
        expected = theirs.model.eval()(lr.clone())
        torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-5 * expected.abs().max().clamp(min=1).item())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_spandrel_derives_the_same_places_for_dysample(spandrel, scale):
    network = RealPLKSR(scale=scale, **TINY, dysample=True)
    theirs = spandrel.ModelLoader().load_from_state_dict(network.published_state()).model
    torch.testing.assert_close(network.to_img.places, theirs.to_img._init_pos())


@pytest.mark.parametrize("name", ["span", "swinir", "compact", "realplksr, both"])
def test_published_files_are_loaded_with_all_that_they_hold(name, tmp_path):
    network = perturbed(name, 2)
    state = getattr(network, "published_state", network.state_dict)()
    torch.save({"params_ema": state}, tmp_path / "x.pth")
    cls, options = SMALL[name]
    other = cls(scale=2, **options).eval()
    load_weights(other, tmp_path / "x.pth")
    lr = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        assert torch.equal(other(lr), network(lr))
