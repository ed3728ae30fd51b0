"""Patch draws against an independent Philox; gathered patches against NumPy's rot90 and flip."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from sr_lightning.data import patches as patches_module
from sr_lightning.data.patches import DeviceGather, PatchDraw, PatchSampler, gather
from sr_lightning.data.store import ImageStore
from sr_lightning.errors import InputError


def make_store(*lr_sizes, scale=3, seed=0):
    """A store of noise whose LR is the first pixel of each scale x scale of its HR."""
    rng = np.random.default_rng(seed)
    pixels, starts, length = [], {"hr": [], "lr": []}, 0
    for height, width in lr_sizes:
        hr = rng.integers(0, 256, (height * scale, width * scale, 3), dtype=np.uint8)
        for name, image in (("hr", hr), ("lr", hr[::scale, ::scale])):
            pixels.append(image.reshape(-1))
            starts[name].append(length)
            length += image.size
    sizes = np.array(lr_sizes)
    return ImageStore(
        names=tuple(f"image {i}" for i in range(len(lr_sizes))),
        scale=scale,
        pixels=np.concatenate(pixels),
        hr_sizes=sizes * scale,
        lr_sizes=sizes,
        hr_starts=np.array(starts["hr"]),
        lr_starts=np.array(starts["lr"]),
    )


def make_sampler(store, **changes):
    return PatchSampler(store, **{"patch_size": 4, "batch_size": 16, "seed": 0} | changes)


def philox(key, length):
    """Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), counters 1, 2, ..."""
    words = []
    for counter in range(1, length // 4 + 2):
        state, (k0, k1) = [counter, 0, 0, 0], key
        for _ in range(10):
            left, right = state[0] * 0xD2E7470EE14C6C93, state[2] * 0xCA5A826395121157
            low = 2**64 - 1
            state = [right >> 64 ^ state[1] ^ k0, right & low, left >> 64 ^ state[3] ^ k1, left & low]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low, (k1 + 0xBB67AE8584CAA73B) & low
        words += state
    return words[:length]


def upright(patch, symmetry):
    """Undo a symmetry with NumPy: (C, p, p)."""
    if symmetry & 4:
        patch = np.rot90(np.flip(patch, axis=2), axes=(1, 2))  # exchanges rows and columns
    if symmetry & 2:
        patch = np.flip(patch, axis=2)
    if symmetry & 1:
        patch = np.flip(patch, axis=1)
    return patch


def test_batches_are_the_same_on_every_machine():
    sizes = [(6, 5), (4, 9), (7, 7)]
    places = [(i, y, x) for i, (h, w) in enumerate(sizes) for y in range(h - 3) for x in range(w - 3)]
    sampler = make_sampler(make_store(*sizes), seed=42)
    for batch_number in (0, 1, 10**9):
        expected = [
            (*places[number // 8], number % 8)
            for number in (word % (8 * len(places)) for word in philox((42, batch_number), 16))
        ]
        assert list(zip(*sampler.draw(batch_number), strict=True)) == expected


def test_batch_does_not_depend_on_earlier_batches():
    store = make_store((9, 9), (8, 12))
    forward = [make_sampler(store).draw(k) for k in range(5)]
    sampler = make_sampler(store)
    for k in (3, 0, 4, 4, 1):
        np.testing.assert_array_equal(sampler.draw(k), forward[k])
    for one, other in pairwise(forward):
        assert not np.array_equal(one, other)
    assert not np.array_equal(make_sampler(store, seed=1).draw(0), forward[0])


def test_places_and_symmetries_are_uniform():
    sampler = make_sampler(make_store((6, 5), (4, 9), (4, 4)), batch_size=64, seed=5)
    counts = Counter()
    for k in range(300):
        counts.update(zip(*sampler.draw(k), strict=True))
    cells = 8 * (3 * 2 + 1 * 6 + 1)
    expected = 300 * 64 / cells
    assert len(counts) == cells
    # Chi-square with cells - 1 = 103 degrees of freedom: 103 +- 14.
    assert 65 < sum((count - expected) ** 2 / expected for count in counts.values()) < 150


def test_augmentation_does_not_change_the_places():
    store = make_store((9, 9), (8, 12))
    with_symmetries, without = make_sampler(store).draw(7), make_sampler(store, augment=False).draw(7)
    for one, other in zip(with_symmetries[:3], without[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert with_symmetries.symmetry.any() and not without.symmetry.any()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_batch_of_one(world_size):
    store = make_store((9, 9), (8, 12))
    whole = np.array(make_sampler(store).draw(3))
    shared = np.empty_like(whole)
    for rank in range(world_size):
        part = np.array(make_sampler(store, rank=rank, world_size=world_size).draw(3))
        assert part.shape == (4, 16 // world_size)
        shared[:, rank::world_size] = part
    np.testing.assert_array_equal(shared, whole)


def test_terabytes_do_not_overflow():
    sizes = np.full((200_000, 2), 2000)
    empty = np.empty(0, np.uint8)
    store = ImageStore(("",) * len(sizes), 2, empty, sizes * 2, sizes, np.zeros(len(sizes)), np.zeros(len(sizes)))
    image, top, left, _ = make_sampler(store, batch_size=4096).draw(0)
    assert 0 <= image.min() < 2000 and 198_000 < image.max() < 200_000
    for place in (top, left):
        assert 0 <= place.min() < 20 and 1976 < place.max() <= 1996


def test_impossible_arguments_are_named():
    store = make_store((9, 9), (8, 12))
    with pytest.raises(InputError, match=r"patch_size=9 .*\n  image 1: LR of 8x12"):
        make_sampler(store, patch_size=9)
    with pytest.raises(InputError, match="batch_size=16: must be a multiple of the number of processes, 3"):
        make_sampler(store, world_size=3)
    with pytest.raises(InputError, match="seed=-1"):
        make_sampler(store, seed=-1)


def test_symmetries_are_those_of_the_square():
    store = make_store((4, 4))
    zeros = np.zeros(8, np.int64)
    _, patches = gather(store, PatchDraw(zeros, zeros, zeros, np.arange(8)), 4)
    hr = store.hr(0)
    square = [np.rot90(mirrored, turns, (1, 2)) for mirrored in (hr, hr[:, ::-1]) for turns in range(4)]
    assert {patch.numpy().tobytes() for patch in patches} == {image.tobytes() for image in square}
    assert len({image.tobytes() for image in square}) == 8


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("patch_size", [1, 4, 7])
def test_patches_are_turned_crops_of_one_place(scale, patch_size):
    store = make_store((7, 9), (12, 8), (10, 10), scale=scale)
    sampler = make_sampler(store, patch_size=patch_size, batch_size=200)
    draw = sampler.draw(0)
    lr, hr = gather(store, draw, patch_size)
    assert lr.dtype == hr.dtype == torch.uint8 and lr.is_contiguous() and hr.is_contiguous()
    assert lr.shape == (200, 3, patch_size, patch_size)
    assert hr.shape == (200, 3, patch_size * scale, patch_size * scale)
    for i, (image, top, left, symmetry) in enumerate(zip(*draw, strict=True)):
        lr_patch, hr_patch = upright(lr[i].numpy(), symmetry), upright(hr[i].numpy(), symmetry)
        np.testing.assert_array_equal(lr_patch, store.lr(image)[:, top:, left:][:, :patch_size, :patch_size])
        np.testing.assert_array_equal(hr_patch[:, ::scale, ::scale], lr_patch)
        y, x, side = top * scale, left * scale, patch_size * scale
        np.testing.assert_array_equal(hr_patch, store.hr(image)[:, y : y + side, x : x + side])


def test_batches_larger_than_the_cache_are_the_same(monkeypatch):
    store = make_store((7, 9), (12, 8))
    draw = make_sampler(store, batch_size=50).draw(0)
    whole = gather(store, draw, 4)
    for patches_at_once in (0, 1, 7):
        monkeypatch.setattr(patches_module, "CACHE_BYTES", patches_at_once * 3 * 12 * 12)
        for piecewise, expected in zip(gather(store, draw, 4), whole, strict=True):
            assert torch.equal(piecewise, expected)


def test_last_place_of_the_last_image_is_drawn():
    store = make_store((5, 6), (6, 5))
    one = [np.array([value]) for value in (1, 2, 1)]
    for symmetry in range(8):
        lr, hr = gather(store, PatchDraw(*one, np.array([symmetry])), 4)
        np.testing.assert_array_equal(upright(lr[0].numpy(), symmetry), store.lr(1)[:, -4:, -4:])
        np.testing.assert_array_equal(upright(hr[0].numpy(), symmetry), store.hr(1)[:, -12:, -12:])


def test_batch_is_not_overwritten_by_the_next():
    store = make_store((9, 9), (8, 12))
    sampler = make_sampler(store)
    batches = [gather(store, sampler.draw(k), 4) for k in range(3)]
    for k, (lr, hr) in enumerate(batches):
        again_lr, again_hr = gather(store, sampler.draw(k), 4)
        assert torch.equal(lr, again_lr) and torch.equal(hr, again_hr)


@pytest.mark.parametrize("patch_size", [1, 5])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_device_gathers_the_same_batch(device, patch_size):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    store = make_store((7, 9), (12, 8), (10, 10), scale=2)
    draw = make_sampler(store, patch_size=patch_size, batch_size=128).draw(0)
    gathered = DeviceGather(store, device)(draw, patch_size)
    for ours, expected in zip(gathered, gather(store, draw, patch_size), strict=True):
        assert ours.device.type == device and ours.is_contiguous() and torch.equal(ours.cpu(), expected)


def test_images_too_large_for_the_device_are_an_error(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(InputError, match=r"0\.0 GB, more than cpu has free; set data\.residence=mmap"):
        DeviceGather(make_store((7, 9)), "cpu")
