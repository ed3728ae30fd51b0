"""Findings before the first step of a run: what is quick to find about images."""

import logging

import numpy as np
import pytest
import torch

from sr_lightning.data import SRDataModule, bundled_photos, image_folder
from sr_lightning.degradations import Bicubic, downscale
from sr_lightning.images.files import read_image, write_image


@pytest.fixture(scope="module")
def photo():
    return read_image(bundled_photos("chelsea")[0].hr)[:, :200, :240]


@pytest.fixture
def folders(tmp_path, photo):
    """Four parts of a photo with LR at x2, the last one in a folder of its own."""
    for number in range(4):
        rows, columns = 100 * (number // 2), 120 * (number % 2)
        part = np.ascontiguousarray(photo[:, rows : rows + 100, columns : columns + 120])
        for kind, image in (("hr", part), ("lr", downscale(torch.from_numpy(part), 2).numpy())):
            folder = tmp_path / (kind if number < 3 else f"val_{kind}")
            folder.mkdir(exist_ok=True)
            write_image(folder / f"{number}.png", image)
    return tmp_path


def messages_of_setup(folders, caplog, lr=True):
    train, val = (
        image_folder(folders / hr, folders / hr.replace("hr", "lr") if lr else None) for hr in ("hr", "val_hr")
    )
    settings = {"patch_size": 8, "batch_size": 2, "max_steps": 1, "seed": 0, "cache_dir": folders / "cache"}
    datamodule = SRDataModule(train, val, scale=2, degradation=Bicubic(), **settings)
    with caplog.at_level(logging.WARNING):
        datamodule.setup()
    return caplog.text


def test_good_images_are_not_mentioned(folders, caplog):
    assert messages_of_setup(folders, caplog) == ""


def test_image_of_both_sets_is_named(folders, caplog):
    (folders / "val_hr" / "3.png").write_bytes((folders / "hr" / "1.png").read_bytes())
    text = messages_of_setup(folders, caplog, lr=False)
    assert "val_hr/3.png: is in both sets (training, validation)" in text
    assert "`python -m sr_lightning.check` examines all" in text


def test_lr_of_another_image_is_named(folders, caplog):
    lr = folders / "lr"
    (lr / "1.png").rename(lr / "x.png")
    (lr / "2.png").rename(lr / "1.png")
    (lr / "x.png").rename(lr / "2.png")
    text = messages_of_setup(folders, caplog)
    assert "lr/1.png: LR shows another picture than HR" in text and "lr/2.png: LR shows another" in text
    assert "lr/0.png" not in text and "val_lr" not in text


def test_ignored_files_are_counted(folders, caplog):
    for name in ("a.heic", "b.heic", ".DS_Store"):
        (folders / "hr" / name).touch()
    assert "/hr: ignored: 2 .heic, 1 .DS_Store (training)" in messages_of_setup(folders, caplog)
