import pytest
import torch
from torch.nn import functional as F

from sr_lightning.networks import RCAN


def on_8_bit_range(weights, lr, num_groups, num_blocks, steps):
    """Run RCAN like the authors, on images in 0..255."""

    def conv(x, key):
        weight = weights[f"{key}.weight"]
        return F.conv2d(x, weight, weights[f"{key}.bias"], padding=weight.shape[-1] // 2)

    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    x = head = conv(lr - mean, "head")
    for i in range(num_groups):
        group = x
        for j in range(num_blocks):
            block = f"groups.{i}.blocks.{j}"
            y = conv(F.relu(conv(x, f"{block}.conv1")), f"{block}.conv2")
            attention = conv(F.relu(conv(F.adaptive_avg_pool2d(y, 1), f"{block}.squeeze")), f"{block}.excite")
            x = x + y * attention.sigmoid()
        x = group + conv(x, f"groups.{i}.merge")
    x = head + conv(x, "merge")
    for i, step in enumerate(steps):
        x = F.pixel_shuffle(conv(x, f"upsampler.{2 * i}"), step)
    return conv(x, "tail") + mean


@pytest.mark.parametrize(("scale", "steps"), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_output_matches_the_authors_network_on_images_in_0_to_255(scale, steps):
    network = RCAN(scale=scale, num_features=8, num_groups=2, num_blocks=3, reduction=2)
    lr = torch.rand(1, 3, 6, 7)
    expected = on_8_bit_range(network.state_dict(), 255 * lr, 2, 3, steps)
    torch.testing.assert_close(255 * network(lr), expected, rtol=1e-5, atol=1e-3)


def test_invalid_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match="num_features=24 is not a multiple of reduction=16"):
        RCAN(scale=2, num_features=24)
    with pytest.raises(ValueError, match="scale=7"):
        RCAN(scale=7)
