"""JPEG compared with Pillow, bit for bit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin, features

from sr_lightning.degradations import JPEG
from sr_lightning.degradations.jpeg import CHROMA, LUMA, jpeg, quality_table
from sr_lightning.degradations.padded_batch import PaddedBatch, as_int64
from sr_lightning.errors import InputError

SIZES = [(96, 96), (24, 24), (37, 50), (23, 9), (16, 17), (1, 5), (50, 31)]
SMOOTH = np.asarray(
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((96, 96), 3)
)


def compressed(image, quality):
    """The image after Pillow has saved it as JPEG and read it again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return Image.open(file)


def padded(images):
    """Arrays (h, w, 3) -> images padded to one size with random values, and their sizes."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    planes = torch.rand(len(images), 3, *sizes.amax(0).tolist(), dtype=torch.float64)
    for plane, image, (h, w) in zip(planes, images, sizes, strict=True):
        plane[:, :h, :w] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) / 255
    return planes, sizes


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 51, 75, 88, 95, 100])
def test_an_image_is_compressed_exactly_like_by_pillow(quality):
    if not features.check_feature("libjpeg_turbo"):
        pytest.skip("this Pillow has another JPEG library")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    images = [np.ascontiguousarray(image[:h, :w]) for image in (SMOOTH, noise) for h, w in SIZES]
    planes, sizes = padded(images)
    ours = jpeg(planes, torch.full((len(images),), quality), sizes)
    for image, result in zip(images, ours, strict=True):
        h, w = image.shape[:2]
        levels = (result[:, :h, :w] * 255).round().numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(levels, np.asarray(compressed(image, quality)))


@pytest.mark.parametrize("quality", [3, 30, 50, 77, 95])
def test_the_quantisation_tables_match_pillows(quality):
    tables = compressed(SMOOTH, quality).quantization
    for number, table in enumerate((LUMA, CHROMA)):
        ours = quality_table(table, torch.tensor([quality]))[0].flatten().tolist()
        file = list(tables[number])
        assert sorted(ours) == sorted(file) and ours[:2] == file[:2]
    assert JpegImagePlugin.get_sampling(compressed(SMOOTH, quality)) == 2  # 4:2:0


def test_each_image_has_its_own_quality_and_does_not_depend_on_the_batch():
    planes, sizes = padded([SMOOTH, SMOOTH[:40, :50], SMOOTH])
    qualities = torch.tensor([95, 60, 10])
    together = jpeg(planes, qualities, sizes)
    for i, (h, w) in enumerate(sizes):
        alone = jpeg(planes[i : i + 1, :, :h, :w], qualities[i : i + 1], sizes[i : i + 1])
        assert torch.equal(together[i, :, :h, :w], alone[0])
    errors = (together - planes)[[0, 2]].square().mean(dim=(1, 2, 3))
    assert errors[1] > 5 * errors[0] > 0


def test_images_are_first_clamped_and_rounded_to_8_bits():
    planes, sizes = padded([SMOOTH])
    moved = planes + 0.3 / 255
    moved[planes == planes.max()] += 1
    expected = jpeg(torch.where(planes == planes.max(), 1.0, planes), torch.tensor([80]), sizes)
    assert torch.equal(jpeg(moved, torch.tensor([80]), sizes), expected)


def test_every_quality_in_the_range_is_drawn():
    random_bits = as_int64(np.random.Philox(key=0).random_raw(400)).view(200, 2)
    batch = PaddedBatch(
        torch.from_numpy(SMOOTH[:16, :16].transpose(2, 0, 1) / 255).expand(200, -1, -1, -1), torch.full((200, 2), 16)
    )
    drawn = JPEG(quality=(20, 22), probability=0.5)(batch, random_bits, None).images
    possible = [batch.images[0], *(jpeg(batch.images[:1], torch.tensor([q]), batch.sizes[:1])[0] for q in (20, 21, 22))]
    counts = [int((drawn == image).flatten(1).all(1).sum()) for image in possible]
    assert sum(counts) == 200 and 75 < counts[0] < 125 and all(15 < count < 55 for count in counts[1:])


def test_all_invalid_settings_are_named():
    with pytest.raises(InputError, match=r"jpeg: quality=\[0, 30\]: give \[low, high\], integers from 1 to 100"):
        JPEG(quality=[0, 30])
    with pytest.raises(InputError, match=r"quality=\[30, 50.5\].*probability=-1"):
        JPEG(quality=[30, 50.5], probability=-1)
