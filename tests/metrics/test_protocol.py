import dataclasses
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.degradations import crop_to_multiple, downscale, upscale
from sr_lightning.errors import InputError
from sr_lightning.metrics.per_image import Score
from sr_lightning.metrics.protocol import Protocol, differs_from_bicubic, score
from tests.helpers import slow_except
from tests.oracles import by_channel, daala, unit, wang

Y_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255


def test_nan_in_one_prediction_makes_only_its_own_scores_nan():
    hr = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    sr = hr * 0.9
    sr[1, 0, 20, 20] = float("nan")
    for values in score(sr, hr, 2, Protocol()).values():
        assert values.isnan().tolist() == [False, True]


def test_an_image_too_small_for_the_border_is_refused_with_its_sizes():
    with pytest.raises(ValueError, match=r"18 x 30 pixels are 10 x 22 after shaving 4 per side \(border=scale\)"):
        score(torch.zeros(1, 1, 18, 30), torch.zeros(1, 1, 18, 30), 4, Protocol())
    with pytest.raises(ValueError, match="6 x 30 pixels are 0 x 22 after shaving 4"):
        score(torch.zeros(1, 1, 6, 30), torch.zeros(1, 1, 6, 30), 4, Protocol())


@pytest.mark.parametrize("channel", ["y", "rgb", "y709"])
def test_identical_images_score_at_most_what_one_grey_level_in_one_pixel_gives(channel):
    hr = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)).mul(254).round() / 255
    protocol = Protocol(channel=channel)
    equal = score(hr, hr, 2, protocol)["psnr"].item()
    assert equal == pytest.approx(-20 * np.log10(1 / 255) + 10 * np.log10(36 * 36), abs=1e-9)
    off = hr.clone()
    off[0, :, 20, 20] += 2 / 255
    assert score(off, hr, 2, protocol)["psnr"].item() < equal


def ramp(rise: float, size: int = 48) -> torch.Tensor:
    """Gray levels that rise from left to right, rounded to 8 bits, (1, 3, size, size)."""
    levels = (100 + rise * torch.arange(size)).round() / 255
    return levels.expand(1, 3, size, size).contiguous()


def specks(level: int) -> torch.Tensor:
    """Black with three bright pixels, (1, 3, 48, 48)."""
    image = torch.zeros(1, 3, 48, 48)
    image[0, :, [10, 20, 30], [30, 10, 20]] = level / 255
    return image


def corner() -> torch.Tensor:
    """Black with a white corner that every border shaves, (1, 3, 48, 48)."""
    image = torch.zeros(1, 3, 48, 48)
    image[..., :2, :2] = 1
    return image


NOISE = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
SCORED = {  # image, whether it is scored
    "black": (torch.zeros(1, 3, 48, 48), False),
    "white": (torch.ones(1, 3, 48, 48), False),
    "flat, gray": (torch.full((1, 1, 48, 48), 100 / 255), False),
    "a ramp": (ramp(1.0), False),
    "a slow ramp": (ramp(0.3), False),
    "black, one grey level of noise": (specks(1), False),
    "black in all that is scored": (corner(), False),
    "black with three pixels": (specks(9), True),
    "noise": (NOISE, True),
    "faint noise": (100 / 255 + NOISE.mul(8).round() / 255, True),
}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SCORED)
def test_images_that_bicubic_reproduces_are_not_scored(name, scale):
    image, scored = SCORED[name]
    for protocol in (Protocol(), Protocol(channel="rgb"), Protocol(channel="y709"), Protocol(quantize=False)):
        assert differs_from_bicubic(image, scale, protocol).tolist() == [scored]


def test_every_image_of_the_benchmarks_is_scored(data_root):
    for dataset in ("Set5", "BSD100"):
        for path in sorted((data_root / "benchmark" / dataset / "HR").iterdir()):
            assert differs_from_bicubic(unit(crop_to_multiple(rgb(path), 2)), 2, Protocol()).item(), path.name


# --- the protocol


def test_the_name_contains_every_setting():
    assert Protocol().name == "y_shave-scale_8bit_ssim-wang_lr-files"
    assert Protocol(lr_source="luma").name == "y_shave-scale_8bit_ssim-wang_lr-luma"
    other = Protocol(channel="rgb", border="scale+6", quantize=False, lr_source="made")
    assert other.name == "rgb_shave-scale+6_float_ssim-wang_lr-made"
    assert Protocol(border=0).name == "y_shave-0_8bit_ssim-wang_lr-files"


def test_every_setting_changes_the_name_and_the_description():
    changed = {"channel": "rgb", "border": 3, "quantize": False, "ssim": "daala", "lr_source": "made"}
    names = {Protocol().name} | {Protocol(**{key: value}).name for key, value in changed.items()}
    assert len(names) == 1 + len(changed) and set(changed) == set(dataclasses.asdict(Protocol()))
    assert not any(sign in name for name in names for sign in "=, /")
    descriptions = {Protocol().description} | {Protocol(**{key: value}).description for key, value in changed.items()}
    assert len(descriptions) == len(names)
    assert "scale + 6 pixels" in Protocol(border="scale+6").description


@pytest.mark.parametrize(("border", "expected"), [("scale", 3), ("scale+6", 9), ("scale+10", 13), (0, 0), (4, 4)])
def test_a_border_is_relative_to_the_scale_or_a_number(border, expected):
    assert Protocol(border=border).border_for(3) == expected


def test_an_invalid_protocol_is_refused_with_every_wrong_setting_and_the_choices():
    with pytest.raises(InputError) as error:
        Protocol(channel="Y", border="scale-1", quantize="yes", ssim="ms", lr_source="png")
    for part in (
        "channel='Y': choose from y, rgb, y709",
        "border='scale-1': choose from scale, scale+6 (any scale+k), or a whole number >= 0",
        "quantize='yes': choose from true, false",
        "ssim='ms': choose from wang, daala",
        "lr_source='png': choose from files, made, luma",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("border", [-1, 2.0, True, None, "4", "scale+", "scale+6 ", [4]])
def test_an_invalid_border_is_refused(border):
    with pytest.raises(InputError, match="border="):
        Protocol(border=border)


@pytest.mark.parametrize("channel", ["rgb", "y709"])
def test_luma_lr_with_a_channel_that_needs_colour_is_refused(channel):
    with pytest.raises(InputError, match="a luma LR image has no colour"):
        Protocol(channel=channel, lr_source="luma")


def test_a_protocol_survives_conversion_to_plain_values_and_yaml():
    protocol = Protocol(channel="rgb", border="scale+6", lr_source="made")
    plain = dataclasses.asdict(protocol)
    assert Protocol(**plain) == protocol
    yaml = OmegaConf.create("{_target_: sr_lightning.metrics.Protocol, channel: rgb, border: scale+6, lr_source: made}")
    assert instantiate(yaml) == protocol
    assert Protocol(**OmegaConf.to_container(OmegaConf.create(plain))) == protocol


# --- the score


@pytest.fixture(scope="module")
def colour() -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction off the 8-bit grid and partly outside [0, 1], and its 8-bit HR: (2, 3, 60, 50)."""
    hr = torch.from_numpy(np.stack([skimage.data.astronaut()[:60, :50], skimage.data.coffee()[90:150, 200:250]]))
    hr = unit(hr.permute(0, 3, 1, 2).contiguous())
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    return 1.1 * hr + 0.05 * noise - 0.04, hr


def to_8_bit(image: torch.Tensor) -> np.ndarray:
    return np.floor(np.clip(image.double().numpy(), 0, 1) * 255 + 0.5) / 255


def luma(image: np.ndarray) -> np.ndarray:
    return np.tensordot(image.astype(np.float64), Y_WEIGHTS, axes=(1, 0))[:, None] + 16 / 255


def check(scores: dict[str, torch.Tensor], sr: np.ndarray, hr: np.ndarray) -> None:
    """Compare with scores that numpy computes of the images as they should be after all conversions."""
    assert list(scores) == ["psnr", "ssim"]
    errors = ((np.float64(sr) - np.float64(hr)) ** 2).mean((1, 2, 3))
    assert scores["psnr"].tolist() == pytest.approx((-10 * np.log10(errors)).tolist(), abs=1e-4)
    assert scores["ssim"].tolist() == pytest.approx(by_channel(wang, sr, hr), abs=1e-6)


def test_a_colour_prediction_is_rounded_in_rgb_then_converted_to_luma_then_shaved(colour):
    sr, hr = colour
    inner = np.s_[:, :, 3:-3, 3:-3]
    check(score(sr, hr, 3, Protocol()), luma(to_8_bit(sr))[inner], luma(hr.numpy())[inner])
    check(score(sr, hr, 3, Protocol(quantize=False)), luma(sr.numpy())[inner], luma(hr.numpy())[inner])


def test_rgb_scores_all_three_channels_together(colour):
    sr, hr = colour
    inner = np.s_[:, :, 8:-8, 8:-8]
    scores = score(sr, hr, 2, Protocol(channel="rgb", border="scale+6"))
    check(scores, to_8_bit(sr)[inner], hr.numpy()[inner])


def test_a_luma_prediction_of_a_colour_image_is_scored_on_unrounded_luma(colour):
    sr, hr = rgb_to_y(colour[0]), colour[1]
    check(score(sr, hr, 3, Protocol(border=0)), to_8_bit(sr), luma(hr.numpy()))


def test_a_grey_hr_is_used_as_luma_without_conversion(colour):
    sr, hr = colour[0][:, 1:2], colour[1][:, 1:2]
    for channel in ("y", "rgb"):
        check(score(sr, hr, 3, Protocol(border=0, channel=channel)), to_8_bit(sr), hr.numpy())


def test_a_colour_prediction_of_a_grey_image_is_averaged(colour):
    sr, hr = colour[0], colour[1][:, 1:2]
    for channel in ("y", "rgb"):
        scores = score(sr, hr, 3, Protocol(border=0, channel=channel))
        check(scores, to_8_bit(sr).mean(1, keepdims=True), hr.numpy())


def test_the_ground_truth_of_luma_lr_is_8_bit_luma(colour):
    sr, hr = rgb_to_y(colour[0]), colour[1]
    rounded = np.floor(luma(hr.numpy()) * 255 + 0.5) / 255
    check(score(sr, hr, 3, Protocol(border=0, lr_source="luma")), to_8_bit(sr), rounded)


def test_hr_is_neither_clamped_nor_rounded_nor_changed(colour):
    sr, hr = colour[1], colour[0]
    copy = hr.clone()
    check(score(sr, hr, 3, Protocol(channel="rgb", border=0)), sr.numpy(), hr.numpy())
    assert torch.equal(hr, copy)


def test_daalas_protocol_uses_8_bit_bt709_luma_and_daalas_ssim(colour):
    sr, hr = colour
    inner = np.s_[:, 3:-3, 3:-3]
    levels = [
        np.round(np.tensordot(image, (0.2126, 0.7152, 0.0722), axes=(1, 0))[inner] * 219 + 16)
        for image in (to_8_bit(sr), np.float64(hr.numpy()))
    ]
    scores = score(sr, hr, 3, Protocol(channel="y709", ssim="daala"))
    errors = ((levels[0] - levels[1]) ** 2).mean((1, 2)) / 255**2
    assert scores["psnr"].tolist() == pytest.approx((-10 * np.log10(errors)).tolist(), abs=1e-4)
    assert scores["ssim"].tolist() == pytest.approx([daala(*pair) for pair in zip(*levels, strict=True)], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_prediction_is_scored_in_float32(colour, dtype):
    sr, hr = colour[0].to(dtype), colour[1]
    check(score(sr, hr, 3, Protocol(channel="rgb", border=0)), to_8_bit(sr), hr.numpy())


@pytest.mark.parametrize("channel", ["rgb", "y709"])
def test_a_luma_prediction_on_a_channel_that_needs_colour_is_refused_with_a_way_out(channel):
    with pytest.raises(ValueError, match=r"sr \(1, 1, 40, 40\) and hr \(1, 3, 40, 40\).*channel=y.*ycbcr_to_rgb"):
        score(torch.zeros(1, 1, 40, 40), torch.zeros(1, 3, 40, 40), 2, Protocol(channel=channel))


@pytest.mark.parametrize(
    ("sr", "hr"),
    [
        ((1, 3, 40, 40), (1, 3, 40, 42)),
        ((1, 3, 40, 40), (2, 3, 40, 40)),
        ((3, 40, 40), (3, 40, 40)),
        ((1, 2, 40, 40), (1, 2, 40, 40)),
        ((1, 4, 40, 40), (1, 3, 40, 40)),
    ],
)
def test_shapes_that_do_not_match_are_refused_with_both_shapes(sr, hr):
    with pytest.raises(ValueError) as error:
        score(torch.zeros(sr), torch.zeros(hr), 2, Protocol())
    assert f"sr {sr} and hr {hr} must be (N, 1 or 3, H, W)" in str(error.value)


# --- published numbers

# Bicubic as printed in the SRCNN and later papers, to three decimals: (PSNR, SSIM) by (data set, scale)
SRCNN_PAPER = {
    ("Set5", 2): (33.661, 0.9299),
    ("Set5", 3): (30.392, 0.8682),
    ("Set5", 4): (28.421, 0.8104),
    ("BSD100", 2): (29.558, 0.8431),
    ("BSD100", 3): (27.207, 0.7384),
    ("BSD100", 4): (25.961, 0.6674),
}
# The same from the LR files, enlarged as 8-bit RGB, luma not rounded: the result of BasicSR's evaluation
FROM_FILES = {("Set5", 2): (33.674, 0.9303), ("Set5", 3): (30.405, 0.8689), ("Set5", 4): (28.430, 0.8111)}

# Bicubic x4 as printed in the SRGAN paper
SRGAN_PAPER = {"Set5": (28.43, 0.8211), "BSD100": (25.94, 0.6935)}


def rgb(path: Path) -> torch.Tensor:
    """(1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("dataset", "scale"), slow_except(SRCNN_PAPER, *(case for case in SRCNN_PAPER if case[0] == "Set5"))
)
def test_bicubic_under_the_srcnn_papers_protocol_has_the_published_scores(data_root, dataset, scale):
    protocol = Protocol(lr_source="luma")
    files = sorted((data_root / "benchmark" / dataset / "HR").iterdir())
    metric = Score(len(files), scale, protocol)
    for index, path in enumerate(files):
        hr = quantize(rgb_to_y(crop_to_multiple(rgb(path), scale).double() / 255))
        metric.update(upscale(downscale(hr, scale), scale), hr, torch.tensor([index]))
    expected_psnr, expected_ssim = SRCNN_PAPER[dataset, scale]
    assert metric.compute()["psnr"].item() == pytest.approx(expected_psnr, abs=0.005)
    assert metric.compute()["ssim"].item() == pytest.approx(expected_ssim, abs=0.0001)


def score_from_files(data_root: Path, dataset: str, scale: int, protocol: Protocol) -> list[float]:
    """Mean PSNR and SSIM of the LR files enlarged as 8-bit RGB."""
    files = sorted((data_root / "benchmark" / dataset / "HR").iterdir())
    metric = Score(len(files), scale, protocol)
    for index, path in enumerate(files):
        lr = rgb(data_root / "benchmark" / dataset / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        metric.update(unit(upscale(lr, scale)), unit(crop_to_multiple(rgb(path), scale)), torch.tensor([index]))
    return [metric.compute()[name].item() for name in ("psnr", "ssim")]


@pytest.mark.parametrize(("dataset", "scale"), FROM_FILES)
def test_bicubic_from_the_lr_files_has_basicsrs_scores(data_root, dataset, scale):
    psnr, ssim = score_from_files(data_root, dataset, scale, Protocol())
    expected_psnr, expected_ssim = FROM_FILES[dataset, scale]
    assert psnr == pytest.approx(expected_psnr, abs=0.005)
    assert ssim == pytest.approx(expected_ssim, abs=0.0001)


@pytest.mark.parametrize("dataset", slow_except(SRGAN_PAPER, "Set5"))
def test_bicubic_under_daalas_protocol_has_the_srgan_papers_scores(data_root, dataset):
    psnr, ssim = score_from_files(data_root, dataset, 4, Protocol(channel="y709", ssim="daala"))
    expected_psnr, expected_ssim = SRGAN_PAPER[dataset]
    assert psnr == pytest.approx(expected_psnr, abs=0.005)
    assert ssim == pytest.approx(expected_ssim, abs=0.0003)
