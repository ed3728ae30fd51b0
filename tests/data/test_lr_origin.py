"""The program that made an LR image, and whether it belongs to its HR."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sr_lightning.data.lr_origin import MATLAB, WAYS, mismatch, origin
from sr_lightning.data.sources import benchmark_set, bundled_photos
from sr_lightning.degradations import crop_to_multiple, downscale
from sr_lightning.images.files import read_image

PHOTOS = ("astronaut", "chelsea", "coffee")


@pytest.fixture(scope="module")
def photos():
    return {name: read_image(bundled_photos(name)[0].hr)[:, :241, :250] for name in PHOTOS}


def lr_of(hr, scale, make=downscale):
    return make(torch.from_numpy(np.ascontiguousarray(crop_to_multiple(hr, scale))), scale).numpy()


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_way_in_which_lr_was_made_is_found(photos, scale):
    for hr in photos.values():
        assert [origin(hr, lr_of(hr, scale, make), scale) for make in WAYS.values()] == list(WAYS)


def test_opencv_takes_the_four_nearest_pixels():
    """INTER_CUBIC at x2: weights -3, 19, 19, -3 of 32 (a = -0.75), along both axes, rounded once."""
    hr = np.random.default_rng(0).integers(0, 256, (3, 40, 48), dtype=np.uint8)
    padded = np.pad(hr, ((0, 0), (1, 1), (1, 1)), mode="edge").astype(np.int64)
    weights = (-3, 19, 19, -3)
    rows = sum(w * padded[:, i : i + 39 : 2] for i, w in enumerate(weights))
    both = sum(w * rows[:, :, i : i + 47 : 2] for i, w in enumerate(weights))
    lr = ((both + 512) >> 10).clip(0, 255).astype(np.uint8)
    assert origin(hr, lr, 2).startswith("OpenCV's INTER_CUBIC")


def test_the_benchmarks_have_lr_of_matlab(data_root):
    for pair in benchmark_set(data_root, "Set5", 3):
        assert origin(read_image(pair.hr), read_image(pair.lr), 3) in MATLAB


def test_lr_of_whole_hr_is_recognised_by_the_common_part(photos):
    """MATLAB makes ceil(size / scale) pixels from HR that is no multiple; the last ones depend on what is cropped."""
    hr = photos["chelsea"][:, 100:161, 100:170]
    padded = np.pad(hr, ((0, 0), (0, 2), (0, 2)), mode="symmetric")  # as its mirrored border
    lr = lr_of(padded, 3)
    assert lr.shape == (3, 21, 24) and origin(hr, np.ascontiguousarray(lr[:, :20, :23]), 3) == MATLAB[0]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_displaced_by_one_pixel_of_hr_does_not_belong(photos, scale):
    for hr in photos.values():
        for shift in ((1, 0), (0, 1), (-1, 1), (0, scale)):
            assert "displaced" in mismatch(hr, lr_of(np.roll(hr, shift, (1, 2)), scale), scale)


@pytest.mark.parametrize("scale", [2, 4])
def test_turned_lr_and_lr_of_another_picture_do_not_belong(photos, scale):
    for name, hr in photos.items():
        for turned in (hr[:, ::-1], hr[:, :, ::-1], hr[:, ::-1, ::-1]):
            assert "flipped or rotated" in mismatch(hr, lr_of(turned, scale), scale)
        square = hr[:, :240, :240]
        assert "flipped or rotated" in mismatch(square, lr_of(np.rot90(square, axes=(1, 2)), scale), scale)
        for other in photos.keys() - {name}:
            assert "another picture" in mismatch(hr, lr_of(photos[other], scale), scale)


@pytest.mark.parametrize("scale", [2, 4])
def test_compressed_noisy_and_blurred_lr_belongs(photos, scale):
    rng = np.random.default_rng(0)
    for hr in photos.values():
        lr = lr_of(hr, scale)
        file = io.BytesIO()
        Image.fromarray(lr.transpose(1, 2, 0)).save(file, "JPEG", quality=50)
        compressed = np.array(Image.open(file)).transpose(2, 0, 1)
        noisy = (lr + rng.normal(0, 10, lr.shape)).clip(0, 255).astype(np.uint8)
        blurred = lr_of(np.mean([np.roll(hr, s, 1) for s in (-2, -1, 0, 1, 2)], axis=0).astype(np.uint8), scale)
        for other in (compressed, noisy, blurred):
            assert origin(hr, other, scale) is None and mismatch(hr, other, scale) is None


def test_images_without_details_belong_together_only():
    flat, noise = np.full((3, 64, 64), 9, np.uint8), np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    assert mismatch(flat, lr_of(flat, 2) + 1, 2) is None
    assert "no details" in mismatch(noise, lr_of(flat, 2), 2)
