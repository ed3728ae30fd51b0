import pytest
import torch
from torch.nn import functional as F

from sr_lightning.networks import VDSR, Bicubic


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_the_upscaled_image_plus_the_convolutions_residual(scale, bias):
    network = VDSR(scale=scale, num_features=4, bias=bias)
    lr = torch.rand(1, 1, 5, 6)
    x = enlarged = Bicubic(scale=scale)(lr)
    for i in range(20):
        conv = network.convs[i]
        x = F.conv2d(x if i == 0 else x.relu(), conv.weight, conv.bias, padding=1)
        assert (conv.bias is not None) == bias
    torch.testing.assert_close(network(lr), enlarged + x)


def test_the_weights_fit_every_scale():
    weights = VDSR(scale=2, num_features=4).state_dict()
    assert VDSR(scale=3, num_features=4).load_state_dict(weights)
    assert set(weights) == {f"convs.{i}.{part}" for i in range(20) for part in ("weight", "bias")}


def test_initial_weights_have_hes_variance_and_biases_are_zero():
    torch.manual_seed(0)
    network = VDSR(scale=2)
    for conv in network.convs[1:-1]:
        assert conv.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert network.convs[0].weight.var().item() == pytest.approx(2 / 9, rel=0.3)
    assert not any(conv.bias.any() for conv in network.convs)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("num_layers", [2, 3, 7, 20])
def test_the_receptive_radius_is_exact_for_every_depth(scale, num_layers, measured_radius):
    network = VDSR(scale=scale, num_features=2, num_layers=num_layers)
    assert measured_radius(network, network.receptive_radius + 2) == network.receptive_radius


def test_fewer_than_two_layers_are_refused():
    with pytest.raises(ValueError, match="num_layers=1"):
        VDSR(scale=2, num_layers=1)
