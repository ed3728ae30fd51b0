import pytest
import torch
from torch import nn

from sr_lightning.networks import ESPCN, Bicubic

PAPER = {"num_features": (64, 32), "kernel_sizes": (5, 3, 3), "activation": "Tanh"}


@pytest.mark.parametrize(("scale", "count"), [(2, 21284), (3, 22729), (4, 24752), (8, 38624)])
def test_number_of_parameters_of_the_papers_network(scale, count):
    assert sum(p.numel() for p in ESPCN(scale=scale, **PAPER).parameters()) == count


@pytest.mark.parametrize(("scale", "count"), [(2, 58212), (3, 59657), (4, 61680)])
def test_number_of_parameters_of_the_wider_relu_variant(scale, count):
    assert sum(p.numel() for p in ESPCN(scale=scale).parameters()) == count


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("options", [{}, {"global_skip": True}, {"detail_gain": 10.0, **PAPER}])
def test_images_of_any_size_are_upscaled_by_the_scale(scale, options):
    lr = torch.rand(2, 1, 5, 7)
    assert ESPCN(scale=scale, **options)(lr).shape == (2, 1, 5 * scale, 7 * scale)


def test_global_skip_adds_the_bicubically_upscaled_input():
    network, plain = ESPCN(scale=3, global_skip=True), ESPCN(scale=3)
    lr = torch.rand(1, 1, 8, 9)
    torch.testing.assert_close(network(lr), Bicubic(scale=3)(lr))  # initially
    network.load_state_dict(plain.state_dict())
    torch.testing.assert_close(network(lr) - plain(lr), Bicubic(scale=3)(lr))


def test_orthogonal_weights_have_the_activations_gain_and_1_for_the_last_layer():
    network = ESPCN(scale=2)
    gains = [torch.linalg.svdvals(conv.weight.flatten(1)) for conv in network.convs]
    for values, gain in zip(gains, [2**0.5] * 3 + [1.0], strict=True):
        torch.testing.assert_close(values, torch.full_like(values, gain))
    assert not any(conv.bias.any() for conv in network.convs)


def test_detail_gain_makes_the_first_filters_ignore_brightness():
    network = ESPCN(scale=3, detail_gain=10.0, **PAPER)
    weight = network.convs[0].weight
    torch.testing.assert_close(weight.sum(dim=(1, 2, 3)), torch.zeros(64), atol=1e-4, rtol=0)
    assert weight.norm().item() > 40  # 64 orthogonal filters in 25 dimensions, gain 10: norm 50 less the means


def test_invalid_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match="'GELU'"):
        ESPCN(scale=2, activation="GELU")
    with pytest.raises(ValueError, match=r"kernel_sizes=\[5, 3\]"):
        ESPCN(scale=2, kernel_sizes=(5, 3))
    with pytest.raises(ValueError, match="orthogonal=true"):
        ESPCN(scale=2, orthogonal=False, detail_gain=10.0)


@pytest.mark.parametrize("global_skip", [False, True])
@pytest.mark.parametrize("kernel_sizes", [(5, 3, 3), (3, 1, 1), (1, 1, 1)])
def test_the_receptive_radius_is_exact_with_and_without_the_skip(kernel_sizes, global_skip, measured_radius):
    network = ESPCN(scale=3, num_features=(2, 2), kernel_sizes=kernel_sizes, global_skip=global_skip)
    nn.init.ones_(network.convs[-1].weight)  # initialised with zeros with global_skip
    assert measured_radius(network, network.receptive_radius + 3) == network.receptive_radius
