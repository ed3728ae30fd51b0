"""Atomic writing: full and read-only disks, links, long names, killed writers."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from sr_lightning.errors import InputError
from sr_lightning.images.files import write_image
from sr_lightning.utils.atomic_files import check_writable, remove_abandoned, replacing, write_text

WRITE_AND_DIE = """
import os, signal, sys
from sr_lightning.utils.atomic_files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    {}
"""


@contextmanager
def mounted(folder: Path, options: str):
    """Mount a small file system; skip the test where that is not permitted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


WRITERS = {
    "text": lambda path: write_text(path, "x" * 2**21),
    "png": lambda path: write_image(path, Image.effect_noise((1500, 1500), 100)),
    "jpg": lambda path: write_image(path, Image.effect_noise((1500, 1500), 100), quality=100),
    "tif": lambda path: write_image(path, Image.effect_noise((1500, 1500), 100), compression="tiff_adobe_deflate"),
    "webp": lambda path: write_image(path, Image.effect_noise((1500, 1500), 100), lossless=True, method=0),
    "bmp": lambda path: write_image(path, Image.effect_noise((1500, 1500), 100)),
    "ckpt": lambda path: save_tensors(path),
}


def save_tensors(path):
    with replacing(path) as temporary:
        torch.save({"a": torch.zeros(2**19), "b": torch.zeros(2**19)}, temporary)


@pytest.mark.parametrize("suffix", WRITERS)
def test_full_disk_is_named_and_leaves_the_earlier_file(tmp_path, suffix):
    with mounted(tmp_path / "small", "size=1m") as folder:
        target = folder / f"a.{suffix}"
        target.write_text("earlier")
        with pytest.raises(InputError, match=f"a.{suffix} cannot be written: No space left on device. Solve that"):
            WRITERS[suffix](target)
        assert os.listdir(folder) == [target.name] and target.read_text() == "earlier"


def test_read_only_disk_is_named(tmp_path):
    with mounted(tmp_path / "small", "size=1m") as folder:
        (folder / "a").write_text("earlier")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(InputError, match=r"small/a cannot be written: Read-only file system"):
            write_text(folder / "a", "new")
        with pytest.raises(InputError, match=r"small/b/c cannot be written: Read-only file system"):
            write_text(folder / "b" / "c", "new")
        assert (folder / "a").read_text() == "earlier"


def test_limit_on_the_size_of_a_file_is_named(tmp_path):
    script = (
        "import resource, sys; from pathlib import Path; from sr_lightning.utils.atomic_files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_text(sys.argv[1], 'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a"], capture_output=True, text=True)
    assert re.search(r"InputError: \S+/a cannot be written: File too large", done.stderr)
    assert not os.listdir(tmp_path)


def test_folder_that_is_removed_meanwhile_is_named(tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(InputError, match="results/a cannot be written: No such file or directory"):  # noqa: SIM117
        with replacing(folder / "a") as temporary:
            temporary.unlink()
            folder.rmdir()
            temporary.write_text("new")


@pytest.mark.parametrize("obstacle", ["file in the place of a folder", "folder in the place of the file", "long name"])
def test_paths_that_cannot_be_written_are_named(tmp_path, obstacle):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    path, reason = {
        "file in the place of a folder": ("file/a", "File exists|Not a directory"),
        "folder in the place of the file": ("folder", "Is a directory"),
        "long name": ("n" * 256, "File name too long"),
    }[obstacle]
    with pytest.raises(InputError, match=f"{path} cannot be written: ({reason})"):
        write_text(tmp_path / path, "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("name", ["n" * 255, b"\xff\xfe\x1b[31m".decode(errors="surrogateescape")])
def test_every_name_that_the_file_system_accepts_can_be_written(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_bytes_that_are_no_text_are_escaped(tmp_path):
    write_text(tmp_path / "a", "é \udcff")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9 \\udcff"


def test_error_of_the_writer_itself_propagates(tmp_path):
    for error in (ValueError("no picture"), OSError("encoder error -2"), FileNotFoundError(2, "No such file", "input")):
        with pytest.raises(type(error), match=str(error.args[-1])) as raised, replacing(tmp_path / "a"):
            raise error
        assert raised.value is error
    assert not os.listdir(tmp_path)


def test_link_keeps_pointing_to_the_file_that_is_written(tmp_path):
    for folder in ("links", "files"):
        (tmp_path / folder).mkdir()
    (tmp_path / "files" / "a").write_text("earlier")
    for name in ("a", "new"):
        link = tmp_path / "links" / name
        link.symlink_to(f"../files/{name}")
        write_text(link, "new")
        assert link.is_symlink() and (tmp_path / "files" / name).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "files")) == ["a", "new"]


def test_loop_of_links_is_named(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="a cannot be written: Too many levels of symbolic links"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").is_symlink()


def test_written_file_has_the_permissions_of_the_umask(tmp_path):
    earlier = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
    finally:
        os.umask(earlier)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_files_of_killed_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    other = tmp_path / ".notes.tmp"
    other.write_text("not ours")
    script = WRITE_AND_DIE.format("os.kill(os.getpid(), signal.SIGKILL)")
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "a"])
    assert killed.returncode == -signal.SIGKILL
    dead, *_ = tmp_path.glob(".sr_lightning-*.tmp")
    script = WRITE_AND_DIE.format("print(flush=True); sys.stdin.read()")
    living = subprocess.Popen([sys.executable, "-c", script, tmp_path / "b"], stdin=-1, stdout=-1)
    living.stdout.readline()  # it has removed the file of the killed one before it wrote its own
    assert not dead.exists()
    remove_abandoned.cache_clear()
    write_text(tmp_path / "c", "text")
    assert len(list(tmp_path.glob(".sr_lightning-*.tmp"))) == 1
    living.communicate()
    assert sorted(os.listdir(tmp_path)) == [".notes.tmp", "b", "c"]
    assert (tmp_path / "b").read_text() == "half"


def test_folders_that_can_be_written_to_are_told_from_others_before_they_exist(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "inner", "-o new")
    (tmp_path / "itself").symlink_to("itself")
    for name, text in ((300 * "n", "File name too long"), ("itself", "Too many levels of symbolic links")):
        with pytest.raises(InputError, match=f"^-o mine: {text}; give another folder$"):
            check_writable(tmp_path / name / "inner", "-o mine")
    locked, stat, access = tmp_path / "locked", Path.stat, os.access
    locked.mkdir()

    def stat_as_user(path, **options):
        if locked in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", stat_as_user)
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    with pytest.raises(InputError, match=f"^-o mine: no permission to write into {locked}; give another folder$"):
        check_writable(locked / "inner" / "folder", "-o mine")
