"""The bicubic network compared with Pillow and a slow float64 oracle."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.export import Dim

from sr_lightning.errors import InputError
from sr_lightning.networks.bicubic import Bicubic
from tests.helpers import slow_except

SCALES = [2, 3, 4, 8]


def oracle(plane: np.ndarray, scale: int) -> np.ndarray:
    """Compute each output pixel from its 4x4 neighbours in float64, with clamped indices."""

    def keys(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def taps(output, size):
        centre = (output + 0.5) / scale - 0.5
        first = int(np.floor(centre)) - 1
        return [(min(max(i, 0), size - 1), keys(centre - i)) for i in range(first, first + 4)]

    height, width = plane.shape
    out = np.empty((height * scale, width * scale))
    for y in range(height * scale):
        for x in range(width * scale):
            out[y, x] = sum(a * b * plane[i, j] for i, a in taps(y, height) for j, b in taps(x, width))
    return out


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 2), (9, 11)])
@pytest.mark.parametrize("scale", slow_except(SCALES, 3))
def test_every_pixel_matches_the_oracle(scale, shape):
    lr = np.random.default_rng(scale).random((2, 3, *shape))
    sr = Bicubic(scale=scale)(torch.from_numpy(lr).float())
    assert sr.dtype == torch.float32
    assert sr.shape == (2, 3, shape[0] * scale, shape[1] * scale)
    for n in range(2):
        for c in range(3):
            np.testing.assert_allclose(sr[n, c].numpy(), oracle(lr[n, c], scale), rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_interior_matches_pillow(scale):
    lr = np.random.default_rng(scale).random((15, 21), dtype=np.float32)
    pillow = Image.fromarray(lr).resize((21 * scale, 15 * scale), Image.Resampling.BICUBIC)
    sr = Bicubic(scale=scale)(torch.from_numpy(lr)[None, None])[0, 0]
    interior = np.s_[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    np.testing.assert_allclose(sr[interior].numpy(), np.array(pillow)[interior], rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_a_flat_image_stays_flat(scale):
    sr = Bicubic(scale=scale)(torch.full((1, 1, 6, 5), 0.7))
    torch.testing.assert_close(sr, torch.full_like(sr, 0.7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_input_gives_the_same_image(channels):
    network, lr = Bicubic(scale=3), torch.rand(2, channels, 8, 10)
    sr = network(lr.to(memory_format=torch.channels_last))
    torch.testing.assert_close(sr, network(lr), rtol=0, atol=1e-6)


def test_autocast_changes_nothing():
    network, lr = Bicubic(scale=4), torch.rand(1, 3, 12, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sr = network(lr)
    assert sr.dtype == torch.float32
    assert torch.equal(sr, network(lr))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_input_is_computed_in_float32(dtype):
    lr = torch.rand(1, 3, 6, 7).to(dtype)
    network = torch.nn.Sequential(Bicubic(scale=3)).to(dtype)
    assert torch.equal(network(lr), Bicubic(scale=3)(lr.float()))


def test_the_state_dict_is_empty():
    network = Bicubic(scale=2)
    assert network.scale == 2
    assert not network.state_dict()
    assert not list(network.parameters())


def test_gradients_reach_the_input():
    lr = torch.rand(1, 1, 7, 8, requires_grad=True)
    Bicubic(scale=2)(lr).sum().backward()
    inner = lr.grad[..., 2:-2, 2:-2]  # each pixel contributes 4 in total to its outputs, away from the border
    torch.testing.assert_close(inner, torch.full_like(inner, 4.0))


@pytest.mark.slow
def test_it_can_be_exported_for_any_batch_and_size():
    network = Bicubic(scale=3)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(network, (torch.rand(2, 3, 8, 9),), dynamic_shapes=(sizes,)).run_decompositions()
    lr = torch.rand(5, 3, 11, 7)
    torch.testing.assert_close(program.module()(lr), network(lr), rtol=0, atol=1e-6)


def test_a_scale_below_two_is_refused():
    with pytest.raises(InputError, match="scale=1"):
        Bicubic(scale=1)
