"""Public data sets from a local server that stands in for the real ones."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import pytest
from PIL import Image

from sr_lightning.data import public_sets
from sr_lightning.data.__main__ import main
from sr_lightning.data.public_sets import PUBLIC_SETS, hint, pixel_digest
from sr_lightning.data.sources import benchmark_set, image_folder
from sr_lightning.errors import InputError
from tests.helpers import ROOT


def image(value: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, kind)
    return file.getvalue()


def packed(files: dict[str, bytes], kind: str) -> bytes:
    archive = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=archive, mode=f"w:{kind}") as file:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.fixture
def sets(server, monkeypatch):
    """Serve small archives laid out as the real ones; the sets have fewer images."""
    berkeley = {
        f"BSR/BSDS500/data/images/{part}/{i}.jpg": image(i, "jpeg") for part in ("train", "test", "val") for i in (1, 2)
    }
    content = {
        "SRCNN-Tensorflow.zip": packed(
            {f"SRCNN-Tensorflow-master/Train/t{i}.bmp": image(i, "bmp") for i in (1, 2)}
            | {"SRCNN-Tensorflow-master/main.py": b""},
            "zip",
        ),
        "BSR_bsds500.tgz": packed(
            berkeley | {"BSR/bench/a.m": b"", "BSR/BSDS500/data/images/val/Thumbs.db": b""}, "gz"
        ),
        "benchmark.tar": packed(
            {
                f"benchmark/{name}/{folder}": image(3)
                for name in ("Set5", "Set14", "B100", "Urban100")
                for folder in ("HR/a.png", "HR/b.png", "LR_bicubic/X2/ax2.png", "LR_bicubic/X2/bx2.png")
            },
            "",
        ),
        "Flickr2K.tar": packed(
            {
                f"Flickr2K/{file}": image(5)
                for name in ("000001", "000002")
                for file in (f"Flickr2K_HR/{name}.png", f"Flickr2K_LR_bicubic/X2/{name}x2.png")
            },
            "",
        ),
    }
    small = {}
    for name, each in PUBLIC_SETS.items():
        data = content[each.archive.file]
        server.files[f"/{each.archive.file}"] = data
        archive = replace(
            each.archive,
            url=f"{server.url}/{each.archive.file}",
            size=each.archive.size and len(data),
            sha256=each.archive.sha256 and hashlib.sha256(data).hexdigest(),
            md5=each.archive.md5 and hashlib.md5(data).hexdigest(),
        )
        small[name] = replace(
            each, archive=archive, folders=tuple(replace(f, num_images=2, pixels=None) for f in each.folders)
        )
    monkeypatch.setattr(public_sets, "PUBLIC_SETS", small)
    monkeypatch.setattr("sr_lightning.data.__main__.PUBLIC_SETS", small)
    return small


def visible(root) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.startswith(".")}


def test_fetched_sets_lie_where_training_and_scoring_look(sets, tmp_path, capsys):
    assert main(["fetch", "t91", "bsds500", "set5", "--root", str(tmp_path)]) == 0
    assert len(image_folder(tmp_path / "T91")) == 2
    assert len(image_folder([str(tmp_path / "BSDS500" / part) for part in ("train", "test")])) == 4
    assert [pair.lr.name for pair in benchmark_set(tmp_path, "Set5", 2)] == ["ax2.png", "bx2.png"]
    assert (
        len(benchmark_set(tmp_path, "BSD100", 2)) == len(benchmark_set(tmp_path, "Urban100", 2)) == 2
    )  # same archives
    assert (
        f"bsds500: {tmp_path}/BSDS500/train (2 images), {tmp_path}/BSDS500/test (2 images)" in capsys.readouterr().out
    )
    archives = {"SRCNN-Tensorflow.zip", "BSR_bsds500.tgz", "benchmark.tar"}
    assert visible(tmp_path) == {"T91", "BSDS500", "benchmark"} | archives
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".unpacked")]


def test_flickr2k_is_verified_by_md5_and_put_in_place_with_its_lr(sets, tmp_path, capsys):
    folder = tmp_path / "Flickr2K"
    right = sets["flickr2k"]
    sets["flickr2k"] = replace(right, archive=replace(right.archive, md5="0" * 32))
    assert main(["fetch", "flickr2k", "--root", str(tmp_path)]) == 1
    assert "expected md5 000" in capsys.readouterr().err and not folder.exists()
    sets["flickr2k"] = right
    assert main(["fetch", "flickr2k", "--root", str(tmp_path)]) == 0
    pairs = image_folder(folder / "Flickr2K_HR", folder / "Flickr2K_LR_bicubic", scale=2)
    assert [pair.lr.name for pair in pairs] == ["000001x2.png", "000002x2.png"]


def test_complete_sets_are_not_fetched_again_and_one_archive_serves_several(sets, tmp_path, server, capsys):
    assert main(["fetch", "set5", "b100", "--root", str(tmp_path)]) == 0
    assert main(["fetch", "set14", "--root", str(tmp_path)]) == 0
    assert [path for path, _ in server.asked] == ["/benchmark.tar"]
    assert capsys.readouterr().out.splitlines()[-1].endswith("was there already")


def test_folders_of_the_user_are_left_alone(sets, tmp_path, capsys):
    own = tmp_path / "benchmark" / "Set14" / "HR"
    own.mkdir(parents=True)
    (own / "mine.png").write_bytes(image(9))
    assert main(["fetch", "set5", "--root", str(tmp_path)]) == 0
    assert [path.name for path in own.iterdir()] == ["mine.png"]
    assert main(["fetch", "set14", "urban100", "--root", str(tmp_path)]) == 1
    assert "Set14/HR: 1 of 2 images of set14. Move the folder away" in capsys.readouterr().err
    assert (tmp_path / "benchmark" / "Urban100").is_dir()


@pytest.mark.parametrize("wrong", ["digest", "number", "pixels", "no archive"])
def test_wrong_archive_puts_nothing_in_place(sets, tmp_path, server, capsys, wrong):
    t91 = sets["t91"]
    if wrong == "digest":
        sets["t91"] = replace(t91, archive=replace(t91.archive, sha256="0" * 64))
    elif wrong == "number":
        sets["t91"] = replace(t91, folders=(replace(t91.folders[0], num_images=3),))
    elif wrong == "pixels":
        sets["t91"] = replace(t91, folders=(replace(t91.folders[0], pixels="0" * 64),))
    else:
        server.files["/SRCNN-Tensorflow.zip"] = b"no zip"
    assert main(["fetch", "t91", "--root", str(tmp_path)]) == 1
    said = {
        "digest": "expected sha256 000",
        "number": "has 2 images in Train where 3 should be",
        "pixels": "has other images in Train than those known as T91",
        "no archive": "neither a zip nor a tar",
    }
    assert said[wrong] in capsys.readouterr().err
    assert visible(tmp_path) <= {"SRCNN-Tensorflow.zip"}
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".unpacked", ".extracting"))]


def test_pixels_are_those_of_the_set_whatever_the_format(data_root, tmp_path):
    """T91 as BMP, the format of its source, has the digest in the catalogue, and one changed pixel has not."""
    for file in (data_root / "T91").iterdir():
        with Image.open(file) as each:
            each.save(tmp_path / f"{file.stem}.bmp")
    assert pixel_digest(tmp_path) == PUBLIC_SETS["t91"].folders[0].pixels
    with Image.open(tmp_path / "t1.bmp") as each:
        each.putpixel((0, 0), (1, 2, 3))
        each.save(tmp_path / "t1.bmp")
    assert pixel_digest(tmp_path) != PUBLIC_SETS["t91"].folders[0].pixels


def test_list_counts_what_is_there(sets, tmp_path, capsys):
    (tmp_path / "T91").mkdir()
    (tmp_path / "T91" / "t1.png").write_bytes(image(1))
    assert main(["list", "--root", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert ["t91", "data=t91", "T91", "1 of 2"] in rows
    assert ["set5", "benchmarks=[Set5]", "benchmark/Set5", "missing (2)"] in rows
    assert ["div2k", "data=div2k", "DIV2K_train_HR", "missing (800)"] in rows
    assert ["celeba", "data=celeba", "CelebA", "by hand"] in rows
    assert ["lsdir", "data=lsdir", "LSDIR (train)", "by hand"] in rows
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Flickr2K/Flickr2K_HR", "flickr2k"),
        ("T91", "t91"),
        ("BSDS500/test", "bsds500"),
        ("benchmark/BSD100/HR", "bsd100"),
        ("benchmark/Set14/HR", "set14"),
    ],
)
def test_error_of_a_missing_public_folder_names_the_command(tmp_path, folder, name):
    with pytest.raises(InputError, match=f"no such folder.*python -m sr_lightning.data fetch {name}$"):
        image_folder(tmp_path / folder)
    assert hint(tmp_path / "mine") == ""
    with pytest.raises(InputError, match=r"fetch set14$"):
        benchmark_set(tmp_path, "Set14", 2)


@pytest.mark.parametrize(
    ("name", "address"), [("celeba", "mmlab.ie.cuhk.edu.hk"), ("lsdir", "huggingface.co/ofsoundof/LSDIR")]
)
def test_by_hand_sets_say_how(tmp_path, capsys, name, address):
    assert main(["fetch", name, "--root", str(tmp_path)]) == 1
    assert address in capsys.readouterr().err


def test_div2k_is_fetched_by_track_and_scale(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "sr_lightning.data.__main__.div2k",
        lambda root, split, track, scale, download: asked.append((split, track, scale)),
    )
    assert main(["fetch", "div2k", "--track", "mild", "--root", str(tmp_path)]) == 0  # exists for x4 only
    assert main(["fetch", "div2k", "--scale", "2", "--root", str(tmp_path)]) == 0
    assert asked == [("train", "mild", 4), ("valid", "mild", 4), ("train", "bicubic", 2), ("valid", "bicubic", 2)]


def test_reader_that_ends_early_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does
    command = [sys.executable, "-m", "sr_lightning.data", "list", "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
