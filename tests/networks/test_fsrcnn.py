import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sr_lightning.networks import FSRCNN, Bicubic
from sr_lightning.networks.fsrcnn import _prelu, subpixel


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_number_of_parameters_is_the_papers(scale):
    network = FSRCNN(scale=scale)
    slopes = sum(m.num_parameters for m in network.modules() if isinstance(m, nn.PReLU))
    assert sum(p.numel() for p in network.parameters() if p.ndim == 4) == 12_464
    assert sum(p.numel() for p in network.parameters()) - slopes == 12_637
    assert slopes == 172


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 6)])
def test_convolution_and_pixel_shuffle_match_the_transposed_convolution(scale, size):
    deconv = nn.ConvTranspose2d(5, 1, 9, stride=scale, padding=4, output_padding=scale - 1).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    torch.testing.assert_close(subpixel(deconv)(x), deconv(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scale", "kernel"), [(2, 5), (3, 5), (4, 3)])
def test_for_inference_gives_the_same_output_without_a_transposed_convolution(scale, kernel):
    network = FSRCNN(scale=scale, global_skip=True)
    nn.init.normal_(network.enlarge.weight, std=0.01)
    nn.init.constant_(network.enlarge.bias, 0.1)
    fast = network.for_inference()
    lr = torch.rand(2, 1, 9, 14)
    torch.testing.assert_close(fast(lr), network(lr), rtol=1e-6, atol=1e-6)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in fast.modules())
    assert fast.enlarge[0].kernel_size == (kernel, kernel)
    assert isinstance(network.enlarge, nn.ConvTranspose2d)  # the network itself is not changed
    torch.testing.assert_close(fast.for_inference()(lr), fast(lr))
    assert (fast.scale, fast.num_channels, fast.receptive_radius) == (scale, 1, network.receptive_radius)


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("num_mappings", [1, 4])
def test_the_receptive_radius_is_exact_also_for_inference(scale, num_mappings, measured_radius):
    network = FSRCNN(scale=scale, num_features=4, num_shrunk=3, num_mappings=num_mappings)
    for variant in (network, network.for_inference()):
        assert measured_radius(variant, network.receptive_radius + 2) == network.receptive_radius


def test_with_global_skip_training_starts_from_bicubic():
    network, plain = FSRCNN(scale=3, global_skip=True), FSRCNN(scale=3)
    lr = torch.rand(1, 1, 8, 9)
    torch.testing.assert_close(network(lr), Bicubic(scale=3)(lr))
    network.load_state_dict(plain.state_dict())
    torch.testing.assert_close(network(lr) - plain(lr), Bicubic(scale=3)(lr))


def test_initial_weights_are_hes_and_narrow_for_the_last_layer():
    torch.manual_seed(0)
    network = FSRCNN(scale=2)
    for conv in network.convs:
        assert conv.weight.var().item() == pytest.approx(2 / 1.0625 / conv.weight[0].numel(), rel=0.15)
        assert not conv.bias.any()
    assert network.enlarge.weight.std().item() == pytest.approx(0.001, rel=0.05)


def test_the_papers_fast_network_has_the_right_widths():
    network = FSRCNN(scale=3, num_features=32, num_shrunk=5, num_mappings=1)
    assert [tuple(conv.weight.shape) for conv in network.convs] == [
        (32, 1, 5, 5),
        (5, 32, 1, 1),
        (5, 5, 3, 3),
        (32, 5, 1, 1),
    ]


@pytest.mark.parametrize("scale", [1, 10])
def test_a_scale_that_would_leave_gaps_is_refused(scale):
    with pytest.raises(ValueError, match=f"scale={scale}:"):
        FSRCNN(scale=scale)


def test_the_fast_prelu_matches_pytorch():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 6, 5).bfloat16().to(memory_format=torch.channels_last)
    x, same_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    slopes, same_slopes = (torch.linspace(-1, 2, 12).bfloat16().requires_grad_() for _ in range(2))
    result, expected = _prelu(x, slopes), F.prelu(same_x, same_slopes)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for output in (result, expected):
        output.square().sum().backward()
    assert torch.equal(x.grad, same_x.grad)
    torch.testing.assert_close(slopes.grad, same_slopes.grad, rtol=0.02, atol=0.02)
