"""LR of a random degradation: of training patches on the fly, of whole images once, and its name."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from sr_lightning.data import FolderDataModule
from sr_lightning.data.datamodule import WholeImages
from sr_lightning.data.patches import DeviceGather
from sr_lightning.data.sources import Pair
from sr_lightning.degradations import JPEG, Bicubic, Noise, RandomDegradation, Resize, sharpen
from sr_lightning.errors import InputError
from sr_lightning.evaluation.scoring import load_sample
from sr_lightning.images.files import write_image
from sr_lightning.metrics.protocol import Protocol
from tests.fake_graph import FakeGraph
from tests.helpers import compose, rows_of, run


def degradation():
    return RandomDegradation("short", {"resize": Resize(relative_to="lr"), "noise": Noise(), "jpeg": JPEG()})


def module(pictures, cache, made_by=None, **settings):
    data = FolderDataModule(
        str(pictures), val_fraction=0.3, scale=2, degradation=made_by or degradation(), patch_size=8, batch_size=8,
        max_steps=100, seed=3, cache_dir=cache, **settings,
    )  # fmt: skip
    data.setup()
    return data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def batch(data, number, **where):
    return data.to_float(data.train_batches(**where)[number])


def test_batch_does_not_depend_on_earlier_batches(pictures, cache):
    data = module(pictures, cache)
    forward = [batch(data, k)["lr"] for k in range(4)]
    again = module(pictures, cache)
    for k in (3, 1, 1, 0, 2):
        torch.rand(3)
        assert torch.equal(batch(again, k)["lr"], forward[k])
    assert not torch.equal(forward[0], forward[1])


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one(pictures, cache, world_size):
    data = module(pictures, cache)
    whole = batch(data, 5)
    for rank in range(world_size):
        part = batch(data, 5, rank=rank, world_size=world_size)
        for name in ("lr", "hr"):
            assert torch.equal(part[name], whole[name][rank::world_size])


def test_hr_is_that_of_bicubic_and_lr_is_made_from_it(pictures, cache):
    data, bicubic = module(pictures, cache), module(pictures, cache, Bicubic())
    made, usual = batch(data, 7), batch(bicubic, 7)
    assert made.keys() == {"lr", "hr"} and torch.equal(made["hr"], usual["hr"])
    words = degradation().draw(3, 7, 8)
    assert torch.equal(made["lr"], degradation().degrade(usual["hr"], 2, words))
    assert len(list(cache.glob("*/index.json"))) == 3  # training images once, validation images with either LR


@pytest.mark.parametrize("mixup", [None, 0.5])
def test_lr_is_replayed_where_training_steps_are(mixup, pictures, cache):
    """By one graph, though mixup adds other numbers of patches to the batch of this process."""
    data, plain = (module(pictures, cache, mixup=mixup) for _ in range(2))
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(record=FakeGraph), world_size=2)
    for number in range(4):
        replayed, usual = (batch(each, number, rank=1, world_size=2) for each in (data, plain))
        assert torch.equal(replayed["lr"], usual["lr"]) and torch.equal(replayed["hr"], usual["hr"])
    assert plain.replayed_degradation is None
    graphs = data.replayed_degradation.replays.graphs
    assert [shape[0] for ((_, shape, _), _) in graphs] == [4] and all(graphs.values())
    data.teardown("fit")
    assert data.replayed_degradation is None


def test_images_on_the_device_give_the_same_batch(pictures, cache):
    data = module(pictures, cache, residence="device")
    data.device_gather = DeviceGather(data.train_store, "cpu")
    assert "draw" in data.train_batches()[2]
    there, here = batch(data, 2), batch(data, 2, on_device=False)
    assert there.keys() == here.keys() == {"lr", "hr"}
    assert torch.equal(there["lr"], here["lr"]) and torch.equal(there["hr"], here["hr"])


@pytest.mark.parametrize(("kind", "free", "expected"), [("cpu", 1, False), ("cuda", 3, False), ("cuda", 4, True)])
def test_images_that_fit_are_on_the_gpu(kind, free, expected, pictures, cache, monkeypatch):
    data = module(pictures, cache)
    device = torch.device(kind)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device), global_rank=0, world_size=1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * len(data.train_store.pixels), 0))
    assert data.train_dataloader().dataset.on_device == expected
    data.residence = "mmap"
    assert not data.train_dataloader().dataset.on_device


def test_validation_and_scoring_use_the_same_lr_and_name_it(pictures, cache):
    data = module(pictures, cache)
    for i, pair in enumerate(data.val):
        shown = data.to_float(WholeImages(data.val_store)[i])
        sample = load_sample(pair, 2, Protocol(), degradation())
        assert torch.equal(sample.lr, shown["lr"]) and torch.equal(sample.hr, shown["hr"])
        assert sample.protocol.name == f"y_shave-scale_8bit_ssim-wang_lr-{degradation().lr_source}"
        assert degradation().lr_source.removeprefix("made-") in sample.protocol.description


@pytest.mark.parametrize("made_by", [degradation(), Bicubic()], ids=["random LR", "stored LR"])
def test_sharpened_hr_is_the_target_and_source_of_random_lr(pictures, cache, made_by):
    plain, data = (module(pictures, cache, made_by, sharpen_hr=weight) for weight in (None, 0.5))
    usual, sharp = batch(plain, 7), batch(data, 7)
    assert usual.keys() == {"lr", "hr"} and sharp.keys() == {"lr", "hr", "real"}
    assert torch.equal(sharp["real"], usual["hr"]) and torch.equal(sharp["hr"], sharpen(usual["hr"], 0.5))
    assert not torch.equal(sharp["hr"], usual["hr"])
    if isinstance(made_by, Bicubic):
        assert torch.equal(sharp["lr"], usual["lr"])
    else:
        assert torch.equal(sharp["lr"], made_by.degrade(sharp["hr"], 2, made_by.draw(3, 7, 8)))
    for rank in range(4):
        part = batch(data, 7, rank=rank, world_size=4)
        assert all(torch.equal(part[name], sharp[name][rank::4]) for name in sharp)


def test_validation_images_are_not_sharpened(pictures, cache):
    plain, data = (module(pictures, cache, sharpen_hr=weight) for weight in (None, 0.5))
    one, other = (each.to_float(WholeImages(each.val_store)[0]) for each in (plain, data))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_sharpening_by_no_weight_is_refused(pictures, cache, weight):
    with pytest.raises(InputError, match=r"data\.sharpen_hr=.*: give a weight above 0, such as 0\.5, or null"):
        module(pictures, cache, sharpen_hr=weight)


def test_lr_files_of_a_benchmark_are_used_unless_lr_is_made(pictures, tmp_path):
    hr = pictures / "0.png"
    lr = np.random.default_rng(0).integers(0, 256, (3, 48, 40), dtype=np.uint8)
    write_image(tmp_path / "0x2.png", lr)
    pair = Pair("0", hr, tmp_path / "0x2.png")
    from_file = load_sample(pair, 2, Protocol(), degradation())
    assert from_file.protocol.lr_source == "files"
    np.testing.assert_array_equal((from_file.lr[0] * 255).round(), lr)
    made = load_sample(pair, 2, Protocol(lr_source="made"), degradation())
    assert made.protocol.lr_source == degradation().lr_source
    by_bicubic = load_sample(pair, 2, Protocol(lr_source=degradation().lr_source), Bicubic())
    assert by_bicubic.protocol.lr_source == "made"  # what was done, not what was asked


def test_lr_files_are_ignored_with_a_message(pictures, tmp_path, caplog):
    for file in pictures.glob("*.png"):
        image = Image.open(file)
        (tmp_path / "lr").mkdir(exist_ok=True)
        image.resize((image.width // 2, image.height // 2)).save(tmp_path / "lr" / file.name)
    with caplog.at_level(logging.INFO):
        data = module(pictures, tmp_path / "cache", lr=str(tmp_path / "lr"))
    assert "the LR files of 6 images are ignored: LR is made by short" in caplog.text
    assert {pair.lr for pair in (*data.train, *data.val)} == {None}


def stand_in(root: Path, folders: dict[str, list[str]]) -> None:
    """Images of noise, 112x96."""
    for folder, files in folders.items():
        for file in files:
            noise = np.random.default_rng(int(file[:4])).integers(0, 256, (3, 96, 112), dtype=np.uint8)
            write_image(root / folder / file, noise)


@pytest.mark.parametrize(
    ("name", "folders", "made_by", "words"),
    [
        (
            *("div2k", {"DIV2K_train_HR": ["0001.png", "0002.png"], "DIV2K_valid_HR": ["0801.png"]}, "second_order"),
            ["data.train.track=null", "data.train.last=2", "data.val.last=801"],
        ),
        (
            *("bsds", {"BSDS500/train": ["0001.jpg"], "BSDS500/test": ["0002.jpg"]}, "blur_noise_jpeg"),
            ["data.val.names=[chelsea]"],
        ),
    ],
    ids=["div2k", "bsds"],
)
def test_data_sets_combine_with_random_degradations(tmp_path, cache, name, folders, made_by, words):
    stand_in(tmp_path, folders)
    fixed = [f"data={name}", f"degradation={made_by}", "scale=x4", f"data_root={tmp_path}", f"cache_dir={cache}"]
    cfg = compose(*fixed, "data.patch_size=8", "data.batch_size=2", *words)
    data = instantiate(cfg.data, _convert_="all")
    data.setup()
    made = batch(data, 0)
    assert made["lr"].shape == (2, 3, 8, 8) and made["hr"].shape == (2, 3, 32, 32)
    assert data.degradation.name == made_by


@pytest.mark.slow
def test_run_trains_on_random_lr_and_its_protocol_names_it(command, tmp_path):
    short = ("max_steps=4", "val_every=4", "num_comparisons=0")
    run(*command, "degradation=second_order", *short, f"hydra.run.dir={tmp_path / 'run'}")
    rows = rows_of(tmp_path / "run" / "results.csv")
    assert "lr-made-second_order-" in rows[0]["protocol"]
    (validated,) = [float(row["val/psnr"]) for row in rows_of(tmp_path / "run" / "metrics.csv") if row["val/psnr"]]
    scored = next(row for row in rows if (row["model"], row["image"]) == ("espcn", "mean"))
    assert float(scored["psnr_y"]) == pytest.approx(validated, abs=1e-4)
