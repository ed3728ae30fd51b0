import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import skimage
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import multiprocessing

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.degradations import crop_to_multiple, downscale, upscale
from sr_lightning.errors import InputError
from sr_lightning.metrics.protocol import PerImage, Protocol, Score, score
from tests.oracles import blurred, by_channel, daala, photos_of, unit, wang

Y_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255


def test_nan_in_a_prediction_is_nan_in_its_scores_alone():
    hr = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    sr = hr * 0.9
    sr[1, 0, 20, 20] = float("nan")
    for values in score(sr, hr, 2, Protocol()).values():
        assert values.isnan().tolist() == [False, True]


def test_an_image_too_small_for_the_border_is_named_with_its_sizes():
    with pytest.raises(ValueError, match=r"18 x 30 pixels are 10 x 22 after shaving 4 per side \(border=scale\)"):
        score(torch.zeros(1, 1, 18, 30), torch.zeros(1, 1, 18, 30), 4, Protocol())
    with pytest.raises(ValueError, match="6 x 30 pixels are 0 x 22 after shaving 4"):
        score(torch.zeros(1, 1, 6, 30), torch.zeros(1, 1, 6, 30), 4, Protocol())


# --- the protocol


def test_the_name_of_a_protocol_tells_all_its_settings():
    assert Protocol().name == "y_shave-scale_8bit_ssim-wang_lr-files"
    assert Protocol(lr_source="luma").name == "y_shave-scale_8bit_ssim-wang_lr-luma"
    other = Protocol(channel="rgb", border="scale+6", quantize=False, lr_source="made")
    assert other.name == "rgb_shave-scale+6_float_ssim-wang_lr-made"
    assert Protocol(border=0).name == "y_shave-0_8bit_ssim-wang_lr-files"


def test_every_setting_is_in_the_name_and_in_the_words():
    changed = {"channel": "rgb", "border": 3, "quantize": False, "ssim": "daala", "lr_source": "made"}
    names = {Protocol().name} | {Protocol(**{key: value}).name for key, value in changed.items()}
    assert len(names) == 1 + len(changed) and set(changed) == set(dataclasses.asdict(Protocol()))
    assert not any(sign in name for name in names for sign in "=, /")
    words = {Protocol().words} | {Protocol(**{key: value}).words for key, value in changed.items()}
    assert len(words) == len(names)
    assert "scale + 6 pixels" in Protocol(border="scale+6").words


@pytest.mark.parametrize(("border", "expected"), [("scale", 3), ("scale+6", 9), ("scale+10", 13), (0, 0), (4, 4)])
def test_a_border_is_the_scale_or_more_or_a_number(border, expected):
    assert Protocol(border=border).border_for(3) == expected


def test_a_wrong_protocol_is_told_all_its_faults_and_the_choices():
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
def test_a_wrong_border_is_refused(border):
    with pytest.raises(InputError, match="border="):
        Protocol(border=border)


@pytest.mark.parametrize("channel", ["rgb", "y709"])
def test_luma_lr_has_no_score_that_needs_colour(channel):
    with pytest.raises(InputError, match="a luma LR image has no colour"):
        Protocol(channel=channel, lr_source="luma")


def test_a_protocol_is_made_of_plain_values_and_back():
    protocol = Protocol(channel="rgb", border="scale+6", lr_source="made")
    plain = dataclasses.asdict(protocol)
    assert Protocol(**plain) == protocol
    yaml = OmegaConf.create("{_target_: sr_lightning.metrics.Protocol, channel: rgb, border: scale+6, lr_source: made}")
    assert instantiate(yaml) == protocol
    assert Protocol(**OmegaConf.to_container(OmegaConf.create(plain))) == protocol


# --- the score


@pytest.fixture(scope="module")
def colour() -> tuple[torch.Tensor, torch.Tensor]:
    """A float prediction off the 8-bit grid, beyond [0, 1] in places, and its HR on it: (2, 3, 60, 50)."""
    hr = torch.from_numpy(np.stack([skimage.data.astronaut()[:60, :50], skimage.data.coffee()[90:150, 200:250]]))
    hr = unit(hr.permute(0, 3, 1, 2).contiguous())
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    return 1.1 * hr + 0.05 * noise - 0.04, hr


def to_8_bit(image: torch.Tensor) -> np.ndarray:
    return np.floor(np.clip(image.double().numpy(), 0, 1) * 255 + 0.5) / 255


def luma(image: np.ndarray) -> np.ndarray:
    return np.tensordot(image.astype(np.float64), Y_WEIGHTS, axes=(1, 0))[:, None] + 16 / 255


def check(scores: dict[str, torch.Tensor], sr: np.ndarray, hr: np.ndarray) -> None:
    """Compare with numpy's scores of what should have been compared in the end."""
    assert list(scores) == ["psnr", "ssim"]
    errors = ((np.float64(sr) - np.float64(hr)) ** 2).mean((1, 2, 3))
    assert scores["psnr"].tolist() == pytest.approx((-10 * np.log10(errors)).tolist(), abs=1e-4)
    assert scores["ssim"].tolist() == pytest.approx(by_channel(wang, sr, hr), abs=1e-6)


def test_a_colour_prediction_is_rounded_in_rgb_then_made_luma_then_shaved(colour):
    sr, hr = colour
    inner = np.s_[:, :, 3:-3, 3:-3]
    check(score(sr, hr, 3, Protocol()), luma(to_8_bit(sr))[inner], luma(hr.numpy())[inner])
    check(score(sr, hr, 3, Protocol(quantize=False)), luma(sr.numpy())[inner], luma(hr.numpy())[inner])


def test_rgb_is_scored_over_all_three_channels(colour):
    sr, hr = colour
    inner = np.s_[:, :, 8:-8, 8:-8]
    scores = score(sr, hr, 2, Protocol(channel="rgb", border="scale+6"))
    check(scores, to_8_bit(sr)[inner], hr.numpy()[inner])


def test_a_luma_prediction_of_a_colour_image_is_scored_on_luma_that_is_not_rounded(colour):
    sr, hr = rgb_to_y(colour[0]), colour[1]
    check(score(sr, hr, 3, Protocol(border=0)), to_8_bit(sr), luma(hr.numpy()))


def test_a_grey_hr_is_luma_as_it_is(colour):
    sr, hr = colour[0][:, 1:2], colour[1][:, 1:2]
    for channel in ("y", "rgb"):
        check(score(sr, hr, 3, Protocol(border=0, channel=channel)), to_8_bit(sr), hr.numpy())


def test_a_colour_prediction_of_a_grey_image_is_averaged(colour):
    sr, hr = colour[0], colour[1][:, 1:2]
    for channel in ("y", "rgb"):
        scores = score(sr, hr, 3, Protocol(border=0, channel=channel))
        check(scores, to_8_bit(sr).mean(1, keepdims=True), hr.numpy())


def test_with_luma_lr_the_ground_truth_is_8_bit_luma(colour):
    sr, hr = rgb_to_y(colour[0]), colour[1]
    rounded = np.floor(luma(hr.numpy()) * 255 + 0.5) / 255
    check(score(sr, hr, 3, Protocol(border=0, lr_source="luma")), to_8_bit(sr), rounded)


def test_hr_is_neither_clamped_nor_rounded_nor_changed(colour):
    sr, hr = colour[1], colour[0]
    copy = hr.clone()
    check(score(sr, hr, 3, Protocol(channel="rgb", border=0)), sr.numpy(), hr.numpy())
    assert torch.equal(hr, copy)


def test_daalas_luma_is_bt709_in_8_bits_and_its_ssim_that_of_its_tool(colour):
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
def test_a_luma_prediction_has_no_score_that_needs_colour_and_the_message_says_what_to_do(channel):
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
def test_shapes_that_do_not_match_are_both_named(sr, hr):
    with pytest.raises(ValueError) as error:
        score(torch.zeros(sr), torch.zeros(hr), 2, Protocol())
    assert f"sr {sr} and hr {hr} must be (N, 1 or 3, H, W)" in str(error.value)


# --- published numbers

# Bicubic as the SRCNN and later papers print it, to three decimals: (PSNR, SSIM) by (data set, scale)
SRCNN_PAPER = {
    ("Set5", 2): (33.661, 0.9299),
    ("Set5", 3): (30.392, 0.8682),
    ("Set5", 4): (28.421, 0.8104),
    ("BSD100", 2): (29.558, 0.8431),
    ("BSD100", 3): (27.207, 0.7384),
    ("BSD100", 4): (25.961, 0.6674),
}
# The same from the LR files, enlarged as 8-bit RGB, luma not rounded: what BasicSR's evaluation gives
FROM_FILES = {("Set5", 2): (33.674, 0.9303), ("Set5", 3): (30.405, 0.8689), ("Set5", 4): (28.430, 0.8111)}

# Bicubic x4 as the SRGAN paper prints it
SRGAN_PAPER = {"Set5": (28.43, 0.8211), "BSD100": (25.94, 0.6935)}


def rgb(path: Path) -> torch.Tensor:
    """(1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("dataset", "scale"), SRCNN_PAPER)
def test_bicubic_by_the_srcnn_papers_protocol_has_the_published_scores(data_root, dataset, scale):
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
def test_bicubic_from_the_lr_files_has_the_scores_of_basicsr(data_root, dataset, scale):
    psnr, ssim = score_from_files(data_root, dataset, scale, Protocol())
    expected_psnr, expected_ssim = FROM_FILES[dataset, scale]
    assert psnr == pytest.approx(expected_psnr, abs=0.005)
    assert ssim == pytest.approx(expected_ssim, abs=0.0001)


@pytest.mark.parametrize("dataset", SRGAN_PAPER)
def test_bicubic_by_daalas_protocol_has_the_scores_of_the_srgan_paper(data_root, dataset):
    psnr, ssim = score_from_files(data_root, dataset, 4, Protocol(channel="y709", ssim="daala"))
    expected_psnr, expected_ssim = SRGAN_PAPER[dataset]
    assert psnr == pytest.approx(expected_psnr, abs=0.005)
    assert ssim == pytest.approx(expected_ssim, abs=0.0003)


# --- means over a data set


def test_the_mean_counts_every_image_once_however_often_it_was_seen():
    metric = PerImage(3)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([2, 0]))
    metric.update(torch.tensor([6.0, 2.0, 2.0]), torch.tensor([1, 0, 0]))
    assert metric.compute().item() == 3.0
    assert metric.per_image().tolist() == [2.0, 6.0, 1.0]
    assert metric.compute().dtype == torch.float64


def test_images_that_were_never_seen_are_counted_in_the_error():
    metric = PerImage(5)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([4, 0]))
    for function in (metric.compute, metric.per_image):
        with pytest.raises(InputError, match="3 of 5 images were not scored"):
            function()


def test_an_index_out_of_the_data_set_is_named():
    metric = PerImage(5)
    with pytest.raises(InputError, match=r"index \[5, -1\] in a data set of 5 images"):
        metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5, 0, -1]))
    with pytest.raises(InputError, match=r"values \(2,\), index \(1,\)"):
        metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0]))


def test_reset_forgets_all_images():
    metric = PerImage(2)
    metric.update(torch.ones(2), torch.arange(2))
    metric.reset()
    with pytest.raises(InputError, match="2 of 2"):
        metric.per_image()


@pytest.mark.parametrize("cast", [
    lambda module: module.half(),
    lambda module: module.bfloat16(),
    lambda module: module.to(torch.float32),
    lambda module: module.to("cpu", torch.float16),
    lambda module: module.metric.set_dtype(torch.float32),
])  # fmt: skip
def test_the_states_stay_float64_when_the_module_is_cast(cast):
    module = torch.nn.Module()
    module.metric = PerImage(2)
    value = 30.123456789012345
    module.metric.update(torch.tensor([value, value], dtype=torch.float64), torch.arange(2))
    cast(module)
    assert module.metric.total.dtype == module.metric.count.dtype == torch.float64
    assert module.metric.compute().item() == value
    module.metric.reset()
    assert module.metric.total.dtype == torch.float64


def test_the_states_follow_to_another_device():
    assert PerImage(2).to("meta").total.device.type == "meta"
    assert Score(2, 2, Protocol()).to("meta")["ssim"].count.device.type == "meta"


def test_a_score_is_the_mean_of_the_functions():
    hr = photos_of("astronaut", "camera", "gravel", size=120)
    sr, hr = unit(blurred(hr)), unit(hr)
    metric = Score(3, 4, Protocol(), prefix="val/")
    metric.update(sr[1:], hr[1:], torch.tensor([1, 2]))
    metric.update(sr[:1], hr[:1], torch.tensor([0]))
    expected = score(sr, hr, 4, Protocol())
    assert {name: values.tolist() for name, values in metric.per_image().items()} == {
        f"val/{name}": values.tolist() for name, values in expected.items()
    }
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(
        {f"val/{name}": values.mean().item() for name, values in expected.items()}, abs=1e-12
    )


class Halver(pl.LightningModule):
    """Scores half of each image; logs the metric itself, or its values."""

    def __init__(self, log_object: bool):
        super().__init__()
        self.log_object = log_object
        self.score = Score(5, 2, Protocol(), prefix="val/")

    def validation_step(self, batch, batch_idx):
        index, hr = batch
        self.score.update(hr / 2, hr, index)
        if self.log_object:
            self.log_dict(self.score)

    def on_validation_epoch_end(self):
        if not self.log_object:
            self.log_dict(self.score.compute())
            self.score.reset()


@pytest.mark.parametrize("log_object", [True, False])
def test_a_score_works_in_lightning_and_starts_anew_at_each_validation(tmp_path, log_object):
    hr = torch.rand(5, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(list(enumerate(hr)), batch_size=2)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Halver(log_object)
    expected = {f"val/{name}": v.mean().item() for name, v in score(hr / 2, hr, 2, Protocol()).items()}
    for _ in range(2):
        result = trainer.validate(module, loader, verbose=False)[0]
        assert {name: float(value) for name, value in result.items()} == pytest.approx(expected, abs=1e-6)


VALUES = torch.tensor([30.1, 31.7, 28.3, 35.9, 27.2], dtype=torch.float64) / 3
SHARDS = {  # which images each of two processes sees
    "uneven": ([0, 2, 4], [1, 3]),
    "one process has none": ([0, 1, 2, 3, 4], []),
    "the sampler repeats one": ([0, 2, 4], [1, 3, 0]),
}


def score_shard(rank: int, folder: str) -> None:
    """One of two processes: what it computes goes to a file."""
    warnings.filterwarnings("ignore", ".*before the ``update`` method.*")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for name, shards in SHARDS.items():
        metric = PerImage(5)
        for i in shards[rank]:
            metric.update(VALUES[[i]], torch.tensor([i]))
        results[name] = (metric.compute(), metric.per_image(), metric.count.clone())
    incomplete = PerImage(5)
    incomplete.update(VALUES[[rank]], torch.tensor([rank]))
    try:
        incomplete.compute()
    except InputError as error:
        results["incomplete"] = str(error)
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_mean_is_exact_on_two_processes(tmp_path):
    fastest = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    multiprocessing.start_processes(score_shard, args=(str(tmp_path),), nprocs=2, start_method=fastest)
    for rank in range(2):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        for name, shards in SHARDS.items():
            mean, per_image, count = results[name]
            assert mean.item() == pytest.approx(VALUES.mean().item(), abs=1e-12)
            torch.testing.assert_close(per_image, VALUES, rtol=0, atol=1e-12)
            # the process goes on with its own images, not with those of all
            assert count.tolist() == torch.bincount(torch.tensor(shards[rank], dtype=torch.long), minlength=5).tolist()
        assert results["incomplete"].startswith("3 of 5 images were not scored")
