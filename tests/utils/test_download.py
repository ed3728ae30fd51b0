"""Downloads from a local server that can be made to fail, and archives."""

import hashlib
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple

import pytest

from sr_lightning.errors import InputError
from sr_lightning.utils import download as download_module
from sr_lightning.utils.download import download, extract

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(server):
    server.files["/set.zip"] = CONTENT
    return server


def left_behind(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_file_appears_only_when_complete(server, tmp_path):
    path = download(f"{server.url}/set.zip", tmp_path / "new" / "set.zip", SHA256, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert left_behind(path.parent) == ["set.zip"]


def test_existing_file_is_verified_but_not_fetched(server, tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(CONTENT)
    download(f"{server.url}/set.zip", path, SHA256)
    assert server.asked == []
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(InputError, match=rf"set.zip: expected sha256 {SHA256}, got .*Delete or replace it"):
        download(f"{server.url}/set.zip", path, SHA256)
    assert path.exists()  # it is the user's


def test_first_digits_of_a_digest_are_verified(server, tmp_path):
    path = download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256[:8].upper())
    for wrong in ("0" * 8, SHA256[:7], ""):
        with pytest.raises(InputError, match=f"expected sha256 {wrong}, got"):
            download(f"{server.url}/set.zip", path, wrong)


def test_partial_file_is_continued(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT[:300_000])
    path = download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256)
    assert server.asked == [("/set.zip", "bytes=300000-")]
    assert path.read_bytes() == CONTENT


def test_dropped_connection_is_continued(server, tmp_path):
    server.drop_after = [100_000, 200_000]
    path = download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=300000-"]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("start", [0, 1000])
def test_server_without_ranges_restarts_the_download(server, tmp_path, start):
    server.ranges = False
    server.drop_after = [200_000]
    (tmp_path / "set.zip.part").write_bytes(CONTENT[:start])
    path = download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_complete_partial_file_is_not_fetched_again(server, tmp_path, size):
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    path = download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256, size=size)
    assert path.read_bytes() == CONTENT
    assert server.asked == ([] if size else [("/set.zip", f"bytes={len(CONTENT)}-")])


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_too_long_partial_file_is_discarded(server, tmp_path, size):
    (tmp_path / "set.zip.part").write_bytes(CONTENT + b"more")
    assert download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256, size=size).read_bytes() == CONTENT


def test_partial_file_of_another_version_is_restarted(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"old" * 1000)
    assert download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=3000-", None]


def test_busy_server_is_retried(server, tmp_path):
    server.statuses = [503, 500]
    assert download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256).read_bytes() == CONTENT


def test_retries_end_with_an_error_and_keep_the_partial_file(server, tmp_path):
    server.drop_after = [1000] + [0] * 100
    with pytest.raises(
        InputError, match=r"ended after 1000 of 1024000.*The 1000 bytes received are kept.*by hand to .*set"
    ):
        download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256)
    assert left_behind(tmp_path) == ["set.zip.part"]
    assert len(server.asked) == 2 + download_module.RETRIES


def test_unreachable_server_is_an_error(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match=r"no connection .*refused.*download http.*by hand"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip")


def test_missing_file_is_an_error_at_once(server, tmp_path):
    with pytest.raises(InputError, match=r"none.zip: the server responds 404.*by hand"):
        download(f"{server.url}/none.zip", tmp_path / "none.zip")
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_wrong_digest_removes_the_file_and_names_both_digests(server, tmp_path, kind):
    got = hashlib.new(kind, CONTENT).hexdigest()
    expected = "0" * len(got)
    with pytest.raises(
        InputError, match=rf"expected {kind} {expected}, got {got}.*download {server.url}/set.zip by hand"
    ):
        download(f"{server.url}/set.zip", tmp_path / "set.zip", **{kind: expected})
    assert left_behind(tmp_path) == []


def test_unexpected_length_is_an_error_before_fetching(server, tmp_path):
    with pytest.raises(InputError, match="offers 1024000 bytes, expected 7"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip", size=7)
    assert left_behind(tmp_path) == []


def test_undeclared_length_is_checked_by_the_digest(server, tmp_path):
    server.declare_length = False
    assert download(f"{server.url}/set.zip", tmp_path / "a.zip", SHA256).read_bytes() == CONTENT
    server.drop_after = [500]
    with pytest.raises(InputError, match="expected sha256"):
        download(f"{server.url}/set.zip", tmp_path / "b.zip", SHA256)


def test_web_page_instead_of_the_archive_is_recognised(server, tmp_path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="sent a web page instead of the file"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256)
    assert left_behind(tmp_path) == []


def test_full_disk_is_an_error_before_fetching(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(InputError, match=r"set.zip needs 0.0 GB in .*, where 0.0 GB are free"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert left_behind(tmp_path) == []


def test_invalid_address_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"set.zip is not a URL: it must begin with"):
        download("set.zip", tmp_path / "set.zip")
    with pytest.raises(InputError, match="http://host/with space is not a URL"):
        download("http://host/with space", tmp_path / "set.zip")


def test_unwritable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/sub: cannot create this folder \(Not a directory\); choose another"):
        download("http://127.0.0.1:9/set.zip", tmp_path / "file" / "sub" / "set.zip")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(InputError, match="no permission to write into this folder"):
        download("http://127.0.0.1:9/set.zip", tmp_path / "set.zip")


def test_mirror_may_be_a_file_address(tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    path = download((tmp_path / "source").as_uri(), tmp_path / "set.zip", SHA256)
    assert path.read_bytes() == CONTENT


def test_two_jobs_fetch_a_file_once(server, tmp_path):
    jobs = [
        threading.Thread(target=download, args=(f"{server.url}/set.zip", tmp_path / "set.zip", SHA256))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(server.asked) == 1
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def pack(path, members: dict[str, bytes]):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])


@KINDS
@pytest.mark.parametrize("outer", ["", "set/", "set/X2/"])
def test_archive_is_unpacked_without_its_outer_folders(tmp_path, kind, outer):
    archive = pack(tmp_path / kind, {f"{outer}1.png": b"one", f"{outer}sub/2.png": b"two"})
    folder = extract(archive, tmp_path / "deep" / "set")
    assert tree(folder) == {"1.png": b"one", "sub/2.png": b"two"}
    assert left_behind(folder.parent) == ["set"]


def test_archive_of_one_file_keeps_it(tmp_path):
    assert tree(extract(pack(tmp_path / "a.zip", {"set/1.png": b"one"}), tmp_path / "set")) == {"1.png": b"one"}


def test_unpacked_folder_has_default_permissions(tmp_path):
    folder = extract(pack(tmp_path / "a.zip", {"1.png": b"one", "2.png": b"two"}), tmp_path / "set")
    (tmp_path / "other").mkdir()
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


@KINDS
@pytest.mark.parametrize("name", ["../evil.png", "set/../../evil.png", "/evil.png"])
def test_members_pointing_outside_are_refused(tmp_path, kind, name):
    archive = pack(tmp_path / kind, {"1.png": b"one", name: b"evil"})
    with pytest.raises(InputError, match=f"outside of its folder, nothing was unpacked: {name}"):
        extract(archive, tmp_path / "in" / "set")
    assert left_behind(tmp_path / "in") == []


def test_link_pointing_outside_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(info)
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract(tmp_path / "a.tar", tmp_path / "set")
    assert left_behind(tmp_path) == ["a.tar"]


def test_damaged_archive_is_named_and_leaves_no_file(tmp_path):
    archive = pack(tmp_path / "a.zip", {"1.png": b"one", "2.png": os.urandom(1000)})
    damaged = bytearray(archive.read_bytes())
    damaged[200] ^= 1  # inside the second file
    archive.write_bytes(damaged)
    with pytest.raises(InputError, match=r"a.zip: its member 2.png cannot be unpacked \(Bad CRC"):
        extract(archive, tmp_path / "set")
    assert left_behind(tmp_path) == ["a.zip"]


@KINDS
@pytest.mark.parametrize(
    ("names", "member"),
    [
        (("a", "a/b"), "a/b"),
        (("a/b", "a"), "a"),
        (("1.png", "n" * 300), "n" * 300),
        (("1.png", "n" * 300 + "/a"), "nnn/a"),
    ],
    ids=["file as folder", "folder as file", "long name", "long folder"],
)
def test_member_that_cannot_be_unpacked_is_named(tmp_path, kind, names, member):
    archive = pack(tmp_path / kind, dict.fromkeys(names, b"one"))
    with pytest.raises(
        InputError, match=rf"^{archive}: its member \S*{member} cannot be unpacked \(.*unpack it by hand"
    ):
        extract(archive, tmp_path / "set")
    assert left_behind(tmp_path) == [kind]


def test_names_of_any_bytes_are_unpacked_or_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.addfile(tarfile.TarInfo(os.fsdecode(b"\xff.png")))
    assert list(tree(extract(tmp_path / "a.tar", tmp_path / "tar"))) == [os.fsdecode(b"\xff.png")]
    archive = pack(tmp_path / "a.zip", {"\xe9.png": b"one", "2.png": b"two"})
    archive.write_bytes(archive.read_bytes().replace("\xe9.png".encode(), b"\xff\xfe.png"))
    with pytest.raises(InputError, match=r"a\.zip cannot be unpacked \('utf-8' codec"):
        extract(archive, tmp_path / "zip")


@pytest.mark.parametrize("link", ["absent", "link"])
def test_link_to_nothing_in_an_archive_is_named(tmp_path, link):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.LNKTYPE, link
        file.addfile(info)
    with pytest.raises(InputError, match=r"a\.tar: its member link cannot be unpacked"):
        extract(tmp_path / "a.tar", tmp_path / "set")
    assert left_behind(tmp_path) == ["a.tar"]


def test_full_disk_while_unpacking_names_the_member(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", {"1.png": b"one"})
    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *args: os.write(os.open("/dev/full", os.O_WRONLY), b"one"))
    with pytest.raises(
        InputError, match=r"1\.png cannot be unpacked \(No space left on device\)\. Solve that, then run"
    ):
        extract(archive, tmp_path / "set")


def test_file_or_folder_in_the_way_is_named(server, tmp_path):
    archive = pack(tmp_path / "a.zip", {"1.png": b"one", "2.png": b"two"})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.zip cannot be unpacked \(Not a directory"):
        extract(archive, tmp_path / "file")
    (tmp_path / "set.zip").mkdir()
    with pytest.raises(InputError, match=r"set\.zip: a folder, not a file\. Delete or replace it"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip")


def test_file_that_is_no_archive_is_an_error(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"something else")
    with pytest.raises(InputError, match="neither a zip nor a tar file"):
        extract(tmp_path / "a.zip", tmp_path / "set")


def test_leftovers_of_a_killed_run_are_ignored(tmp_path):
    (tmp_path / ".set.extracting").mkdir()
    (tmp_path / ".set.extracting" / "half.png").write_bytes(b"ha")
    assert tree(extract(pack(tmp_path / "a.zip", {"1.png": b"one"}), tmp_path / "set")) == {"1.png": b"one"}


def test_only_an_empty_folder_is_filled(tmp_path):
    archive = pack(tmp_path / "a.zip", {"1.png": b"one"})
    for name in ("mine", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "own.png").write_bytes(b"own")
    assert tree(extract(archive, tmp_path / "mine")) == {"own.png": b"own"}
    assert tree(extract(archive, tmp_path / "empty")) == {"1.png": b"one"}


def test_archive_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", {"1.png": b"one"})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 2))
    with pytest.raises(InputError, match=r"unpacking .*a.zip needs"):
        extract(archive, tmp_path / "set")
