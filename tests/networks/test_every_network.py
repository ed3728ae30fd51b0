"""Tests of every network in conf/model."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sr_lightning.data import bundled_photos
from sr_lightning.inference import to_channels
from sr_lightning.modules.sr import center_crop
from sr_lightning.networks import Bicubic
from sr_lightning.optim import Muon
from tests.helpers import CONF, compose, slow_except

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "base")
# Forms of networks whose options change the structure, beside those of conf/model
FORMS = [
    "plksr model.network.mixer_kernels=[3,3] model.network.attention=false",
    "realplksr model.network.layer_norm=true model.network.attention=false",
    "realplksr model.network.dysample=true",
]
CHOICES = [*NAMES, *FORMS]
SCALES = [2, 3, 4, 8]
# Sizes that make a network small enough for tests, applied if its config has them as numbers
SMALL = {"num_features": 16, "num_blocks": 2, "num_groups": 2, "num_layers": 6, "reduction": 4, "num_heads": 4}

FOLDED = 396_240  # numbers of the folded convolutions in published files of SPAN, which follow from the others
# Number of parameters at x2, x3, x4 and x8, published or counted in the reference implementations; None: no such scale
PARAMETERS = {
    "edsr_baseline": (1_369_859, 1_554_499, 1_517_571, 1_665_283),
    "edsr": (40_729_603, 43_680_003, 43_089_923, 45_450_243),
    "wdsr_a": (1_190_100, 1_195_605, 1_203_312, 1_256_160),
    "wdsr_a model.network.num_features=128 model.network.num_blocks=32": (
        37_808_180,
        37_826_645,
        37_852_496,
        38_029_760,
    ),
    "wdsr_b": (601_876, 607_381, 615_088, 667_936),
    "srresnet": (1_401_749, 1_586_389, 1_549_462, 1_697_175),
    "msrresnet": (1_369_859, 1_554_499, 1_517_571, 1_665_283),
    "rcan": (15_444_643, 15_629_283, 15_592_355, 15_740_067),
    "vdsr": (665_921,) * 4,
    "vdsr model.network.bias=false": (664_704,) * 4,
    "compact": (600_652, 609_307, 621_424, 704_512),
    "rrdbnet": (16_661_059, 16_661_059, 16_697_987, 16_734_915),
    "rrdbnet model.network.unshuffle=2": (16_703_171, None, 16_740_099, None),
    "plksr": (5_530_316, 5_538_971, 5_551_088, 5_634_176),
    "plksr model.network.mixer_kernels=[3,3]": (7_365_324, 7_373_979, 7_386_096, 7_469_184),
    "realplksr": (7_368_908, 7_377_563, 7_389_680, 7_472_768),
    "realplksr model.network.layer_norm=true": (7_368_908, 7_377_563, 7_389_680, 7_472_768),
    "safmn": (227_820, 232_695, 239_520, 286_320),
    "span": (2_221_140 - FOLDED, 2_227_635 - FOLDED, 2_236_728 - FOLDED, 2_299_080 - FOLDED),
    "swinir_light": (910_152, 918_267, 929_628, 1_007_532),
    "fsrcnn": (12_637 + 172,) * 4,  # 172 PReLU slopes
    "srcnn": (8_129,) * 4,
    "srcnn model.network.kernel_sizes=[9,5,5]": (57_281,) * 4,
    "espcn model.network.num_features=[64,32] model.network.kernel_sizes=[5,3,3]": (21_284, 22_729, 24_752, 38_624),
}


@cache
def config(choice: str, scale: int) -> DictConfig:
    """Compose `model=choice`; the choice may be followed by overrides."""
    name, *overrides = choice.split()
    cfg = compose(f"model={name}", *overrides)
    cfg.scale = scale  # which is all that conf/scale does
    return cfg.model


def small(name: str, scale: int, **sizes: int) -> nn.Module:
    """Build a small network of a config (see SMALL) in evaluation mode, with perturbed weights."""
    description, sizes = copy.deepcopy(config(name, scale).network), SMALL | sizes
    for key in sizes.keys() & description.keys():
        if isinstance(description[key], int):
            description[key] = sizes[key]
    torch.manual_seed(0)
    network = instantiate(description).eval()
    for parameter in network.parameters():  # some are initialised with zeros, which would hide other layers
        parameter.data += 0.02 * torch.randn_like(parameter)
    return network


def image(network: nn.Module, height: int = 12, width: int = 15) -> torch.Tensor:
    return torch.rand(2, network.num_channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("choice", PARAMETERS)
@pytest.mark.parametrize("scale", SCALES)
def test_the_number_of_parameters_is_the_published_one(choice, scale):
    published = PARAMETERS[choice][SCALES.index(scale)]
    if published is None:
        with pytest.raises(InstantiationException, match=f"scale={scale}"):
            instantiate(config(choice, scale).network)
        return
    with torch.device("meta"):
        network = instantiate(config(choice, scale).network)
    assert sum(p.numel() for p in network.parameters()) == published


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("scale", SCALES)
def test_any_image_is_upscaled_by_the_scale_to_float32(name, scale):
    network = small(name, scale)
    assert network.scale == scale
    assert network.num_channels in (1, 3)
    for height, width in [(1, 1), (5, 7)]:
        with torch.inference_mode():
            sr = network(image(network, height, width))
        assert sr.shape == (2, network.num_channels, height * scale, width * scale)
        assert sr.dtype == torch.float32


@pytest.mark.parametrize("name", CHOICES)
def test_the_state_dict_holds_only_parameters_and_running_statistics(name):
    network = small(name, 2)
    learned = {key for key, _ in network.named_parameters()}
    for key, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            learned |= {f"{key}.{buffer}" for buffer, _ in module.named_buffers()}
    assert network.state_dict().keys() == learned


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("scale", slow_except(SCALES, 3))
def test_the_gradient_reaches_every_parameter(name, scale):
    network = small(
        name, scale
    )  # in evaluation mode: in training mode batch normalisation cancels the biases before it
    if any(True for _ in network.parameters()):
        network(image(network)).square().sum().backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("scale", slow_except(SCALES, 3))
def test_bfloat16_is_within_two_percent_of_the_outputs_range(name, scale):
    network = small(name, scale)
    with torch.inference_mode():
        exact = network(image(network))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(image(network))
    assert (rounded - exact).abs().max() < 0.02 * (exact.max() - exact.min())


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("scale", slow_except(SCALES, 3))
def test_the_memory_format_does_not_change_the_output(name, scale):
    network = small(name, scale)
    with torch.inference_mode():
        contiguous = network(image(network))
        network.to(memory_format=torch.channels_last)
        channels_last = network(image(network).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, contiguous, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("scale", slow_except(SCALES, 3))
def test_images_of_a_batch_are_independent(name, scale):
    network = small(name, scale)
    lr = image(network)
    with torch.inference_mode():
        torch.testing.assert_close(network(lr)[1:], network(lr[1:]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("scale", slow_except(SCALES, 3))
def test_the_receptive_radius_is_exact(name, scale, measured_radius):
    network = small(name, scale)
    if network.receptive_radius is None:
        lr = image(network, 24, 24).requires_grad_()
        network(lr)[..., 0, 0].sum().backward()
        assert lr.grad[..., -8:, -8:].any()  # SAFMN: the largest of 8x8
    else:
        assert measured_radius(network, network.receptive_radius + 3) == network.receptive_radius


@pytest.mark.parametrize("name", slow_except(CHOICES, "bicubic", "espcn"))
def test_it_overfits_four_patches(name):
    network = small(name, 2).train()
    if not any(True for _ in network.parameters()):
        pytest.skip("nothing to train")
    (astronaut,) = bundled_photos("astronaut")
    photo = torch.from_numpy(np.array(Image.open(astronaut.hr))).permute(2, 0, 1) / 255
    places = [(80, 200), (100, 240), (300, 100), (400, 300)]
    hr = torch.stack([photo[:, top : top + 16, left : left + 16] for top, left in places])
    lr = F.interpolate(hr, scale_factor=0.5, mode="bicubic", antialias=True)
    lr, hr = to_channels(lr, network.num_channels), to_channels(hr, network.num_channels)
    optimizer = Muon(network.parameters(), lr=7e-3 if name == "rrdbnet" else 1.5e-2)  # its blocks begin near zero
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 130)
    for _ in range(130):
        sr = network(lr)
        bicubic, target = (center_crop(image, *sr.shape[-2:]) for image in (Bicubic(scale=2)(lr), hr))
        error, wanted = F.mse_loss(sr, target), 0.7 * F.mse_loss(bicubic, target)
        if error < wanted:
            return
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        scheduler.step()
    pytest.fail(f"the error is {error:.2e}, not below {wanted:.2e}")


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_can_be_replaced_by_its_target(name):
    for target in ("torch.optim.Adam", "sr_lightning.optim.Muon"):
        model = copy.deepcopy(config(name, 2))
        if "optimizer" not in model:
            pytest.skip("nothing to train")
        model.optimizer._target_ = target
        assert instantiate(model.optimizer)([nn.Parameter(torch.zeros(3, 3))]).param_groups[0]["lr"] > 0
