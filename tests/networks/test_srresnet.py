import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sr_lightning.networks import SRResNet


def plain_srresnet(weights, lr, num_blocks, steps):
    """Run the paper's generator in evaluation mode, with its output in [-1, 1]."""

    def conv(x, key):
        weight = weights[f"{key}.weight"]
        return F.conv2d(x, weight, weights[f"{key}.bias"], padding=weight.shape[-1] // 2)

    def norm(x, key):
        mean, var, weight, bias = (
            weights[f"{key}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(x, key):
        return x.clamp(min=0) + weights[f"{key}.weight"] * x.clamp(max=0)

    x = head = prelu(conv(lr, "head"), "activation")
    for i in range(num_blocks):
        y = prelu(norm(conv(x, f"blocks.{i}.conv1"), f"blocks.{i}.norm1"), f"blocks.{i}.activation")
        x = x + norm(conv(y, f"blocks.{i}.conv2"), f"blocks.{i}.norm2")
    x = head + norm(conv(x, "merge"), "norm")
    for i, step in enumerate(steps):
        x = prelu(F.pixel_shuffle(conv(x, f"upsampler.{3 * i}"), step), f"upsampler.{3 * i + 2}")
    return conv(x, "tail")


def perturbed(**options):
    """A network with perturbed weights and statistics, so that all of them matter."""
    torch.manual_seed(0)
    network = SRResNet(num_features=8, num_blocks=2, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
        network.train()(torch.rand(4, 3, 9, 9))
    return network.eval()


@pytest.mark.parametrize(("scale", "steps"), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_output_matches_the_papers_network_mapped_to_0_to_1(scale, steps):
    network = perturbed(scale=scale)
    lr = torch.rand(1, 3, 6, 7)
    expected = plain_srresnet(network.state_dict(), lr, 2, steps)
    torch.testing.assert_close(2 * network(lr) - 1, expected, rtol=1e-4, atol=1e-5)


def test_imagenet_normalisation_changes_only_the_input():
    network = perturbed(scale=2, lr_normalisation="imagenet")
    lr = torch.rand(1, 3, 6, 7)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = plain_srresnet(network.state_dict(), (lr - mean) / std, 2, [2])
    torch.testing.assert_close(2 * network(lr) - 1, expected, rtol=1e-4, atol=1e-5)


def test_tanh_limits_the_output_to_0_to_1():
    open_ended, closed = perturbed(scale=2), perturbed(scale=2, tanh=True)
    for network in (open_ended, closed):
        network.tail.weight.data *= 100
    lr = torch.rand(1, 3, 6, 7)
    torch.testing.assert_close(2 * closed(lr) - 1, (2 * open_ended(lr) - 1).tanh())
    assert open_ended(lr).max() > 1
    assert closed(lr).min() >= 0
    assert closed(lr).max() <= 1


def test_each_activation_has_one_slope_and_normalisations_are_not_shared():
    network = SRResNet(scale=4, num_blocks=5)
    assert [m.num_parameters for m in network.modules() if isinstance(m, nn.PReLU)] == [1] * (1 + 5 + 2)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 2 * 5 + 1


def test_invalid_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match="'caffe': choose unit or imagenet"):
        SRResNet(scale=4, lr_normalisation="caffe")
    with pytest.raises(ValueError, match="scale=5"):
        SRResNet(scale=5)
