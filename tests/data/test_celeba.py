"""CelebA by a small stand-in: folder and zip archive, valid and invalid split files, missing images."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from sr_lightning.data.celeba import celeba
from sr_lightning.data.store import ImageStore
from sr_lightning.degradations import Bicubic
from sr_lightning.errors import InputError
from sr_lightning.images.files import image_size, read_image
from tests.helpers import compose

SPLIT = {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 1, "000004.jpg": 0, "000005.jpg": 2, "000006.jpg": 1}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Six JPEGs of CelebA's size."""
    folder = tmp_path_factory.mktemp("faces")
    for i, name in enumerate(SPLIT):
        coarse = np.random.default_rng(i).integers(0, 256, (11, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((178, 218), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def write_split(root, text=None):
    root.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name} {part}\n" for name, part in SPLIT.items()) if text is None else text
    (root / "list_eval_partition.txt").write_text(text)


@pytest.fixture
def in_folder(faces, tmp_path):
    write_split(tmp_path / "CelebA")
    shutil.copytree(faces, tmp_path / "CelebA" / "img_align_celeba")
    return tmp_path / "CelebA"


@pytest.fixture
def in_zip(faces, tmp_path):
    """CelebA as distributed: the archive in one subfolder, the split in another."""
    root = tmp_path / "CelebA"
    write_split(root / "Eval")
    (root / "Img").mkdir()
    with zipfile.ZipFile(root / "Img" / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("img_align_celeba")
        for file in sorted(faces.iterdir()):
            archive.write(file, f"img_align_celeba/{file.name}")
    return root


@pytest.mark.parametrize("root", ["in_folder", "in_zip"])
def test_splits_follow_the_split_file(root, request, faces):
    root = request.getfixturevalue(root)
    for part, split in enumerate(("train", "valid", "test")):
        pairs = celeba(root, split)
        assert [f"{pair.name}.jpg" for pair in pairs] == [name for name in SPLIT if SPLIT[name] == part]
        assert {pair.lr for pair in pairs} == {None}
    pairs = celeba(root, "train", limit=2)
    assert [pair.name for pair in pairs] == ["000001", "000002"]
    assert image_size(pairs[1].hr) == (218, 178)
    np.testing.assert_array_equal(read_image(pairs[1].hr), read_image(faces / "000002.jpg"))


def test_folder_and_archive_share_one_store(in_folder, in_zip, tmp_path, monkeypatch):
    (in_zip / "img_align_celeba").rename(tmp_path / "elsewhere")
    from_zip = celeba(in_zip)
    (tmp_path / "elsewhere").rename(in_zip / "img_align_celeba")
    from_folder = celeba(in_folder)
    assert isinstance(from_folder[0].hr, Path) and not isinstance(from_zip[0].hr, Path)
    os.utime(in_zip / "Img" / "img_align_celeba.zip", (1e9, 1e9))  # long ago: its digests may be remembered
    cache = tmp_path / "cache"
    one = ImageStore.open(from_zip, 4, Bicubic(), cache)
    assert one.hr_sizes.tolist() == [[216, 176]] * 3
    other = ImageStore.open(from_folder, 4, Bicubic(), cache)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert len(list(cache.glob("*/index.json"))) == 1
    monkeypatch.setattr("sr_lightning.images.zip_member.ZipMember.read_bytes", None)
    ImageStore.open(from_zip, 4, Bicubic(), cache)


@pytest.mark.parametrize("nested", ["", "Img/img_align_celeba"])
def test_nested_folders_other_spellings_and_csv_are_accepted(faces, tmp_path, nested):
    root = tmp_path / "celeba"
    shutil.copytree(faces, root / nested / "img_align_celeba")
    lines = "".join(f"{name},{part}\n" for name, part in SPLIT.items())
    (root / "list_eval_partition.csv").write_text(f"image_id,partition\n{lines}")
    assert [pair.name for pair in celeba(tmp_path / "CelebA", "valid")] == ["000003", "000006"]


def test_missing_files_are_named_with_their_place(tmp_path, faces):
    root = tmp_path / "CelebA"
    with pytest.raises(InputError) as caught:
        celeba(root)
    for part in ("which is not a folder", f"{root}/img_align_celeba/000001.jpg", f"{root}/img_align_celeba.zip"):
        assert part in str(caught.value)
    assert f"{root}/list_eval_partition.txt" in str(caught.value) and "by hand" in str(caught.value)
    write_split(root)
    with pytest.raises(InputError, match=r"img_align_celeba\.zip") as caught:
        celeba(root)
    assert "list_eval_partition.txt" not in str(caught.value)
    (root / "list_eval_partition.txt").unlink()
    shutil.copytree(faces, root / "img_align_celeba")
    with pytest.raises(InputError, match=r"list_eval_partition\.txt") as caught:
        celeba(root)
    assert "000001.jpg" not in str(caught.value)


def test_wrong_lines_of_the_split_file_are_all_named(in_folder):
    write_split(in_folder, "000001.jpg 0\n000002.jpg 3\n\nnothing here\n000003 1\n000001.jpg 1\n000004.jpg 0\n")
    with pytest.raises(InputError) as caught:
        celeba(in_folder)
    message = str(caught.value)
    assert "list_eval_partition.txt: 4 lines are not" in message
    for line in (
        "line 2: '000002.jpg 3'",
        "line 4: 'nothing here'",
        "line 5: '000003 1'",
        "line 6: 000001.jpg is listed twice",
    ):
        assert line in message
    write_split(in_folder, "000001.jpg 0\n")
    with pytest.raises(InputError, match="lists no test images"):
        celeba(in_folder, "test")


@pytest.mark.parametrize("root", ["in_folder", "in_zip"])
def test_missing_images_are_named_if_needed(root, request):
    root = request.getfixturevalue(root)
    lines = "".join(f"{name} 0\n" for name in [*SPLIT, "000007.jpg", "000008.jpg"])
    for file in root.rglob("list_eval_partition.txt"):
        file.write_text(lines)
    with pytest.raises(InputError) as caught:
        celeba(root)
    assert "2 of 8 images of the split file are missing" in str(caught.value)
    assert "\n  000007.jpg\n  000008.jpg" in str(caught.value) and "data.train.limit" in str(caught.value)
    assert len(celeba(root, limit=6)) == 6


def test_archive_is_used_where_the_folder_lacks_images(in_folder, in_zip):
    (in_folder / "img_align_celeba" / "000004.jpg").unlink()
    assert in_folder == in_zip
    assert str(celeba(in_folder)[2].hr).endswith("img_align_celeba.zip/img_align_celeba/000004.jpg")


def test_damaged_archives_and_members_are_named(in_zip, tmp_path):
    archive = in_zip / "Img" / "img_align_celeba.zip"
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo("img_align_celeba/000002.jpg")
    broken = bytearray(whole)
    broken[member.header_offset + 200] ^= 255
    archive.write_bytes(broken)
    with pytest.raises(
        InputError, match=r"(?s)1 of .*img_align_celeba\.zip/img_align_celeba/000002\.jpg: cannot be unpacked"
    ):
        ImageStore.open(celeba(in_zip), 4, Bicubic(), tmp_path / "cache")
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"img_align_celeba\.zip: not a readable zip archive"):
        celeba(in_zip)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "val"}, "split=val: choose train, valid, test"),
        ({"limit": 0}, "limit=0: the number of images"),
        ({"limit": 0.5}, r"limit=0\.5: the number"),
    ],
)
def test_unknown_choices_are_named(in_folder, settings, message):
    with pytest.raises(InputError, match=message):
        celeba(in_folder, **settings)


def test_config_trains_x4_on_faces_and_validates_on_few(in_zip, tmp_path):
    words = ["data=celeba", "scale=x4", f"data_root={in_zip.parent}", f"cache_dir={tmp_path / 'cache'}"]
    cfg = compose(*words, "data.train.limit=2", "degradation=blur_noise_jpeg")
    assert cfg.data.val.limit == 100
    data = instantiate(cfg.data, _convert_="all")
    data.setup()
    assert data.train_store.names == ("000001", "000002") and data.val_store.names == ("000003", "000006")
    batch = data.to_float(data.train_batches()[0])
    assert batch["lr"].shape == (16, 3, 24, 24) and batch["hr"].shape == (16, 3, 96, 96)
