"""The search for images that show the same picture, on copies made of photos."""

import io

import numpy as np
import pytest
from PIL import Image

from sr_lightning.data.copies import SYMMETRIES, describe, find_copies, turn
from sr_lightning.data.sources import PHOTOS, bundled_photos, image_folder
from sr_lightning.images.files import read_image


@pytest.fixture(scope="module")
def photos():
    """The bundled photos without one of the motorcycles: Pillow images of at most 480 pixels a side, and described."""
    images = []
    for pair in bundled_photos([name for name in PHOTOS if name != "motorcycle_right"]):
        image = Image.open(pair.hr).convert("RGB")
        image.thumbnail((480, 480))
        images.append(image)
    return images, [describe(planes(image)) for image in images]


def planes(image):
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def copies_of(photos, *changed):
    """The copies among the photos and the changed ones: {(index of the changed one, index of the photo): copy}."""
    described = photos[1]
    found = find_copies([*described, *(describe(planes(image)) for image in changed)])
    return {(copy.first - len(described), copy.second): copy for copy in found}


def compressed(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def part_of(image, share):
    width, height = (round(side * share**0.5) for side in image.size)
    left, top = (image.width - width) // 3, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def test_different_photos_are_no_copies(photos):
    assert copies_of(photos) == {}


def test_different_photos_with_the_same_stamp_are_no_copies(photos):
    stamp = photos[0][1].crop((120, 80, 280, 240))  # of the motorcycle
    changed = [photos[0][index].copy() for index in (0, 11)]  # rocket, astronaut
    for image in changed:
        image.paste(stamp, (20, 20))
    assert find_copies([describe(planes(image)) for image in changed]) == []


@pytest.mark.parametrize(
    ("share", "factor", "quality"),
    [(1, 1, 100), (0.25, 1, 100), (1, 0.5, 100), (1, 2, 100), (1, 1, 30), (0.5, 0.7, 50), (0.8, 1.4, 30)],
)
def test_cropped_rescaled_and_compressed_copies_are_found(photos, share, factor, quality):
    chosen = {index: photos[0][index] for index in (0, 1, 11, 13)}  # rocket, motorcycle, astronaut, coffee
    changed = []
    for image in chosen.values():
        part = part_of(image, share)
        size = [round(side * factor) for side in part.size]
        changed.append(compressed(part.resize(size, Image.Resampling.BICUBIC), quality))
    found = copies_of(photos, *changed)
    assert list(found) == list(enumerate(chosen))
    for copy in found.values():
        assert copy.symmetry == 0 and copy.share > 0.9 and copy.correlation > 0.9


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_flips_and_rotations_are_found_with_their_symmetry(photos, symmetry):
    index = 12
    image = photos[0][index]
    turned = image if symmetry == 0 else image.transpose(list(Image.Transpose)[symmetry - 1])
    (copy,) = copies_of(photos, part_of(turned, 0.5)).values()
    back = turn(describe(planes(turned))[0], copy.symmetry)
    assert copy.second == index and back.shape == photos[1][index][0].shape
    assert (back.float() - photos[1][index][0].float()).abs().mean() < 2


def test_scale_is_that_of_the_reduced_images(photos):
    image = photos[0][0]
    (copy,) = copies_of(photos, image.resize([side // 2 for side in image.size])).values()
    assert copy.scale == pytest.approx(320 / 240, rel=0.02)


def test_images_without_corners_are_no_copies():
    flat = describe(np.zeros((3, 50, 60), np.uint8))
    small = describe(np.random.default_rng(0).integers(0, 256, (1, 5, 7), np.uint8))
    assert find_copies([flat, flat, small, small]) == []


@pytest.mark.slow
def test_womans_source_is_found_in_bsds500_and_nothing_else(data_root):
    pairs = image_folder([str(data_root / "BSDS500" / "train"), str(data_root / "benchmark" / "Set5" / "HR")])
    wanted = [pair for pair in pairs if pair.name.startswith("3") or "Set5" in str(pair.hr)]
    found = find_copies([describe(read_image(pair.hr)) for pair in wanted])
    assert [(wanted[copy.second].name, wanted[copy.first].name) for copy in found] == [("302003", "woman")]
