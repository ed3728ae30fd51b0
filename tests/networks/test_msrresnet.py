import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sr_lightning.networks import MSRResNet


def basicsr_forward(weights, lr, num_blocks, steps):
    """Plain operations in the order of BasicSR's forward pass."""

    def conv(x, key):
        return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1)

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    x = leaky(conv(lr, "head"))
    for i in range(num_blocks):
        x = x + conv(conv(x, f"blocks.{i}.conv1").clamp(min=0), f"blocks.{i}.conv2")
    for i, step in enumerate(steps):
        x = leaky(F.pixel_shuffle(conv(x, f"upsampler.{3 * i}"), step))
    x = conv(leaky(conv(x, "refine")), "tail")
    height, width = x.shape[-2:]
    planes = [Image.fromarray(plane.numpy()) for plane in lr.flatten(0, 1)]
    skip = [np.array(p.resize((width, height), Image.Resampling.BILINEAR)) for p in planes]
    return x + torch.from_numpy(np.stack(skip)).view_as(x)


@pytest.mark.parametrize(("scale", "steps"), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_output_matches_basicsrs_network(scale, steps):
    network = MSRResNet(scale=scale, num_features=8, num_blocks=3)
    weights = {key: value.add_(0.1 * torch.randn_like(value)) for key, value in network.state_dict().items()}
    lr = torch.rand(2, 3, 6, 7)
    torch.testing.assert_close(network(lr), basicsr_forward(weights, lr, 3, steps), rtol=1e-4, atol=1e-5)


def test_initial_weights_are_a_tenth_of_hes_and_biases_zero():
    torch.manual_seed(0)
    network = MSRResNet(scale=4, num_blocks=2)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.shape[1] == 64 and parameter.shape[0] >= 64:
            assert parameter.std().item() == pytest.approx(0.1 * (2 / (64 * 9)) ** 0.5, rel=0.03)


def test_an_unsupported_scale_is_refused():
    with pytest.raises(ValueError, match="scale=5"):
        MSRResNet(scale=5)
