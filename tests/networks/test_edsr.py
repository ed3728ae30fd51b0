import pytest
import torch
from torch.nn import functional as F

from sr_lightning.color import rgb_to_y
from sr_lightning.networks import EDSR, Bicubic


def on_8_bit_range(weights, lr, num_blocks, residual_scale, steps):
    """Run EDSR like the authors, on images in 0..255."""

    def conv(x, key):
        return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1)

    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    x = head = conv(lr - mean, "head")
    for i in range(num_blocks):
        x = x + residual_scale * conv(F.relu(conv(x, f"blocks.{i}.conv1")), f"blocks.{i}.conv2")
    x = conv(x, "merge") + head
    for i, step in enumerate(steps):
        x = F.pixel_shuffle(conv(x, f"upsampler.{2 * i}"), step)
    return conv(x, "tail") + mean


@pytest.mark.parametrize(("scale", "steps"), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
def test_output_matches_the_authors_network_on_images_in_0_to_255(scale, steps, residual_scale):
    network = EDSR(scale=scale, num_features=8, num_blocks=2, residual_scale=residual_scale)
    lr = torch.rand(1, 3, 6, 7)
    expected = on_8_bit_range(network.state_dict(), 255 * lr, 2, residual_scale, steps)
    torch.testing.assert_close(255 * network(lr), expected, rtol=1e-5, atol=1e-3)


def test_with_global_skip_training_starts_from_bicubic():
    network, plain = (EDSR(scale=3, num_features=8, num_blocks=1, global_skip=skip) for skip in (True, False))
    lr = torch.rand(1, 3, 8, 9)
    torch.testing.assert_close(network(lr), Bicubic(scale=3)(lr))
    network.load_state_dict(plain.state_dict())
    torch.testing.assert_close(network(lr) - plain(lr), Bicubic(scale=3)(lr) - plain.mean)


def test_the_mean_of_luma_networks_is_the_luma_of_the_rgb_mean():
    rgb, luma = EDSR(scale=2, num_blocks=1), EDSR(scale=2, num_blocks=1, num_channels=1)
    torch.testing.assert_close(luma.mean, rgb_to_y(rgb.mean), rtol=0, atol=5e-5)
    assert luma(torch.rand(1, 1, 4, 5)).shape == (1, 1, 8, 10)


def test_the_state_dict_has_only_weights_with_plain_names():
    weights = EDSR(scale=4, num_features=8, num_blocks=3, global_skip=True).state_dict()
    assert {key.split(".")[0] for key in weights} == {"head", "blocks", "merge", "upsampler", "tail"}
    assert {key.rsplit(".")[-1] for key in weights} == {"weight", "bias"}


@pytest.mark.parametrize("scale", [0, 1, 5, 6, 12])
def test_a_scale_other_than_3_and_powers_of_two_is_refused(scale):
    with pytest.raises(ValueError, match=f"scale={scale}: .*by 3, or in steps of 2"):
        EDSR(scale=scale)


def test_an_invalid_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="num_channels=4"):
        EDSR(scale=2, num_channels=4)
