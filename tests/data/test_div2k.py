"""DIV2K from folders of empty files with the official names, and from small archives with the official names."""

import hashlib
import re
import threading
import zipfile
from pathlib import Path

import pytest

from sr_lightning.data import div2k as div2k_module
from sr_lightning.data.div2k import ARCHIVES, SCALES, div2k, parts
from sr_lightning.errors import InputError


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Makes archives of the given members in a folder, their lengths and digests known; returns its address."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    def make(**archives: list[str]) -> str:
        for name, members in archives.items():
            with zipfile.ZipFile(folder / f"{name}.zip", "w") as file:
                for member in members:
                    file.writestr(member, member)
            content = (folder / f"{name}.zip").read_bytes()
            monkeypatch.setitem(ARCHIVES, name, (len(content), hashlib.sha256(content).hexdigest()))
        return folder.as_uri()

    return make


def numbered(pattern: str, first: int = 801, last: int = 900) -> list[str]:
    return [pattern % number for number in range(first, last + 1)]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_tracks_and_scales_cover_the_archives(split):
    used = {part.archive for track, scales in SCALES.items() for scale in scales for part in parts(split, track, scale)}
    assert used == {name for name in ARCHIVES if name.startswith(f"DIV2K_{split}_")}
    assert len(used) == 11


@pytest.mark.parametrize(
    ("track", "scale", "lr"),
    [
        ("bicubic", 2, "DIV2K_valid_LR_bicubic/X2/0801x2.png"),
        ("bicubic", 3, "DIV2K_valid_LR_bicubic_X3/DIV2K_valid_LR_bicubic/X3/0801x3.png"),
        ("bicubic", 8, "DIV2K_valid_LR_x8/0801x8.png"),
        ("bicubic", 8, "DIV2K_valid_LR_bicubic/X8/0801x8.png"),
        ("unknown", 4, "DIV2K_valid_LR_unknown/X4/0801x4.png"),
        ("mild", 4, "DIV2K_valid_LR_mild/0801x4m.png"),
        ("difficult", 4, "DIV2K_valid_LR_difficult/DIV2K_valid_LR_difficult/0801x4d.png"),
        ("wild", 4, "DIV2K_valid_LR_wild/0801x4w.png"),
    ],
)
def test_images_are_found_below_the_official_folders(tmp_path, track, scale, lr):
    touch(tmp_path / "DIV2K_valid_HR", "0801.png")
    touch((tmp_path / lr).parent, Path(lr).name, "0802x7.png", "notes.txt")
    (pair,) = div2k(tmp_path, "valid", track, scale, first=801, last=801)
    assert pair.name == "0801"
    assert (pair.hr, pair.lr) == (tmp_path / "DIV2K_valid_HR" / "0801.png", tmp_path / lr)


def test_pairs_are_matched_by_number(tmp_path):
    touch(tmp_path / "DIV2K_valid_HR", *reversed(numbered("%04d.png")))
    touch(tmp_path / "DIV2K_valid_LR_bicubic" / "X2", *numbered("%04dx2.png"))
    pairs = div2k(str(tmp_path), "valid", scale=2)
    assert [pair.name for pair in pairs] == numbered("%04d")
    assert all(pair.lr.name == f"{pair.hr.stem}x2.png" for pair in pairs)
    assert [pair.name for pair in div2k(tmp_path, "valid", scale=2, first=805, last=806)] == ["0805", "0806"]


def test_hr_alone_without_a_track(tmp_path):
    touch(tmp_path / "DIV2K_train_HR", "0001.png", "0002.png")
    pairs = div2k(tmp_path, "train", track=None, last=2)
    assert [(pair.name, pair.lr) for pair in pairs] == [("0001", None), ("0002", None)]


def test_wild_track_has_a_pair_for_each_lr_image(tmp_path):
    touch(tmp_path / "DIV2K_train_HR", "0001.png", "0002.png")
    names = [f"000{n}x4w{variant}.png" for n in (1, 2) for variant in (1, 2, 3, 4)]
    touch(tmp_path / "DIV2K_train_LR_wild", *names)
    pairs = div2k(tmp_path, "train", "wild", 4, last=2)
    assert [pair.lr.name for pair in pairs] == names
    assert [pair.name for pair in pairs] == [name.removesuffix(".png") for name in names]
    assert [pair.hr.name for pair in pairs] == ["0001.png"] * 4 + ["0002.png"] * 4
    (tmp_path / "DIV2K_train_LR_wild" / "0002x4w3.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 below .*wild: 0002x4w"):
        div2k(tmp_path, "train", "wild", 4, last=2)


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "0001.png")
    (tmp_path / "root" / "DIV2K_train_HR").mkdir(parents=True)
    (tmp_path / "root" / "DIV2K_train_HR" / "link").symlink_to(tmp_path / "elsewhere")
    assert div2k(tmp_path / "root", track=None, last=1)[0].hr.exists()


def test_folder_of_another_job_in_progress_is_ignored(tmp_path):
    touch(tmp_path / "DIV2K_train_HR" / ".X.extracting", "0001.png")
    with pytest.raises(InputError, match="DIV2K images are missing"):
        div2k(tmp_path, track=None, last=1)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"split": "test", "scale": 2}, "split=test: choose train or valid"),
        ({"track": "blurry", "scale": 2}, "track=blurry: choose bicubic, unknown, mild, difficult, wild, or null"),
        ({"track": "wild", "scale": 2}, "there is no wild x2; available: bicubic x2, x3, x4, x8; unknown x2"),
        ({"split": "valid", "scale": 2, "first": 1}, "first=1, last=900: valid has the images 801 to 900"),
        ({"scale": 2, "first": 9, "last": 8}, "first=9, last=8: train has the images 1 to 800"),
        ({"scale": 2, "first": "0009"}, "first=0009, last=800: train has the images 1 to 800"),
        ({"split": "test", "track": "blurry"}, "split=test.*track=blurry"),
    ],
)
def test_unknown_choices_list_the_valid_ones(tmp_path, choice, message):
    with pytest.raises(InputError, match=message):
        div2k(tmp_path, **choice)


def test_missing_folders_are_named_with_both_remedies(tmp_path):
    with pytest.raises(InputError) as error:
        div2k(tmp_path, "train", "bicubic", 2)
    message = str(error.value)
    assert "data.train.download=true (fetches 4.5 GB; for data=df2k data.train.div2k.download)" in message
    assert f"{tmp_path}/DIV2K_train_HR/0001.png" in message
    assert f"{tmp_path}/DIV2K_train_LR_bicubic/X2/0001x2.png" in message
    assert f"{tmp_path}/DIV2K_train_HR.zip, from https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip" in message


def test_missing_images_are_listed_up_to_a_limit(tmp_path):
    touch(tmp_path / "DIV2K_valid_HR", *set(numbered("%04d.png")) - {"0850.png"})
    touch(tmp_path / "DIV2K_valid_LR_bicubic", *numbered("%04dx2.png", 801, 870))
    with pytest.raises(InputError) as error:
        div2k(tmp_path, "valid", scale=2, download=True)
    message = str(error.value)
    assert re.search(r"1 of 100 below \S*DIV2K_valid_HR: 0850.png\n", message)
    assert re.search(r"30 of 100 below .*: 0871x2.png, .*0880x2.png and 20 more\n", message)
    assert [pair.name for pair in error.value.pairs] == [f"{n:04d}" for n in range(801, 871) if n != 850]


def test_download_fetches_missing_files_once(tmp_path, mirror, monkeypatch):
    url = mirror(
        DIV2K_valid_HR=numbered("DIV2K_valid_HR/%04d.png"),
        DIV2K_valid_LR_bicubic_X2=numbered("DIV2K_valid_LR_bicubic/X2/%04dx2.png"),
        DIV2K_valid_LR_bicubic_X3=numbered("DIV2K_valid_LR_bicubic/X3/%04dx3.png"),
    )
    fetched, fetch = [], div2k_module.fetch
    monkeypatch.setattr(
        div2k_module, "fetch", lambda address, *args, **kw: fetched.append(address) or fetch(address, *args, **kw)
    )
    root = tmp_path / "data"
    for scale in (2, 3, 2, 3):
        pairs = div2k(root, "valid", scale=scale, download=True, base_url=url + "/")
        assert len(pairs) == 100
        assert pairs[0].lr == root / f"DIV2K_valid_LR_bicubic/X{scale}/0801x{scale}.png"
        assert pairs[0].lr.read_text() == f"DIV2K_valid_LR_bicubic/X{scale}/0801x{scale}.png"
    assert [Path(address).stem for address in fetched] == [
        "DIV2K_valid_HR",
        "DIV2K_valid_LR_bicubic_X2",
        "DIV2K_valid_LR_bicubic_X3",
    ]


def test_local_archive_is_verified_and_used_without_download(tmp_path, mirror):
    mirror(DIV2K_valid_HR=numbered("%04d.png"))
    archive = tmp_path / "mirror" / "DIV2K_valid_HR.zip"
    root = tmp_path / "data"
    root.mkdir()
    (root / archive.name).write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"DIV2K_valid_HR.zip: expected \d+ bytes, got"):
        div2k(root, "valid", track=None)
    (root / archive.name).write_bytes(archive.read_bytes())
    assert len(div2k(root, "valid", track=None)) == 100


def test_archive_lacking_images_is_an_error(tmp_path, mirror):
    url = mirror(DIV2K_valid_HR=numbered("%04d.png", 801, 899))
    with pytest.raises(InputError, match=r"1 of 100 below .*: 0900.png"):
        div2k(tmp_path, "valid", track=None, download=True, base_url=url)


def test_concurrent_jobs_all_get_every_image(tmp_path, mirror):
    url = mirror(DIV2K_valid_HR=numbered("DIV2K_valid_HR/%04d.png"))
    results = []

    def job():
        results.append(len(div2k(tmp_path / "data", "valid", track=None, download=True, base_url=url)))

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert results == [100] * 4
