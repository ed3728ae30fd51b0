import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks import PatchDiscriminator, SRGANDiscriminator, UNetDiscriminator

SMALL = {
    "srgan": lambda **options: SRGANDiscriminator(crop_size=32, num_features=8, num_hidden=16, **options),
    "u-net": lambda **options: UNetDiscriminator(num_features=8, **options),
    "patch": lambda **options: PatchDiscriminator(num_features=8, num_layers=2, **options),
}
EVERY = pytest.mark.parametrize("kind", SMALL)
EITHER_NORM = pytest.mark.parametrize("spectral_norm", [False, True])


def images(num_channels=3, size=32):
    return torch.rand(4, num_channels, size, size, generator=torch.Generator().manual_seed(1))


def perturbed(kind, **options):
    """A discriminator in evaluation mode with perturbed weights and statistics, so that all of them matter."""
    torch.manual_seed(0)
    network = SMALL[kind](**options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _ in range(3):
            network.train()(images(network.num_channels))
    return network.eval()


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_number_of_parameters_is_the_published_one():
    with torch.device("meta"):
        assert count(SRGANDiscriminator(crop_size=96)) == 23_565_505
    # CycleGAN's, without affine normalisation: 2.765 M according to its authors' code
    assert count(PatchDiscriminator(spectral_norm=True)) == 2_764_737
    with torch.device("meta"):
        assert count(UNetDiscriminator()) == 4_376_897
    # without the three biases before batch normalisation, with its weights and biases
    assert count(PatchDiscriminator()) == 2_764_737 + (128 + 256 + 512)


@pytest.mark.parametrize(("crop_size", "side"), [(17, 2), (24, 2), (32, 2), (33, 3), (96, 6), (128, 8)])
def test_the_dense_layer_of_srgan_fits_every_crop_size(crop_size, side):
    network = SRGANDiscriminator(crop_size=crop_size, num_features=4, num_hidden=8)
    assert network(images(size=crop_size)).shape == (4, 1)
    convs = sum(9 * a * b + b for a, b in zip([3, 4, 4, 8, 8, 16, 16, 32], [4, 4, 8, 8, 16, 16, 32, 32], strict=True))
    norms = 2 * (4 + 8 + 8 + 16 + 16 + 32 + 32)
    assert count(network) == convs + norms + (32 * side * side + 1) * 8 + 9


def plain(weights, x, strides):
    """Apply convolutions, batch normalisation (not after the first) and leaky ReLUs, given a state dict and strides."""
    index = 0
    for i, stride in enumerate(strides):
        x = F.conv2d(x, weights[f"layers.{index}.weight"], weights.get(f"layers.{index}.bias"), stride, padding=1)
        if i > 0:
            index += 1
            mean, var, weight, bias = (
                weights[f"layers.{index}.{part}"].view(1, -1, 1, 1)
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        x = torch.where(x > 0, x, 0.2 * x)
        index += 2
    return x, index


def test_srgans_discriminator_matches_the_paper_without_its_sigmoid():
    network = perturbed("srgan")
    weights = network.state_dict()
    x, index = plain(weights, 2 * images() - 1, [1, 2] * 4)
    x = x.reshape(4, -1) @ weights[f"layers.{index + 1}.weight"].T + weights[f"layers.{index + 1}.bias"]
    x = torch.where(x > 0, x, 0.2 * x) @ weights[f"layers.{index + 3}.weight"].T + weights[f"layers.{index + 3}.bias"]
    torch.testing.assert_close(network(images()), x, rtol=1e-4, atol=1e-5)
    assert network(images()).std() > 1e-3


def test_the_patch_discriminator_matches_the_paper_without_its_sigmoid():
    network = perturbed("patch")
    weights = network.state_dict()
    x, index = plain(weights, 2 * images() - 1, [2, 2, 1])
    x = F.conv2d(x, weights[f"layers.{index}.weight"], weights[f"layers.{index}.bias"], padding=1)
    torch.testing.assert_close(network(images()), x, rtol=1e-4, atol=1e-5)
    assert network(images()).shape == (4, 1, 6, 6)


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_depends_on_a_patch_of_the_papers_size(num_layers, patch):
    network = PatchDiscriminator(num_features=1, num_layers=num_layers).eval()
    for parameter in network.parameters():  # positive weights: nothing cancels
        parameter.data.abs_()
    image = torch.ones(1, 3, 2 * patch, 2 * patch, requires_grad=True)
    logits = network(image)
    logits[..., logits.shape[-2] // 2, logits.shape[-1] // 2].sum().backward()
    reached = image.grad[0].sum(0).nonzero()
    assert (reached.amax(0) - reached.amin(0) + 1).tolist() == [patch, patch]
    assert network.receptive_field == patch


def test_the_patch_discriminators_initial_weights_are_those_of_the_paper():
    torch.manual_seed(0)
    for module in PatchDiscriminator().modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.002


@EVERY
@EITHER_NORM
@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_gradient_reaches_every_parameter_and_the_image_also_after_a_copy(kind, spectral_norm, num_channels):
    network = perturbed(kind, spectral_norm=spectral_norm, num_channels=num_channels)
    x = images(num_channels).requires_grad_()
    logits = network(x)
    assert copy.deepcopy(network)(x).equal(logits)
    logits.square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert (x.grad != 0).float().mean() > 0.9


@EVERY
def test_spectral_norm_bounds_every_layer_and_replaces_batch_normalisation(kind):
    network = SMALL[kind](spectral_norm=True)
    with torch.no_grad():
        for _ in range(60):  # each is one step of the power method
            network(images())
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    layers = layers[1:-1] if kind == "u-net" else layers
    largest = [np.linalg.svd(layer.eval().weight.detach().flatten(1).numpy(), compute_uv=False)[0] for layer in layers]
    assert largest == pytest.approx([1] * len(layers), rel=0.02)
    assert len(layers) == {"srgan": 10, "u-net": 8, "patch": 4}[kind]
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@EVERY
@EITHER_NORM
def test_bfloat16_is_within_three_percent_of_the_logits_range(kind, spectral_norm):
    network = perturbed(kind, spectral_norm=spectral_norm)
    x = torch.cat([images(), images() ** 4])
    with torch.no_grad():
        exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x)
        rounded.mean().backward()
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


@EVERY
@EITHER_NORM
def test_the_memory_format_does_not_change_the_logits(kind, spectral_norm):
    network = perturbed(kind, spectral_norm=spectral_norm)
    expected = network(images())
    network.to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


@EVERY
@EITHER_NORM
def test_a_loaded_discriminator_gives_the_same_logits(kind, spectral_norm):
    network = perturbed(kind, spectral_norm=spectral_norm)
    other = SMALL[kind](spectral_norm=spectral_norm)
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    assert torch.equal(other.eval()(images()), network(images()))


@EVERY
@EITHER_NORM
@pytest.mark.slow
def test_it_learns_to_distinguish_blurred_from_sharp_images(kind, spectral_norm):
    torch.manual_seed(0)
    network = SMALL[kind](spectral_norm=spectral_norm)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(40):
        sharp = torch.rand(8, 3, 32, 32)
        blurred = F.avg_pool2d(F.pad(sharp, [1] * 4, mode="reflect"), 3, stride=1)
        on_sharp, on_blurred = network(sharp), network(blurred)
        optimizer.zero_grad()
        (F.softplus(-on_sharp).mean() + F.softplus(on_blurred).mean()).backward()
        optimizer.step()
    assert on_sharp.min() > on_blurred.max()


def test_invalid_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match=r"crop_size=16: .* give more than 16"):
        SRGANDiscriminator(crop_size=16)
    with pytest.raises(ValueError, match="num_channels=2"):
        SRGANDiscriminator(crop_size=96, num_channels=2)
    with pytest.raises(ValueError, match="num_channels=4"):
        PatchDiscriminator(num_channels=4)
    with pytest.raises(ValueError, match="num_layers=0"):
        PatchDiscriminator(num_layers=0)


def test_images_of_a_wrong_size_are_refused_with_both_sizes():
    with pytest.raises(
        ValueError, match=r"crop_size=32 was given images of 32x48: crop_size must be patch_size \* scal"
    ):
        SMALL["srgan"]()(torch.rand(1, 3, 32, 48))
    with pytest.raises(ValueError, match="was given images of 40x23 and needs 24x24: increase patch_size"):
        PatchDiscriminator(num_features=2)(torch.rand(1, 3, 40, 23))


@EVERY
def test_training_works_with_one_image_of_the_minimum_size(kind):
    least = {
        "srgan": lambda: (SRGANDiscriminator(crop_size=17, num_features=2), 17),
        "patch": lambda: (PatchDiscriminator(num_features=2), 24),
        "u-net": lambda: (UNetDiscriminator(num_features=2), 8),
    }
    network, size = least[kind]()
    assert network.train()(images(size=size)[:1]).isfinite().all()


def test_the_u_net_has_the_published_names_and_matches_the_paper():
    """The normalised weights are those that the published names describe: original / (u^T W v)."""
    torch.manual_seed(0)
    network = UNetDiscriminator(num_features=4)
    for _ in range(3):
        network.train()(images())
    weights = network.eval().state_dict()
    normalised = [f"conv{i}.weight_{kind}" for i in range(1, 9) for kind in ("orig", "u", "v")]
    plain_names = [f"conv{i}.{kind}" for i in (0, 9) for kind in ("weight", "bias")]
    assert sorted(weights) == sorted(normalised + plain_names)

    def conv(x, i, stride=1):
        weight = weights[f"conv{i}.weight_orig"]
        norm = weights[f"conv{i}.weight_u"] @ weight.flatten(1) @ weights[f"conv{i}.weight_v"]
        return F.leaky_relu(F.conv2d(x, weight / norm, stride=stride, padding=1), 0.2)

    x0 = F.leaky_relu(F.conv2d(images(), weights["conv0.weight"], weights["conv0.bias"], padding=1), 0.2)
    x1 = conv(x0, 1, 2)
    x2 = conv(x1, 2, 2)
    x = conv(x2, 3, 2)
    for i, skip in ((4, x2), (5, x1), (6, x0)):
        x = conv(F.interpolate(x, scale_factor=2, mode="bilinear"), i) + skip
    expected = F.conv2d(conv(conv(x, 7), 8), weights["conv9.weight"], weights["conv9.bias"], padding=1)
    torch.testing.assert_close(network(images()), expected)


def test_the_u_net_refuses_sizes_that_are_no_multiples_of_8():
    with pytest.raises(
        InputError, match=r"images of 32x36, which are no multiples of 8: choose another data\.patch_size"
    ):
        UNetDiscriminator(num_features=4)(torch.rand(1, 3, 32, 36))
    with pytest.raises(InputError, match="images of 60x60"):
        UNetDiscriminator(num_features=4, crop_size=60)
