"""The image store: its content, its name, and builders that race, are killed or run out of space."""

import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from sr_lightning.data import file_digests, store_build
from sr_lightning.data import store as store_module
from sr_lightning.data.datamodule import SRDataModule, TrainBatches
from sr_lightning.data.patches import PatchSampler
from sr_lightning.data.sources import Pair, benchmark_set
from sr_lightning.data.store import ImageStore, verify
from sr_lightning.data.store_index import checksum
from sr_lightning.degradations import Bicubic
from sr_lightning.errors import InputError
from sr_lightning.evaluation.scoring import load_sample
from sr_lightning.images.files import read_image, write_image
from sr_lightning.metrics import Protocol


class FirstPixel:
    """The first pixel of each scale x scale block, so that LR identifies its source."""

    def __init__(self, version=1):
        self.key = {"name": "first pixel", "version": version}

    def __call__(self, hr, scale):
        return hr[:, ::scale, ::scale]


def images(folder, *sizes, seed=0):
    """PNG files of noise, (H, W) each -> pairs and planes."""
    rng = np.random.default_rng(seed)
    pairs, planes = [], []
    for i, (height, width) in enumerate(sizes):
        planes.append(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        pairs.append(Pair(f"{i:03}", folder / f"{i:03}.png"))
        write_image(pairs[-1].hr, planes[-1])
    return pairs, planes


def age(folder, seconds=60):
    """Make files look older, so that their digests may be remembered."""
    for file in folder.glob("*.png"):
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def stores(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


@pytest.mark.parametrize("residence", ["mmap", "memory"])
def test_hr_is_cropped_to_a_multiple_of_the_scale_and_lr_made_from_all(tmp_path, residence):
    pairs, planes = images(tmp_path / "hr", (20, 31), (9, 8), (8, 13))
    store = ImageStore.open(pairs, 3, FirstPixel(), tmp_path / "cache", residence)
    assert len(store) == 3 and store.names == ("000", "001", "002")
    assert store.hr_sizes.tolist() == [[18, 30], [9, 6], [6, 12]] and store.lr_sizes.tolist() == [
        [6, 10],
        [3, 2],
        [2, 4],
    ]
    for i, image in enumerate(planes):
        height, width = store.hr_sizes[i]
        np.testing.assert_array_equal(store.hr(i), image[:, :height, :width])
        np.testing.assert_array_equal(store.lr(i), image[:, :height:3, :width:3])
        assert store.hr(i).dtype == np.uint8 and not store.hr(i).flags.writeable


def test_given_lr_is_stored_unchanged(tmp_path):
    pairs, planes = images(tmp_path / "hr", (9, 11), (8, 8))
    lr_pairs, lr_planes = images(tmp_path / "lr", (4, 5), (4, 4), seed=1)
    pairs = [Pair(hr.name, hr.hr, lr.hr) for hr, lr in zip(pairs, lr_pairs, strict=True)]
    store = ImageStore.open(pairs, 2, None, tmp_path / "cache")
    for i in range(2):
        np.testing.assert_array_equal(store.lr(i), lr_planes[i])
    np.testing.assert_array_equal(store.hr(0), planes[0][:, :8, :10])


def imresize(image, scale, factors=None):
    """MATLAB's `imresize(image, 1/scale)` with its border mirrored, in float64; other factors stretch the image.

    Its size is rounded up, its scale is kept: output i is at input (i + 0.5) * scale - 0.5, also at the end.
    """
    for axis in (1, 2):
        side = image.shape[axis]
        factor = scale if factors is None else side / -(-side // scale)
        centers = (np.arange(-(-side // scale)) + 0.5) * factor - 0.5
        taps = np.floor(centers - 2 * factor)[:, None] + np.arange(int(4 * factor) + 2)
        distance = np.abs(centers[:, None] - taps) / factor
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance <= 1, near, np.where(distance <= 2, far, 0))
        weights /= weights.sum(axis=1, keepdims=True)
        mirrored = np.r_[:side, :side][np.mod(taps, 2 * side).astype(int)]
        mirrored = np.where(np.mod(taps, 2 * side) < side, mirrored, side - 1 - mirrored)
        lines = np.einsum("op,op...->o...", weights, np.moveaxis(image, axis, 0)[mirrored].astype(float))
        image = np.moveaxis(np.floor(np.clip(lines, 0, 255) + 0.5).astype(np.uint8), 0, axis)
    return image


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_part_common_to_hr_and_lr_of_a_size_rounded_up_is_used(data_root, tmp_path, scale):
    source = read_image(data_root / "benchmark" / "Set5" / "HR" / "bird.png")
    hr = source[:, : 40 * scale + 1, : 50 * scale + scale - 1]
    write_image(tmp_path / "hr.png", hr)
    lr = imresize(hr, scale)
    assert lr.shape == (3, 41, 51)
    write_image(tmp_path / "lr.png", lr)
    pair = Pair("a", tmp_path / "hr.png", tmp_path / "lr.png")
    store = ImageStore.open([pair], scale, None, tmp_path / "cache")
    np.testing.assert_array_equal(store.hr(0), hr[:, : 40 * scale, : 50 * scale])
    np.testing.assert_array_equal(store.lr(0), lr[:, :40, :50])
    made = Bicubic()(torch.from_numpy(np.ascontiguousarray(store.hr(0))), scale).numpy()
    np.testing.assert_array_equal(
        made[:, :38, :48], lr[:, :38, :48]
    )  # aligned: only the border depends on what was cropped
    sample = load_sample(pair, scale, Protocol(), None)
    np.testing.assert_array_equal((sample.lr[0] * 255).round().byte().numpy(), lr[:, :40, :50])
    assert sample.hr.shape == (1, 3, 40 * scale, 50 * scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_of_a_size_rounded_up_that_is_not_aligned_is_refused(data_root, tmp_path, scale):
    source = read_image(data_root / "benchmark" / "Set5" / "HR" / "bird.png")
    hr = source[:, : 40 * scale + 1, : 50 * scale]
    write_image(tmp_path / "hr.png", hr)
    write_image(tmp_path / "lr.png", imresize(hr, scale, factors="stretched"))
    pair = Pair("a", tmp_path / "hr.png", tmp_path / "lr.png")
    message = rf"lr\.png: 41x50 was not made by the factor {scale} from {40 * scale + 1}x{50 * scale}: .*not aligned"
    with pytest.raises(InputError, match=message):
        ImageStore.open([pair], scale, None, tmp_path / "cache")
    with pytest.raises(InputError, match=message):
        load_sample(pair, scale, Protocol(), None)


def test_gray_is_repeated(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    write_image(tmp_path / "a.png", gray)
    write_image(tmp_path / "lr.png", gray[:, :4, :4])
    store = ImageStore.open([Pair("a", tmp_path / "a.png", tmp_path / "lr.png")], 2, None, tmp_path / "cache")
    np.testing.assert_array_equal(store.hr(0), np.repeat(gray, 3, axis=0))
    np.testing.assert_array_equal(store.lr(0), np.repeat(gray[:, :4, :4], 3, axis=0))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_made_for_the_store_equals_the_published_files(data_root, tmp_path, scale):
    pairs = benchmark_set(data_root, "Set5", scale)
    store = ImageStore.open([Pair(p.name, p.hr) for p in pairs], scale, Bicubic("replicate"), tmp_path)
    for i, pair in enumerate(pairs):
        np.testing.assert_array_equal(store.lr(i), read_image(pair.lr))


def test_mismatched_pairs_are_all_named_and_no_file_is_left(tmp_path):
    pairs, _ = images(tmp_path / "hr", (8, 8), (8, 8), (1, 8), (8, 8))
    lr_pairs, _ = images(tmp_path / "lr", (4, 4), (4, 5), (2, 2))
    (tmp_path / "hr" / "003.png").write_bytes(b"no image")
    pairs = [*(Pair(p.name, p.hr, q.hr) for p, q in zip(pairs[:2], lr_pairs[:2], strict=True)), *pairs[2:]]
    with pytest.raises(InputError) as caught:
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith("3 of 4 images cannot be used:")
    assert "lr/001.png: 4x5, but HR of 8x8 at scale 2 has LR of 4x4" in message
    assert "hr/002.png: 1x8 has no pixel left at scale 2" in message
    assert "hr/003.png: not an image" in message
    assert stores(tmp_path / "cache") == []


def test_image_damaged_behind_its_header_is_named_and_no_file_is_left(tmp_path):
    pairs, _ = images(tmp_path / "hr", *[(64, 64)] * 5)
    for i in (1, 3):
        pairs[i].hr.write_bytes(pairs[i].hr.read_bytes()[:2000])
    with pytest.raises(
        InputError, match=r"(?s)^2 of 5 images cannot be used:.*001\.png: .*003\.png: cannot be decoded"
    ):
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    assert stores(tmp_path / "cache") == []


def test_wrong_arguments_are_refused(tmp_path):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    with pytest.raises(InputError, match="the data set has no images"):
        ImageStore.open([], 2, FirstPixel(), tmp_path / "cache")
    with pytest.raises(InputError, match="residence=disk: choose mmap or memory"):
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache", "disk")
    with pytest.raises(InputError, match=r"1 images have no LR file, and no degradation is given:\n  000"):
        ImageStore.open(pairs, 2, None, tmp_path / "cache")
    with pytest.raises(
        InputError, match=r"(?s)1 of 1 images .*\n  \S*absent\.png: no such file\n  \S*gone\.png: no such file"
    ):
        ImageStore.open([Pair("a", tmp_path / "absent.png", tmp_path / "gone.png")], 2, None, tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot create this folder .*set another cache_dir"):
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "file" / "cache")


def test_degradation_of_the_wrong_size_is_an_error(tmp_path):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    degradation = FirstPixel()
    degradation.__class__ = type("TooLarge", (FirstPixel,), {"__call__": lambda self, hr, scale: hr})
    with pytest.raises(InputError, match=r"has uint8 of \(3, 8, 8\), expected uint8 of \(3, 4, 4\)"):
        ImageStore.open(pairs, 2, degradation, tmp_path / "cache")


def test_too_little_space_is_an_error_before_decoding(tmp_path, monkeypatch):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store_build.shutil, "disk_usage", lambda folder: usage._replace(free=239))
    monkeypatch.setattr(store_build, "load_pair", None)
    with pytest.raises(InputError, match="240 bytes needed, 239 free"):
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    assert stores(tmp_path / "cache") == []


def test_store_is_built_once_for_the_same_files_in_any_folder(tmp_path, monkeypatch):
    pairs, planes = images(tmp_path / "hr", (8, 8), (12, 8))
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    shutil.copytree(tmp_path / "hr", tmp_path / "other")
    os.rename(tmp_path / "other" / "000.png", tmp_path / "other" / "renamed.png")
    monkeypatch.setattr(store_module, "build", None)
    files = (tmp_path / "other" / "renamed.png", tmp_path / "other" / "001.png")
    store = ImageStore.open([Pair(file.stem, file) for file in files], 2, FirstPixel(), tmp_path / "cache")
    assert store.names == ("renamed", "001")
    np.testing.assert_array_equal(store.hr(1), planes[1])


def test_content_order_scale_and_degradation_each_make_another_store(tmp_path):
    pairs, planes = images(tmp_path / "hr", (8, 8), (12, 8))
    cache = tmp_path / "cache"

    def opened(pairs=pairs, scale=2, degradation=None):
        ImageStore.open(pairs, scale, degradation or FirstPixel(), cache)
        return len(stores(cache))

    assert opened() == 1
    assert opened(pairs[::-1]) == 2
    assert opened(scale=4) == 3
    assert opened(degradation=FirstPixel(version=2)) == 4
    assert opened(degradation=Bicubic("mirror")) == 5
    assert opened(degradation=Bicubic("replicate")) == 6
    lr = images(tmp_path / "lr", (4, 4), seed=7)[0][0].hr
    with_lr = [Pair("000", pairs[0].hr, lr), pairs[1]]
    assert opened(with_lr) == 7
    write_image(pairs[0].hr, 255 - planes[0])
    assert opened() == 8
    np.testing.assert_array_equal(ImageStore.open(pairs, 2, FirstPixel(), cache).hr(0), 255 - planes[0])


def test_degradation_does_not_matter_where_lr_is_given(tmp_path):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    lr = images(tmp_path / "lr", (4, 4))[0][0].hr
    for degradation in (None, FirstPixel(1), FirstPixel(2)):
        ImageStore.open([Pair("a", pairs[0].hr, lr)], 2, degradation, tmp_path / "cache")
    assert len(stores(tmp_path / "cache")) == 1


def test_files_are_hashed_once_and_again_after_a_change(tmp_path, monkeypatch):
    pairs, planes = images(tmp_path / "hr", (8, 8), (8, 8))
    age(tmp_path / "hr")
    read = []
    digest = file_digests._digest
    monkeypatch.setattr(file_digests, "_digest", lambda file: (read.append(file.name), digest(file))[1])

    def opened():
        read.clear()
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
        return sorted(read)

    assert opened() == ["000.png", "001.png"]
    assert opened() == []
    write_image(pairs[1].hr, 255 - planes[1])
    assert opened() == ["001.png"]
    assert opened() == ["001.png"]  # too young to be sure that it does not change within the clock's tick
    age(tmp_path / "hr")
    assert opened() == ["000.png", "001.png"]
    assert opened() == []
    (tmp_path / "cache" / "digests.json").write_text("{")  # lost, not fatal
    assert opened() == ["000.png", "001.png"]


def test_digests_are_saved_while_files_are_hashed(tmp_path, monkeypatch):
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 5)
    age(tmp_path / "hr")
    monkeypatch.setattr(file_digests, "SAVED_TOGETHER", 2)
    digest = file_digests._digest

    def stopping(file):
        if file.name == "004.png":
            raise KeyboardInterrupt
        return digest(file)

    monkeypatch.setattr(file_digests, "_digest", stopping)
    with pytest.raises(KeyboardInterrupt):
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    assert len(json.loads((tmp_path / "cache" / "digests.json").read_text())) == 4


def test_truncated_store_is_rebuilt(tmp_path, caplog):
    pairs, planes = images(tmp_path / "hr", (8, 8))
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").glob("*/pixels")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    store = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    np.testing.assert_array_equal(store.hr(0), planes[0])
    assert "is damaged: the images are decoded again" in caplog.text


def edited(content):
    """A change of some values of index.json, its checksum left as it was."""
    return lambda store: (store / "index.json").write_text(
        json.dumps(json.loads((store / "index.json").read_text()) | content)
    )


def linked_to_nothing(store):
    shutil.rmtree(store)
    store.symlink_to("absent")


def replaced_by_a_file(store):
    shutil.rmtree(store)
    store.touch()


def folder_in_place_of(name):
    return lambda store: ((store / name).unlink(), (store / name).mkdir())


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda store, text=text: (store / "index.json").write_bytes(text) for text in (b"", b"{}", b"[1]", b"\xff")),
        *(
            edited(content)
            for content in ({"hr_sizes": [[4, 12], [8, 8]]}, {"hr_sizes": "8x8"}, {"hr_sizes": [[8], 8]})
        ),
        *(edited(content) for content in ({"checksum": 0}, {"hr_sizes": [[8, 8]], "bytes": 240}, {"bytes": None})),
        lambda store: (store / "index.json").write_text("[" * 100_000),
        lambda store: (store / "index.json").unlink(),
        lambda store: (store / "pixels").unlink(),
        lambda store: (store / "pixels").write_bytes(bytes(479)),
        folder_in_place_of("index.json"),
        folder_in_place_of("pixels"),
        linked_to_nothing,
        replaced_by_a_file,
    ],
)
def test_damaged_store_is_rebuilt_with_one_line(tmp_path, caplog, damage):
    pairs, planes = images(tmp_path / "hr", (8, 8), (8, 8))
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    damage(tmp_path / "cache" / stores(tmp_path / "cache")[0])
    for _ in range(2):  # the second finds it whole
        store = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
        for i in range(2):
            np.testing.assert_array_equal(store.hr(i), planes[i])
        assert caplog.text.count("WARNING") == caplog.text.count("is damaged: the images are decoded again") == 1


@pytest.mark.parametrize("content", [b"[]", b"1", b"\xff", b"[" * 100_000, None])
def test_damaged_digests_are_computed_again_with_one_line(tmp_path, caplog, content):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    age(tmp_path / "hr")
    memory = tmp_path / "cache" / "digests.json"
    memory.parent.mkdir()
    if content is None:
        memory.mkdir()
    else:
        memory.write_bytes(content)
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    assert caplog.text.count("WARNING") == caplog.text.count("digests.json is damaged") == 1
    assert len(json.loads(memory.read_text())) == 1


@pytest.mark.parametrize("entry", [None, [], [1, 2], "abc", {"a": 1}, [1, 2, 3], [None, None, None]])
def test_damaged_entries_of_digests_are_computed_again(tmp_path, entry):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    age(tmp_path / "hr")
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    memory = tmp_path / "cache" / "digests.json"
    whole = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(whole, entry)))
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    assert json.loads(memory.read_text()) == whole and len(stores(tmp_path / "cache")) == 1


def test_entry_of_the_cache_that_cannot_be_replaced_is_named(tmp_path):
    pairs, _ = images(tmp_path / "hr", (8, 8))
    ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    store = tmp_path / "cache" / stores(tmp_path / "cache")[0]
    shutil.rmtree(store)
    lock = store.with_suffix(".lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(InputError, match=rf"{lock}: the decoded images cannot be stored .*remove what is in the way"):
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")


def test_wrong_pixels_are_found_by_verify_and_decoded_again(tmp_path, caplog):
    pairs, planes = images(tmp_path / "hr", (8, 8))
    arguments = (pairs, 2, FirstPixel(), tmp_path / "cache")
    assert verify(*arguments)  # no store yet
    ImageStore.open(*arguments)
    assert verify(*arguments) and "WARNING" not in caplog.text
    (pixels,) = (tmp_path / "cache").glob("*/pixels")
    content = pixels.read_bytes()
    pixels.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert not verify(*arguments)
    assert f"{pixels.parent} is damaged or has no checksum: it is removed" in caplog.text
    np.testing.assert_array_equal(ImageStore.open(*arguments).hr(0), planes[0])
    assert verify(*arguments)


def test_store_of_an_earlier_version_with_one_checksum_of_all_pixels_is_verified_by_it(tmp_path):
    pairs, _ = images(tmp_path / "hr", (8, 8), (8, 8))
    arguments = (pairs, 2, FirstPixel(), tmp_path / "cache")
    folder = ImageStore.open(*arguments).file.parent
    index = json.loads((folder / "index.json").read_text())
    index["sha256"] = hashlib.sha256((folder / "pixels").read_bytes()).hexdigest()
    index["checksum"] = checksum(folder.name, index)
    (folder / "index.json").write_text(json.dumps(index))
    assert verify(*arguments) and len(ImageStore.open(*arguments)) == 2
    content = (folder / "pixels").read_bytes()
    (folder / "pixels").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not verify(*arguments)


def test_store_of_an_earlier_version_is_used_until_verified(tmp_path, caplog, monkeypatch):
    pairs, planes = images(tmp_path / "hr", (8, 8))
    arguments = (pairs, 2, FirstPixel(), tmp_path / "cache")
    ImageStore.open(*arguments)
    (index,) = (tmp_path / "cache").glob("*/index.json")
    index.write_text('{"scale": 2, "bytes": 240, "hr_sizes": [[8, 8]]}')
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "build", None)
        np.testing.assert_array_equal(ImageStore.open(*arguments).hr(0), planes[0])
    assert "WARNING" not in caplog.text
    assert not verify(*arguments)
    ImageStore.open(*arguments)
    assert verify(*arguments)


@pytest.mark.parametrize("residence", ["mmap", "memory"])
def test_started_workers_map_the_pixels(tmp_path, residence):
    pairs, planes = images(tmp_path / "hr", (200, 300), (200, 300))
    store = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache", residence)
    sampler = PatchSampler(store, patch_size=8, batch_size=4, seed=0)
    content = pickle.dumps(TrainBatches(store, sampler))
    assert len(content) < 5000 < store.pixels.nbytes
    copied = pickle.loads(content)
    np.testing.assert_array_equal(copied.store.hr(1), planes[1])
    assert isinstance(copied.store.pixels.base, np.memmap) and not copied.store.pixels.flags.writeable
    assert torch.equal(copied[5]["hr"], TrainBatches(store, sampler)[5]["hr"])


def test_all_unreadable_entries_are_named_at_once(tmp_path):
    pairs, _ = images(tmp_path / "hr", *[(64, 64)] * 5)
    lr_pairs, _ = images(tmp_path / "lr", *[(32, 32)] * 5)
    pairs = [Pair(hr.name, hr.hr, lr.hr) for hr, lr in zip(pairs, lr_pairs, strict=True)]
    for file in (pairs[0].hr, pairs[1].hr):
        file.unlink()
    pairs[0].hr.symlink_to("absent")
    pairs[1].hr.mkdir()
    for file in (pairs[2].hr, pairs[2].lr, pairs[4].lr):
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError) as caught:
        ImageStore.open(pairs, 2, None, tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith("4 of 5 images cannot be used:")
    assert [line.split(": ")[0].split("/")[-2:] for line in message.splitlines()[1:]] == [
        *(["hr", f"{i:03}.png"] for i in range(3)),
        *(["lr", f"{i:03}.png"] for i in (2, 4)),
    ]
    assert stores(tmp_path / "cache") == []


def test_unreadable_entries_are_all_named_where_small_images_are_left_out(tmp_path):
    train, _ = images(tmp_path / "train", *[(64, 64)] * 3)
    val, _ = images(tmp_path / "val", (64, 64))
    train[0].hr.write_bytes(b"no image")
    for pair in (train[2], val[0]):
        pair.hr.write_bytes(pair.hr.read_bytes()[:2000])
    settings = {"patch_size": 8, "batch_size": 1, "max_steps": 1, "seed": 0, "cache_dir": tmp_path / "cache"}
    datamodule = SRDataModule(train, val, scale=2, degradation=Bicubic(), skip_small=True, **settings)
    with pytest.raises(InputError) as caught:
        datamodule.setup()
    for name in ("train/000.png", "train/002.png", "val/000.png"):
        assert f"{name}: " in str(caught.value)


def test_a_cache_that_serves_neither_set_is_named_once(tmp_path):
    train, _ = images(tmp_path / "train", (64, 64))
    (tmp_path / "file").touch()
    settings = {"patch_size": 8, "batch_size": 1, "max_steps": 1, "seed": 0, "cache_dir": tmp_path / "file"}
    with pytest.raises(InputError, match=rf"^{tmp_path}/file: cannot create this folder .*; set another cache_dir$"):
        SRDataModule(train, train, scale=2, degradation=Bicubic(), **settings).setup()


def test_images_smaller_than_a_patch_are_all_named(tmp_path):
    pairs, _ = images(tmp_path / "hr", (40, 40), (14, 40), (40, 22))
    store = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    store.check_patch_size(7)
    with pytest.raises(InputError) as caught:
        store.check_patch_size(12)
    assert str(caught.value) == (
        "patch_size=12 (LR pixels) does not fit into 2 of 3 images; set data.skip_small=true to leave them out, "
        "or data.patch_size to 7 or less:\n"
        "  001: LR of 7x20\n  002: LR of 20x11"
    )
