import pytest
import torch
from torch import nn

from sr_lightning.networks import EDSR, EDSRBN


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_it_has_edsrs_parameters_and_two_more_per_feature_and_batch_normalisation(scale):
    with torch.device("meta"):
        plain, normalised = EDSR(scale=scale), EDSRBN(scale=scale)
    counts = [sum(p.numel() for p in network.parameters()) for network in (plain, normalised)]
    assert counts[1] - counts[0] == 16 * 2 * (2 * 64)


def test_each_convolution_of_a_block_has_its_own_running_statistics():
    torch.manual_seed(0)
    network = EDSRBN(scale=2, num_features=8, num_blocks=2, init_std=0.1)
    network.train()(torch.rand(4, 3, 9, 9))
    means = [m.running_mean for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(means) == 4
    assert all(not torch.allclose(a, b) for i, a in enumerate(means) for b in means[:i])


def test_x3_upscales_by_3():
    network = EDSRBN(scale=3, num_features=8, num_blocks=1, num_channels=1)
    assert network(torch.rand(2, 1, 5, 7)).shape == (2, 1, 15, 21)


def test_initial_weights_are_normal_and_biases_zero():
    torch.manual_seed(0)
    convs = [m for m in EDSRBN(scale=4, num_blocks=2, init_std=0.03).modules() if isinstance(m, nn.Conv2d)]
    weights = torch.cat([conv.weight.flatten() for conv in convs])
    assert weights.mean().item() == pytest.approx(0, abs=1e-3)
    assert weights.std().item() == pytest.approx(0.03, rel=0.01)
    assert not any(conv.bias.any() for conv in convs)


def test_an_invalid_scale_or_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="scale=6"):
        EDSRBN(scale=6)
    with pytest.raises(ValueError, match="num_channels=4"):
        EDSRBN(scale=2, num_channels=4)
