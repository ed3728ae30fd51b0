"""Bicubic compared with MATLAB's files, a slow oracle in exact fractions, and the SRCNN paper's numbers."""

from fractions import Fraction
from functools import cache
from math import floor, lcm

import numpy as np
import pytest
import torch
from PIL import Image

from sr_lightning.degradations import Bicubic, bicubic, crop_to_multiple, downscale, resize_strips, upscale
from sr_lightning.errors import InputError
from tests.helpers import slow_except

BORDERS = ("mirror", "replicate")


def keys_cubic(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)


@cache
def oracle_taps(size: int, factor: Fraction, border: str) -> list[list[tuple[int, Fraction]]]:
    """Sources and weights of each output of a line, with pixels counted from 1 as in MATLAB, in exact arithmetic."""
    shrink = min(factor, Fraction(1))
    out = []
    for x in range(1, int(size * factor) + 1):
        centre = x / factor + (1 - 1 / factor) / 2
        first, last = floor(centre - 2 / shrink), floor(centre + 2 / shrink) + 1
        taps = []
        for tap in range(first, last + 1):
            if border == "mirror":
                there_and_back = [*range(size), *reversed(range(size))]
                source = there_and_back[(tap - 1) % len(there_and_back)]
            else:
                source = min(max(tap, 1), size) - 1
            taps.append((source, keys_cubic((centre - tap) * shrink)))
        total = sum(weight for _, weight in taps)
        out.append([(source, weight / total) for source, weight in taps if weight])
    return out


def oracle_line(line: list, factor: Fraction, border: str) -> list[Fraction]:
    """One row or column resized in exact arithmetic."""
    return [sum(weight * line[source] for source, weight in taps) for taps in oracle_taps(len(line), factor, border)]


def to_uint8(value: Fraction) -> int:
    return min(max(floor(value + Fraction(1, 2)), 0), 255)


def oracle(image: np.ndarray, factor: Fraction, border: str) -> np.ndarray:
    """Resize (H, W), rows first; uint8 is rounded after each pass."""
    finish = to_uint8 if image.dtype == np.uint8 else (lambda value: value)
    exact = [[int(v) if image.dtype == np.uint8 else Fraction(float(v)) for v in row] for row in image]
    columns = [[finish(v) for v in oracle_line(column, factor, border)] for column in zip(*exact, strict=True)]
    rows = [[finish(v) for v in oracle_line(row, factor, border)] for row in zip(*columns, strict=True)]
    return np.array(rows, dtype=image.dtype)


def random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    """Mostly black and white pixels, which cause overshoot and clamping."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-200, 456, shape, generator=generator)
    return noise.clamp(0, 255).to(torch.uint8)


def read_planes(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("name", "count"), slow_except([("Set5", 5), ("BSD100", 100)], ("Set5", 5)))
def test_every_pixel_of_matlabs_files_is_reproduced(data_root, name, count, scale):
    files = sorted((data_root / "benchmark" / name / "LR_bicubic" / f"X{scale}").iterdir())
    assert len(files) == count
    hr_files = {path.stem: path for path in (data_root / "benchmark" / name / "HR").iterdir()}
    differing = []
    for file in files:
        hr = read_planes(hr_files[file.stem.removesuffix(f"x{scale}")])
        lr = downscale(crop_to_multiple(hr, scale), scale, border="replicate")
        if not torch.equal(lr, read_planes(file)):
            differing.append(file.name)
    assert not differing


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_border_modes_differ_in_the_two_outer_pixels_only(scale):
    hr = random_image(16 * scale, 20 * scale)
    mirror, replicate = (downscale(hr, scale, border) for border in BORDERS)
    assert not torch.equal(mirror, replicate)
    assert torch.equal(mirror[2:-2, 2:-2], replicate[2:-2, 2:-2])


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    ("scale", "height", "width"), [(2, 40, 22), (3, 36, 21), (4, 32, 76), (5, 15, 25), (8, 48, 24)]
)
def test_uint8_equals_exact_arithmetic(scale, height, width, border):
    hr = random_image(height, width, seed=scale)
    assert np.array_equal(downscale(hr, scale, border).numpy(), oracle(hr.numpy(), Fraction(1, scale), border))


SIZES = [(15, 11), (24, 9), (10, 20), (24, 7), (11, 31), (1, 1)]  # rows first, columns first, up and down, one of them


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("new_size", SIZES)
def test_any_size_equals_exact_arithmetic(new_size, dtype):
    image = random_image(24, 20).numpy().astype(dtype) * (1 if dtype == np.uint8 else 257)
    exact, most = image.astype(int).tolist(), np.iinfo(dtype).max
    rows, columns = (Fraction(new, old) for new, old in zip(new_size, image.shape, strict=True))
    for axis in sorted((0, 1), key=lambda axis: (rows, columns)[axis]):  # MATLAB: the smaller factor first
        lines = exact if axis else zip(*exact, strict=True)
        resized = [oracle_line(list(line), (rows, columns)[axis], "mirror") for line in lines]
        exact = [[min(max(floor(value + Fraction(1, 2)), 0), most) for value in line] for line in resized]
        exact = exact if axis else list(zip(*exact, strict=True))
    assert np.array_equal(bicubic.resize(torch.from_numpy(image), *new_size).numpy(), exact)


@pytest.mark.parametrize("new_size", [(113, 90), (113, 40), (150, 33), (75, 100), (1, 100)])
def test_strips_give_the_bits_of_the_whole_image(new_size):
    image = random_image(3, 150, 100)
    strips = image.split([1, 3, 70, 20, 50, 6], dim=1)
    resized = list(resize_strips(strips, (150, 100), new_size))
    assert torch.equal(torch.cat(resized, dim=1), bicubic.resize(image, *new_size))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", slow_except([6, 10], 6))
def test_ties_round_up_even_if_float64_cannot_represent_the_weights(scale, border):
    height = 4 * scale
    units = np.eye(height, dtype=int).tolist()
    weights = np.array([oracle_line(unit, Fraction(1, scale), border) for unit in units]).T  # (4, height)
    denominator = lcm(*(weight.denominator for weight in weights.flat))
    columns = torch.randint(0, 256, (200_000, height), generator=torch.Generator().manual_seed(scale)).to(torch.uint8)
    exact = columns.numpy().astype(np.int64) @ (weights * denominator).astype(np.int64).T  # in 1/denominator
    assert (exact % denominator * 2 == denominator).any()  # there are ties
    expected = ((2 * exact + denominator) // (2 * denominator)).clip(0, 255)
    lr = downscale(columns[:, :, None].expand(-1, -1, scale), scale, border)  # the second pass finds flat rows
    assert np.array_equal(lr[:, :, 0].numpy(), expected)


def test_rounded_weights_move_no_result_across_a_tie():
    weights = np.array([-1, -2, 0, 9, 21, 27, 21, 9, 0, -2, -1])  # x3, in 1/81
    rounded_up = np.round(weights / 81 * 2**16) > weights / 81 * 2**16
    # Columns near the two on which the errors of all weights add up. With weights of 15 bits 624 results are wrong.
    distance = np.random.default_rng(0).integers(0, 25, (100_000, 11))
    taps = np.where(rounded_up, 255 - distance, distance)
    taps[::2] = 255 - taps[::2]
    exact = taps @ weights
    assert np.isin(exact % 81, (40, 41)).sum() > 1000  # 1/162 below and above a tie
    columns = np.pad(taps, ((0, 0), (2, 5))).astype(np.uint8)  # 18 pixels: the taps of LR pixel 2 of 6
    lr = downscale(torch.from_numpy(columns[:, :, None]).expand(-1, -1, 3), 3)
    assert np.array_equal(lr[:, 2, 0].numpy(), ((2 * exact + 81) // 162).clip(0, 255))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", bicubic._INTEGER_SCALES)
def test_torchs_kernel_and_matrix_products_give_the_same_bits(scale, border, monkeypatch):
    assert bicubic._kernel_is_exact(scale)
    shapes = (3, 60 * scale, 70 * scale), (2, 1, 2, 4 * scale, 9 * scale)
    images = [random_image(*shape, seed=scale) for shape in shapes]
    fast = [downscale(hr, scale, border) for hr in images]
    monkeypatch.setattr(bicubic, "_INTEGER_SCALES", ())
    for hr, lr in zip(images, fast, strict=True):
        assert torch.equal(lr, downscale(hr, scale, border))


def test_a_kernel_that_rounds_in_another_way_is_not_used(monkeypatch):
    hr = random_image(3, 32, 64)
    expected = downscale(hr, 4)
    darker = lambda *args, **settings: torch.nn.functional.interpolate(*args, **settings) // 2 * 2  # noqa: E731
    monkeypatch.setattr(bicubic, "interpolate", darker)
    assert not torch.equal(downscale(hr, 4), expected)  # it was checked before
    bicubic._kernel_is_exact.cache_clear()
    try:
        assert torch.equal(downscale(hr, 4), expected)
    finally:
        bicubic._kernel_is_exact.cache_clear()


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("scale", "height", "width"), [(2, 2, 4), (3, 3, 6), (4, 8, 8), (8, 8, 16)])
def test_images_smaller_than_the_kernel_are_mirrored_repeatedly(scale, height, width, border):
    hr = random_image(height, width, seed=scale)
    assert np.array_equal(downscale(hr, scale, border).numpy(), oracle(hr.numpy(), Fraction(1, scale), border))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_uint8_upscaling_equals_exact_arithmetic(scale, border):
    lr = random_image(9, 20, seed=scale)
    assert np.array_equal(upscale(lr, scale, border).numpy(), oracle(lr.numpy(), Fraction(scale), border))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", [2, 3, 8])
def test_floating_point_is_neither_rounded_nor_clamped(scale, border):
    image = torch.randn(3 * scale, 2 * scale, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    for resize, factor in ((downscale, Fraction(1, scale)), (upscale, Fraction(scale))):
        image = image if resize is downscale else image[:6, :4]  # exact arithmetic is slow
        expected = oracle(image.numpy(), factor, border)
        np.testing.assert_allclose(resize(image, scale, border).numpy(), expected, rtol=0, atol=1e-11)
        single = resize(image.float(), scale, border)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("scale", "psnr"), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_down_and_up_in_float64_gives_the_srcnn_papers_bicubic_psnr_on_set5(data_root, scale, psnr):
    scores = []
    for file in sorted((data_root / "benchmark" / "Set5" / "HR").iterdir()):
        rgb = crop_to_multiple(read_planes(file), scale).double() / 255
        luma = (16 + torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) @ rgb.flatten(1)).add(0.5).floor()
        hr = luma.view(rgb.shape[1:])
        sr = upscale(downscale(hr, scale), scale).add(0.5).floor().clamp(0, 255)
        error = (sr - hr)[scale:-scale, scale:-scale]
        scores.append(10 * torch.log10(255**2 / error.square().mean()))
    assert torch.stack(scores).mean().item() == pytest.approx(psnr, abs=0.005)


def test_a_batch_gives_the_results_of_its_images():
    hr = random_image(2, 3, 40, 36)
    for scale in (2, 4):
        expected = [[downscale(plane, scale) for plane in image] for image in hr]
        assert torch.equal(downscale(hr, scale), torch.stack([torch.stack(planes) for planes in expected]))


def test_strided_input_gives_the_same_contiguous_result():
    interleaved = random_image(36, 48, 3)
    views = (interleaved.permute(2, 0, 1), interleaved.permute(2, 1, 0), interleaved.permute(2, 0, 1)[:, ::2, 12:36])
    for view in views:
        lr = downscale(view, 3)
        assert lr.is_contiguous()
        assert torch.equal(lr, downscale(view.contiguous(), 3))


def test_autocast_and_reduced_matmul_precision_change_nothing():
    hr = random_image(3, 64, 96)
    expected = downscale(hr, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(downscale(hr, 4), expected)
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(downscale(hr, 4), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_gradients_flow_through_floating_point_even_after_inference_mode():
    with torch.inference_mode():
        downscale(torch.rand(1, 11 * 4, 13 * 4), 4)
    hr = torch.rand(1, 11 * 4, 13 * 4, requires_grad=True)
    downscale(hr, 4).sum().backward()
    assert hr.grad.sum().item() == pytest.approx(11 * 13, rel=1e-5)  # every output's weights sum to one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_cuda_gives_the_same_bits_as_the_cpu(scale):
    hr = random_image(2, 3, 60 * scale, 70 * scale)
    for resize in (downscale, upscale):
        assert torch.equal(resize(hr.cuda(), scale).cpu(), resize(hr, scale))


def test_crop_to_multiple_keeps_the_top_left_of_tensors_and_arrays():
    image = random_image(3, 11, 14)
    assert torch.equal(crop_to_multiple(image, 4), image[:, :8, :12])
    assert np.array_equal(crop_to_multiple(image.numpy(), 3), image.numpy()[:, :9, :12])
    with pytest.raises(InputError, match=r"2x9 .* too small for scale 3"):
        crop_to_multiple(torch.zeros(2, 9), 3)


def test_invalid_input_is_refused_with_a_way_out():
    hr = random_image(3, 10, 12)
    with pytest.raises(InputError, match=r"10x12 .* by 4: crop it .*crop_to_multiple"):
        downscale(hr, 4)
    with pytest.raises(InputError, match="border must be one of mirror, replicate, got 'zero'"):
        downscale(hr, 2, "zero")
    with pytest.raises(InputError, match="border must be one of mirror, replicate, got 'zero'"):
        Bicubic(border="zero")
    for scale in (1, 2.0):
        with pytest.raises(InputError, match=f"integer of at least 2, got {scale}"):
            upscale(hr, scale)
    with pytest.raises(InputError, match=r"torch\.int64"):
        downscale(hr.long(), 2)
    with pytest.raises(InputError, match=r"uint8 images, got torch\.float32"):
        Bicubic()(hr.float(), 2)


def test_the_degradation_mirrors_by_default_and_its_key_contains_the_border():
    hr = random_image(3, 24, 36)
    assert torch.equal(Bicubic()(hr, 3), downscale(hr, 3, "mirror"))
    assert torch.equal(Bicubic(border="replicate")(hr, 3), downscale(hr, 3, "replicate"))
    assert Bicubic().key == {"degradation": "bicubic", "version": 1, "border": "mirror"}
    assert Bicubic(border="replicate").key != Bicubic().key
