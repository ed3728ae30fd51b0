"""Building of a store: processes and machines that build one together, are killed, or run out of space."""

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sr_lightning.data import store_build
from sr_lightning.data.sources import Pair
from sr_lightning.data.store import ImageStore, verify
from sr_lightning.errors import InputError
from sr_lightning.images.files import write_image
from sr_lightning.utils import held_folder
from tests.data.test_store import FirstPixel, images, stores
from tests.helpers import Command


class AtFirstImage(FirstPixel):
    """Degradation that calls a function at its first image."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def __call__(self, hr, scale):
        if self.function is not None:
            self.function()
            self.function = None
        return super().__call__(hr, scale)


class NoLock:
    """Lock of a file system without locks."""

    def __init__(self, path):
        pass

    def acquire(self, timeout):
        raise OSError(37, "No locks available")

    def release(self):
        pass


def be_machine(name):
    """Make this process one of another machine, whose locks reach no other process."""
    held_folder.this_kernel = held_folder.socket.gethostname = lambda: name
    held_folder.FileLock = NoLock
    held_folder.BEAT, held_folder.STALE, held_folder.PAUSE = 0.1, 1.0, 0.05


def open_at_once(machine, barrier, results, folder, cache):
    """Open the store in this process; report the images that it decoded, and the digest of all pixels."""
    torch.set_num_threads(1)
    if machine is not None:
        be_machine(machine)
    store_build.in_threads = lambda function, items: map(function, items)
    decoded, load = [], store_build.load_pair
    store_build.load_pair = lambda pair, *rest: (decoded.append(pair.name), load(pair, *rest))[1]
    pairs = [Pair(file.stem, file) for file in sorted(folder.glob("*.png"))]
    store = ImageStore.open(pairs, 2, AtFirstImage(barrier.wait), cache)  # all meet
    results.put((decoded, hashlib.sha256(store.pixels).hexdigest()))


@pytest.mark.parametrize("machines", [(None, None, None), ("one", "two", "three")], ids=["processes", "machines"])
def test_processes_decode_each_image_of_a_store_once(tmp_path, monkeypatch, machines):
    monkeypatch.setattr(store_build, "PART", 500)  # two images
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 12)
    cache, context = tmp_path / "cache", multiprocessing.get_context("fork")  # they have torch imported
    barrier, results = context.Barrier(3), context.Queue()
    for machine in machines:
        arguments = (machine, barrier, results, tmp_path / "hr", cache)
        context.Process(target=open_at_once, args=arguments, daemon=True).start()
    seen = [results.get(timeout=60) for _ in machines]
    monkeypatch.undo()
    expected = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "other")
    assert all(decoded for decoded, _ in seen)
    assert sorted(name for decoded, _ in seen for name in decoded) == [pair.name for pair in pairs]
    assert {digest for _, digest in seen} == {hashlib.sha256(expected.pixels).hexdigest()}
    store = ImageStore.open(pairs, 2, FirstPixel(), cache)
    assert files_of(store) == files_of(expected) and verify(pairs, 2, FirstPixel(), cache)
    assert stores(cache) == [store.file.parent.name]


def test_unfinished_store_that_another_machine_builds_is_kept_if_space_is_short(tmp_path, slow_images, monkeypatch):
    pairs, _ = slow_images
    unfinished = stop_builder(pairs, tmp_path)
    owner = unfinished / "0-4" / ".owner"
    owner.write_text("process 7 on far, since 2026-01-01 00:00\nkernel word\n")
    free = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(store_build.shutil, "disk_usage", lambda path: free)
    for age, is_kept in ((0, True), (200, False)):
        os.utime(owner, (time.time() - age,) * 2)
        with pytest.raises(InputError, match="bytes needed, 0 free"):
            ImageStore.open(pairs[:2], 2, Quick(), tmp_path)
        assert unfinished.exists() == is_kept


def test_part_of_a_killed_process_of_another_machine_is_taken_over(tmp_path, slow_images, monkeypatch):
    pairs, _ = slow_images
    cache = tmp_path / "cache"
    before = "from tests.data.test_store_build import be_machine\nbe_machine('far')\n"
    process = run_builder(tmp_path / "hr", cache, before)
    process.wait_for_output("building\n")
    for name in ("this_kernel", "FileLock", "BEAT", "STALE", "PAUSE"):
        monkeypatch.setattr(held_folder, name, getattr(held_folder, name))
    monkeypatch.setattr(held_folder.socket, "gethostname", None)
    be_machine("near")
    loaded = counted_loads(monkeypatch)
    process.kill()
    store = ImageStore.open(pairs, 2, Quick(), cache)
    assert loaded == ["003"] and stores(cache) == [store.file.parent.name]
    assert verify(pairs, 2, Quick(), cache)


class Thief(FirstPixel):
    """Degradation in whose first call another process takes the part."""

    def __init__(self, cache):
        super().__init__()
        self.cache = cache

    def __call__(self, hr, scale):
        for owner in self.cache.glob("*.partial/0-4/.owner"):
            owner.write_text("process 7 on far, since 2026-01-01 00:00\nkernel word\n")
        return super().__call__(hr, scale)


def test_process_whose_part_another_one_has_taken_goes_on(tmp_path):
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 4)
    cache, context = tmp_path / "cache", multiprocessing.get_context("fork")
    process = context.Process(target=lambda: ImageStore.open(pairs, 2, Thief(cache), cache))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and verify(pairs, 2, FirstPixel(), cache) and len(stores(cache)) == 1


def test_process_that_comes_when_the_store_is_just_published_decodes_nothing(tmp_path, monkeypatch):
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 4)
    loaded, prepare = counted_loads(monkeypatch), store_build.UnfinishedStore.prepare

    def late(self):
        monkeypatch.setattr(store_build.UnfinishedStore, "prepare", prepare)
        ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
        prepare(self)

    monkeypatch.setattr(store_build.UnfinishedStore, "prepare", late)
    store = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    assert len(loaded) == 4 and stores(tmp_path / "cache") == [store.file.parent.name]


def test_process_begins_again_after_a_failed_one_has_removed_the_unfinished_store(tmp_path, monkeypatch):
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 4)
    prepare = store_build.UnfinishedStore.prepare

    def removed(self):
        monkeypatch.setattr(store_build.UnfinishedStore, "prepare", prepare)
        prepare(self)
        shutil.rmtree(self.unfinished)

    monkeypatch.setattr(store_build.UnfinishedStore, "prepare", removed)
    assert len(ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")) == 4
    assert verify(pairs, 2, FirstPixel(), tmp_path / "cache") and len(stores(tmp_path / "cache")) == 1


def build_again(unfinished):
    """Discard an unfinished store of four images, as a process that has failed, and begin it, as another one."""
    store_build.discard(unfinished)
    (unfinished / "store").mkdir(parents=True)
    (unfinished / PIXELS).touch()
    os.truncate(unfinished / PIXELS, 4 * 240)
    (unfinished / "0-1").mkdir()


def test_pixels_that_were_written_to_a_discarded_file_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(store_build, "PART", 1)
    monkeypatch.setattr(store_build, "in_threads", lambda function, items: map(function, items))
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 4)
    cache = tmp_path / "cache"
    ImageStore.open(pairs, 2, AtFirstImage(lambda: build_again(*cache.glob("*.partial"))), cache)
    assert verify(pairs, 2, FirstPixel(), cache) and len(stores(cache)) == 1


def test_digests_are_never_written_beside_another_file_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(store_build, "PART", 1)
    monkeypatch.setattr(store_build.secrets, "randbelow", lambda number: 0)
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 4)
    cache, open_existing = tmp_path / "cache", store_build._open_existing

    def opening(path, flags):
        monkeypatch.setattr(store_build, "_open_existing", open_existing)
        descriptor = open_existing(path, flags)
        build_again(*cache.glob("*.partial"))
        return descriptor

    monkeypatch.setattr(store_build, "_open_existing", opening)
    ImageStore.open(pairs, 2, FirstPixel(), cache)
    assert verify(pairs, 2, FirstPixel(), cache) and len(stores(cache)) == 1


def test_parts_that_are_done_do_not_count_without_the_file_of_their_pixels(tmp_path, slow_images, monkeypatch):
    pairs, _ = slow_images
    with monkeypatch.context() as patch:
        patch.setattr(store_build, "PART", 1)
        patch.setattr(store_build.secrets, "randbelow", lambda number: 0)
        unfinished = stop_builder(pairs, tmp_path / "cache")
        assert (unfinished / "2-3" / "digests").read_text().endswith("done\n")
        (unfinished / PIXELS).unlink()
        ImageStore.open(pairs, 2, Quick(), tmp_path / "cache")
    assert verify(pairs, 2, Quick(), tmp_path / "cache")


def test_failed_process_leaves_the_parts_of_others_alone(tmp_path, monkeypatch):
    """The last process that fails removes the unfinished store."""
    monkeypatch.setattr(store_build, "PART", 1)
    pairs, _ = images(tmp_path / "hr", *[(64, 64)] * 3)
    for i in (0, 2):
        pairs[i].hr.write_bytes(pairs[i].hr.read_bytes()[:2000])
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(store_build, "in_use", lambda unfinished: True)
        with pytest.raises(InputError, match=r"(?s)^2 of 3 images cannot be used:.*000\.png: .*002\.png: "):
            ImageStore.open(pairs, 2, FirstPixel(), cache)
        assert len(list(cache.glob("*.partial/store/pixels"))) == 1
    with pytest.raises(InputError, match="2 of 3 images cannot be used"):
        ImageStore.open(pairs, 2, FirstPixel(), cache)
    assert stores(cache) == []


def test_rest_of_a_process_that_was_killed_after_it_had_published_is_removed(tmp_path):
    pairs, _ = images(tmp_path / "hr", *[(8, 8)] * 4)
    store = ImageStore.open(pairs, 2, FirstPixel(), tmp_path / "cache")
    rest = store.file.parent.with_suffix(".partial") / "0-4"
    rest.mkdir(parents=True)
    ImageStore.open(pairs[:2], 2, FirstPixel(), tmp_path / "cache")
    assert not rest.parent.exists()


BUILDER = """
import sys
import time
from pathlib import Path
from sr_lightning.data.sources import Pair
from sr_lightning.data.store import ImageStore

class Slow:
    key = "slow"
    def __call__(self, hr, scale):
        if hr[0, 0, 0] == 13:
            print("building", flush=True)
            time.sleep(600)
        return hr[:, ::scale, ::scale]

folder, cache = map(Path, sys.argv[1:])
pairs = [Pair(file.stem, file) for file in sorted(folder.glob("*.png"))]
ImageStore.open(pairs, 2, Slow(), cache)
"""


class Quick(FirstPixel):
    """The key of the builder's degradation without its delay."""

    def __init__(self):
        self.key = "slow"


def start_builder(folder, cache):
    """Start a process and wait until it has written all but the last image."""
    process = run_builder(folder, cache)
    process.wait_for_output("building\n")
    (pixels,) = cache.glob("*.partial/store/pixels")
    assert pixels.stat().st_size == 4 * 240
    return process, pixels


def run_builder(folder, cache, before=""):
    script = folder.parent / "builder.py"
    script.write_text(before + BUILDER)
    return Command(script, folder, cache)


@pytest.fixture
def slow_images(tmp_path):
    pairs, planes = images(tmp_path / "hr", *[(8, 8)] * 4)
    for i, image in enumerate(planes):
        image[0, 0, 0] = 13 if i == 3 else 0
        write_image(pairs[i].hr, image)
    return pairs, planes


def kill_builder(folder, cache):
    """Kill a builder before its last image; return the folder of its unfinished store."""
    process, pixels = start_builder(folder, cache)
    process.kill()
    process.wait()
    return pixels.parents[1]


def stop_builder(pairs, cache):
    """Interrupt a builder in this process before its last image; return the folder of its unfinished store."""
    load = store_build.load_pair

    def stopping(pair, *rest):
        if pair is pairs[-1]:
            raise KeyboardInterrupt
        return load(pair, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_build, "load_pair", stopping)
        ImageStore.open(pairs, 2, Quick(), cache)
    (unfinished,) = cache.glob("*.partial")
    return unfinished


def counted_loads(monkeypatch):
    """Return the list to which the name of each decoded image is added."""
    loaded, load = [], store_build.load_pair
    monkeypatch.setattr(store_build, "load_pair", lambda pair, *rest: (loaded.append(pair.name), load(pair, *rest))[1])
    return loaded


def test_store_of_a_killed_builder_is_continued_to_the_same_bits(tmp_path, slow_images, monkeypatch):
    pairs, _ = slow_images
    cache = tmp_path / "cache"
    kill_builder(tmp_path / "hr", cache)
    ImageStore.open(pairs[:1], 2, Quick(), cache)  # the builder of another set leaves it alone
    loaded = counted_loads(monkeypatch)
    store = ImageStore.open(pairs, 2, Quick(), cache)
    assert loaded == ["003"]
    undisturbed = ImageStore.open(pairs, 2, Quick(), tmp_path / "other")
    assert store.file.parent.name == undisturbed.file.parent.name
    assert files_of(store) == files_of(undisturbed) and len(stores(cache)) == 2


def files_of(store):
    return {path.name: path.read_bytes() for path in store.file.parent.iterdir()}


def flipped(file, index):
    content = bytearray(file.read_bytes())
    content[index] ^= 1
    file.write_bytes(content)


PIXELS, DIGESTS = Path("store/pixels"), Path("0-4/digests")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: flipped(folder / PIXELS, 250), ["001", "002", "003"]),  # in the second image of 240 bytes
        (lambda folder: (folder / PIXELS).write_bytes(bytes(100)), ["000", "001", "002", "003"]),
        (lambda folder: (folder / DIGESTS).unlink(), ["000", "001", "002", "003"]),
        (lambda folder: (folder / DIGESTS).write_bytes(b"\xff"), ["000", "001", "002", "003"]),
        (lambda folder: flipped(folder / DIGESTS, 2 * 65), ["002", "003"]),
        (lambda folder: (folder / DIGESTS).open("a").write("f" * 20), ["003"]),  # killed within a line
        (lambda folder: flipped(folder / PIXELS, 3 * 240), ["003"]),  # killed within an image
        (lambda folder: (folder / PIXELS).rename(folder / "pixels"), ["000", "001", "002", "003"]),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), ["000", "001", "002", "003"]),
    ],
)
def test_whole_images_of_a_damaged_unfinished_store_are_kept(tmp_path, slow_images, monkeypatch, damage, expected):
    pairs, planes = slow_images
    damage(stop_builder(pairs, tmp_path / "cache"))
    loaded = counted_loads(monkeypatch)
    arguments = (pairs, 2, Quick(), tmp_path / "cache")
    store = ImageStore.open(*arguments)
    assert sorted(loaded) == expected
    for i, image in enumerate(planes):
        np.testing.assert_array_equal(store.hr(i), image)
    assert verify(*arguments)


def test_a_bad_image_in_a_continued_store_leaves_nothing(tmp_path, slow_images, monkeypatch):
    pairs, _ = slow_images
    unfinished = stop_builder(pairs, tmp_path / "cache")
    load = store_build.load_pair

    def failing(*arguments):
        raise InputError("cannot be decoded")

    monkeypatch.setattr(store_build, "load_pair", failing)
    with pytest.raises(InputError, match="cannot be decoded"):
        ImageStore.open(pairs, 2, Quick(), tmp_path / "cache")
    assert not unfinished.exists()
    monkeypatch.setattr(store_build, "load_pair", load)
    assert len(ImageStore.open(pairs, 2, Quick(), tmp_path / "cache")) == 4


def test_unfinished_stores_are_removed_after_a_week_or_if_space_is_short(tmp_path, slow_images, monkeypatch):
    pairs, _ = slow_images
    cache = tmp_path / "cache"
    unfinished = stop_builder(pairs, cache)
    week = store_build.UNFINISHED_DAYS * 86400
    for path in (unfinished / PIXELS, unfinished):
        os.utime(path, (path.stat().st_mtime - week - 9,) * 2)
    ImageStore.open(pairs[:1], 2, Quick(), cache)
    assert not unfinished.exists()
    unfinished = stop_builder(pairs, cache)
    usage = shutil.disk_usage(tmp_path)
    free = lambda folder: usage._replace(free=100 if unfinished.exists() else 1000)  # noqa: E731
    monkeypatch.setattr(store_build.shutil, "disk_usage", free)
    ImageStore.open(pairs[:2], 2, Quick(), cache)
    assert not unfinished.exists()


def test_running_builder_is_waited_for(tmp_path, slow_images):
    pairs, _ = slow_images
    cache = tmp_path / "cache"
    process, pixels = start_builder(tmp_path / "hr", cache)
    try:
        ImageStore.open(pairs[:1], 2, Quick(), cache)
        assert pixels.exists()
        waiting = run_builder(tmp_path / "hr", cache, "import logging; logging.basicConfig(level='INFO')\n")
        try:
            waiting.wait_for_output("another process is making the decoded images")
        finally:
            waiting.kill()
            waiting.wait()
    finally:
        process.kill()
        process.wait()
