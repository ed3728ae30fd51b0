import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sr_lightning.networks import WDSR, Bicubic

TYPE_A = {"num_features": 8, "num_blocks": 3, "expansion": 4}
TYPE_B = {"num_features": 8, "num_blocks": 3, "expansion": 6, "low_rank": 0.8}


def count(network):
    return sum(p.numel() for p in network.parameters())


def perturbed(**options):
    """A network with perturbed weights, so that norms and biases matter."""
    torch.manual_seed(0)
    network = WDSR(**options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5).add_(0.01 * torch.randn_like(parameter))
    return network


def authors_forward(weights, lr, scale, num_blocks, residual_scale):
    """Run WDSR like the authors, from g and v and on images in 0..255; each branch is shuffled, then both are added."""

    def conv(x, key):
        g, v = (weights[f"{key}.parametrizations.weight.original{i}"] for i in (0, 1))
        weight = g * v / v.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return F.conv2d(x, weight, weights[f"{key}.bias"], padding=v.shape[-1] // 2)

    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    lr = (lr - mean) / 127.5
    x = conv(lr, "head")
    for i in range(num_blocks):
        y = F.relu(conv(x, f"blocks.{i}.expand"))
        if f"blocks.{i}.reduce.bias" in weights:
            y = conv(y, f"blocks.{i}.reduce")
        x = x + residual_scale * conv(y, f"blocks.{i}.conv")
    branches = conv(x, "tail"), conv(lr, "shortcut")
    return sum(F.pixel_shuffle(branch, scale) for branch in branches) * 127.5 + mean


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("block", [TYPE_A, TYPE_B], ids=["A", "B"])
def test_output_matches_the_authors_network_on_images_in_0_to_255(scale, block):
    network = perturbed(scale=scale, residual_scale=0.5, **block)
    lr = torch.rand(1, 3, 6, 7)
    expected = authors_forward(network.state_dict(), 255 * lr, scale, 3, 0.5)
    torch.testing.assert_close(255 * network(lr), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("options", [TYPE_A, TYPE_B, TYPE_A | {"weight_norm": False}], ids=["A", "B", "plain"])
def test_folding_gives_plain_convolutions_with_the_same_output(options):
    network = perturbed(scale=3, **options).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = network.for_inference()
    lr = torch.rand(1, 3, 9, 8)
    torch.testing.assert_close(folded(lr), network(lr), rtol=0, atol=1e-6)
    assert not any(parametrize.is_parametrized(module) for module in folded.modules())
    assert {key.rsplit(".")[-1] for key in folded.state_dict()} == {"weight", "bias"}
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)  # the network itself is not changed
    folded.tail.bias.data += 1
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert folded.for_inference().state_dict().keys() == folded.state_dict().keys()


@pytest.mark.parametrize(("scale", "published"), [(2, 1_187_484), (3, 1_192_959), (4, 1_200_624)])
def test_without_weight_normalisation_there_are_no_norm_parameters(scale, published):
    with torch.device("meta"):
        assert count(WDSR(scale=scale, weight_norm=False)) == published
        assert count(WDSR(scale=scale).for_inference()) == published


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("block", [TYPE_A, TYPE_B], ids=["A", "B"])
def test_initial_filters_have_the_norms_of_the_authors_code(block, weight_norm):
    network = WDSR(scale=2, weight_norm=weight_norm, **block)
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    expected = {"expand": 2, "conv": 1 / 3**0.5}
    assert len(convs) == 3 + 3 * (2 if block is TYPE_A else 3)
    for name, conv in convs.items():
        norms = conv.weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, expected.get(name.rsplit(".")[-1], 1)))
        assert not conv.bias.any()


def test_type_b_blocks_expand_6_times_and_reduce_to_four_fifths():
    block = WDSR(scale=2, num_features=32, num_blocks=1, expansion=6, low_rank=0.8).blocks[0]
    shapes = [tuple(conv.weight.shape) for conv in (block.expand, block.reduce, block.conv)]
    assert shapes == [(192, 32, 1, 1), (25, 192, 1, 1), (32, 25, 3, 3)]


@pytest.mark.parametrize("weight_norm", [True, False])
def test_with_global_skip_training_starts_from_bicubic(weight_norm):
    options = TYPE_B | {"scale": 3, "num_channels": 1, "weight_norm": weight_norm}
    network, plain = WDSR(global_skip=True, **options), WDSR(**options)
    lr = torch.rand(1, 1, 8, 9)
    torch.testing.assert_close(network(lr), Bicubic(scale=3)(lr))
    network.load_state_dict(plain.state_dict())
    torch.testing.assert_close(network(lr) - plain(lr), Bicubic(scale=3)(lr) - plain.mean)


def test_invalid_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match="scale=1"):
        WDSR(scale=1)
    with pytest.raises(ValueError, match="num_channels=2"):
        WDSR(scale=2, num_channels=2)
    with pytest.raises(ValueError, match=r"num_features=4, expansion=4, low_rank=0\.2"):
        WDSR(scale=2, num_features=4, low_rank=0.2)
    with pytest.raises(ValueError, match=r"expansion=0\.1"):
        WDSR(scale=2, num_features=4, expansion=0.1)
