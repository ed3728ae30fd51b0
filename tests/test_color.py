from fractions import Fraction

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr

from sr_lightning.color import quantize, rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb
from sr_lightning.errors import InputError

# rgb2ycbcr of MATLAB's Image Processing Toolbox on doubles, times 255
MATLAB = {
    (0, 0, 0): (16, 128, 128),
    (1, 1, 1): (235, 128, 128),
    (1, 0, 0): (81.481, 90.203, 240),
    (0, 1, 0): (144.553, 53.797, 34.214),
    (0, 0, 1): (40.966, 240, 109.786),
    (1, 1, 0): (210.034, 16, 146.214),
}


def photo(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("rgb", "ycbcr"), MATLAB.items())
def test_the_corners_of_the_rgb_cube_match_matlab(rgb, ycbcr):
    pixel = torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)
    assert (255 * rgb_to_ycbcr(pixel)).flatten().tolist() == pytest.approx(ycbcr, abs=1e-10)
    assert 255 * rgb_to_y(pixel).item() == pytest.approx(ycbcr[0], abs=1e-10)


def test_other_colours_match_scikit_image():
    image = photo(3, 20, 30)
    expected = torch.from_numpy(rgb2ycbcr(image.numpy(), channel_axis=0)) / 255
    torch.testing.assert_close(rgb_to_ycbcr(image), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(rgb_to_y(image), expected[:1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.float16, 5e-3)])
def test_conversion_to_ycbcr_and_back_restores_the_image(dtype, error):
    image = photo(2, 3, 16, 16, dtype=dtype)
    result = ycbcr_to_rgb(rgb_to_ycbcr(image))
    assert result.dtype == dtype
    torch.testing.assert_close(result, image, rtol=0, atol=error)


def test_luma_in_float32_is_within_a_thousandth_of_a_grey_level():
    image = photo(3, 100, 100)
    assert (rgb_to_y(image.float()).double() - rgb_to_y(image)).abs().max() < 0.001 / 255


@pytest.mark.parametrize("lead", [(), (2,), (2, 5)])
def test_any_leading_dimensions_work(lead):
    image = photo(*lead, 3, 4, 6)
    flat = image.reshape(-1, 3, 4, 6)
    for function, channels in ((rgb_to_y, 1), (rgb_to_ycbcr, 3), (ycbcr_to_rgb, 3)):
        result = function(image)
        assert result.shape == (*lead, channels, 4, 6)
        assert torch.equal(result.reshape(-1, channels, 4, 6)[-1], function(flat[-1]))


def test_the_memory_format_does_not_change_the_result():
    image = photo(2, 3, 8, 9, dtype=torch.float32)
    for function in (rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb, quantize):
        assert torch.equal(function(image.contiguous(memory_format=torch.channels_last)), function(image))


def test_the_gradient_of_luma_equals_its_weights():
    image = photo(1, 3, 2, 2).requires_grad_()
    rgb_to_y(image).sum().backward()
    expected = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
    torch.testing.assert_close(image.grad, expected.view(3, 1, 1).expand(1, 3, 2, 2))


def test_the_input_is_not_modified():
    image = photo(3, 5, 5) * 2 - 0.5
    copy = image.clone()
    for function in (rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb, quantize):
        function(image)
    assert torch.equal(image, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_quantize_keeps_every_8_bit_level(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    for image in (levels.to(dtype).mul_(1 / 255), levels.to(dtype) / 255):
        assert torch.equal((quantize(image) * 255).round().to(torch.uint8), levels)
        assert torch.equal(quantize(quantize(image)), quantize(image))
    # computed like loaded images, so that a perfect prediction is identical to HR
    assert torch.equal(quantize(levels.to(dtype).mul_(1 / 255)), levels.to(dtype).mul_(1 / 255))


def test_quantize_rounds_to_the_nearest_level():
    image = photo(1000)
    levels = (quantize(image) * 255).round().int().tolist()
    assert levels == [int(Fraction(value) * 255 + Fraction(1, 2)) for value in image.tolist()]


def test_quantize_rounds_half_up_and_clamps_and_keeps_nan():
    # 0.5 = 127.5/255 is the only tie in [0, 1] that floating point represents exactly
    image = torch.tensor([0.5, np.nextafter(0.5, 0), -0.2, 1.3, float("inf"), float("nan")], dtype=torch.float64)
    levels = (quantize(image) * 255).tolist()
    assert levels[:5] == pytest.approx([128, 127, 0, 255, 255])
    assert np.isnan(levels[5])


def test_integer_images_wrong_shapes_and_bfloat16_are_refused():
    byte = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for function in (rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb, quantize):
        with pytest.raises(InputError, match=r"torch\.uint8: divide 8-bit values by 255"):
            function(byte)
    for function in (rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb):
        with pytest.raises(InputError, match=r"expected three colour planes.*got \(2, 1, 4, 4\)"):
            function(torch.zeros(2, 1, 4, 4))
    with pytest.raises(InputError, match="bfloat16 cannot represent 8-bit levels"):
        quantize(torch.zeros(3, 4, 4, dtype=torch.bfloat16))
