"""The page's command and work, without Gradio."""

import socket
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_lightning import load
from sr_lightning.app import __main__ as command
from sr_lightning.app import enlarging
from sr_lightning.app.__main__ import labels, main
from sr_lightning.app.enlarging import (
    BROWSER_FORMATS,
    Networks,
    Stopped,
    Visit,
    check_size,
    enlarge_photo,
    factor_for,
    preview,
)
from sr_lightning.errors import InputError
from sr_lightning.images.photo import DeepPhoto, read_photo, write_photo

RNG = np.random.default_rng(0)
LIMIT = 10**8


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the command and return its one line; Gradio seems to be installed, and is not imported."""
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "gradio", None)

    def run(*words):
        assert main([str(word) for word in words]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err

    return run


@pytest.fixture
def nets(trained):
    return Networks({"tiny": trained})


@pytest.fixture
def visit(tmp_path):
    (tmp_path / "visits").mkdir()
    return Visit(tmp_path / "visits")


def test_a_network_that_cannot_be_loaded_is_refused_before_gradio_is_imported(refused, tmp_path):
    assert "no file or folder nowhere" in refused("-c", "nowhere")
    (tmp_path / "text.ckpt").write_text("text")
    assert "text.ckpt" in refused("-c", tmp_path / "text.ckpt", "--port", 0)


def test_missing_gradio_is_named_with_the_command_that_installs_it(refused, monkeypatch, trained):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'sr_lightning[app]'" in refused("-c", trained)


def test_a_port_in_use_is_refused(refused, trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: Address already in use" in refused("-c", trained, "--port", port)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", 70000), "from 0 to 65535"),
        (("--host", "no.such.host.invalid"), "choose 127.0.0.1"),
        (("--max-pixels", 0), "give a number of pixels"),
    ],
)
def test_wrong_options_are_refused(refused, trained, words, message):
    assert message in refused("-c", trained, *words)


def test_networks_of_equal_names_are_shown_by_their_paths():
    assert labels(["a/best.ckpt", "b/best.ckpt", "a/best.ckpt", "outputs/edsr"]) == {
        name: name for name in ("a/best.ckpt", "b/best.ckpt")
    } | {"edsr": "outputs/edsr"}
    assert labels(["outputs/bicubic"]) == {"outputs/bicubic": "outputs/bicubic"}


def png_of_zeros(path: Path, width: int, height: int) -> Path:
    """Write a PNG of 1-bit zeros without keeping them in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate = zlib.compressobj()
    data = b"".join(deflate.compress(bytes(1 + width // 8)) for _ in range(height)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_size_is_checked_before_a_photo_is_decoded(tmp_path, monkeypatch, nets, visit):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setenv("SR_MAX_PIXELS", str(2**31))
    photo = png_of_zeros(tmp_path / "huge.png", 20_000, 10_000)
    with pytest.raises(
        InputError, match="20000x10000 pixels, of which x2 makes 800,000,000; the limit of this page is"
    ):
        enlarge_photo(photo, nets, ["tiny"], 2, visit, LIMIT, lambda share, name: None)
    assert check_size(photo, 2, 800_000_000) == (40_000, 20_000)


def enlarged(photo, nets, visit, factor=2, limit=LIMIT):
    return enlarge_photo(photo, nets, ["tiny"], factor, visit, limit, lambda share, name: None)


@pytest.mark.parametrize("factor", [2, 3])
def test_results_equal_the_upscaler_in_every_bit_with_rotation_alpha_and_metadata(tmp_path, trained, visit, factor):
    image = Image.fromarray(RNG.integers(0, 256, (20, 30, 4), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "description"
    image.save(tmp_path / "a photo.png", exif=exif, dpi=(300, 300))
    results = enlarged(tmp_path / "a photo.png", Networks({"tiny": trained}), visit, factor)
    assert {name: path.name for name, path in results.items()} == {
        "bicubic": f"a_photo_bicubic_x{factor}.png",
        "tiny": f"a_photo_tiny_x{factor}.png",
    }
    expected = load(trained).upscale(Image.open(tmp_path / "a photo.png"), size=(20 * factor, 30 * factor))
    for path in results.values():
        with Image.open(path) as result:
            assert (result.mode, result.size) == ("RGBA", (20 * factor, 30 * factor))
            assert result.getexif() == {0x010E: "description"} and round(result.info["dpi"][0]) == 300
    with Image.open(results["tiny"]) as result:
        assert result.tobytes() == expected.tobytes()


def test_sixteen_bits_of_colour_are_kept(tmp_path, nets, trained, visit):
    pixels = RNG.integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    write_photo(tmp_path / "deep.png", DeepPhoto(pixels))
    result = read_photo(enlarged(tmp_path / "deep.png", nets, visit)["tiny"])
    assert np.array_equal(result.pixels, load(trained).upscale(pixels))


def test_factor_is_the_largest_of_the_networks_unless_given(nets):
    assert (factor_for(nets, ["tiny"], None), factor_for(nets, ["tiny"], 8)) == (2, 8)
    with pytest.raises(InputError, match="at least one network"):
        factor_for(nets, [], None)


def test_networks_are_loaded_once(nets, trained):
    first = nets["tiny"]
    trained_bytes = trained.read_bytes()
    trained.unlink()
    try:
        assert nets["tiny"] is first
    finally:
        trained.write_bytes(trained_bytes)


def test_a_stopped_computation_ends_at_the_next_tile_also_if_another_begins(tmp_path, nets, visit, pictures):
    seen = []

    def progress(share, name):
        seen.append((name, share))
        if name == "tiny":
            visit.stop.set()
            visit.begin()

    with pytest.raises(Stopped):
        enlarge_photo(pictures / "0.png", nets, ["tiny"], 8, visit, LIMIT, progress)
    assert seen[-1] == ("tiny", pytest.approx(0.5))


def test_progress_has_bicubic_and_ends_at_one(nets, visit, pictures):
    seen = []
    enlarge_photo(pictures / "0.png", nets, ["tiny"], 8, visit, LIMIT, lambda *progress: seen.append(progress))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert [share for share, name in seen if name == "bicubic"][-1] == pytest.approx(0.5)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "jp2", "ppm"])
def test_photo_that_browsers_do_not_show_gets_a_small_preview(tmp_path, suffix):
    photo = tmp_path / f"photo.{suffix}"
    Image.new("RGB", (1200, 30), "red").save(photo)
    shown = preview(photo)
    assert (shown == photo) == (suffix in ("png", "jpg", "webp", "bmp"))
    with Image.open(shown) as image:
        assert image.format in BROWSER_FORMATS and image.size == ((1200, 30) if shown == photo else (1024, 26))


@pytest.mark.parametrize("pixels", [np.full((9, 8), 257 * 9, np.uint16), np.full((9, 8, 3), 257 * 9, np.uint16)])
def test_preview_of_16_bits_has_8_of_them(tmp_path, monkeypatch, pixels):
    photo = tmp_path / "deep.png"
    write_photo(photo, DeepPhoto(pixels) if pixels.ndim == 3 else Image.fromarray(pixels))
    monkeypatch.setattr(enlarging, "BROWSER_FORMATS", ())
    assert (np.asarray(Image.open(preview(photo))) == 9).all()


def test_results_replace_earlier_ones_and_are_deleted_with_the_photo_at_the_end_of_a_visit(tmp_path, nets, visit):
    other = Visit(visit.folder.parent)
    photos = [visit.folder.parent / name / "photo.png" for name in ("own", "shared")]
    for photo in photos:
        photo.parent.mkdir()
        Image.new("RGB", (8, 8)).save(photo)
    visit.received, other.received = set(photos), {photos[1]}
    first, second = enlarged(photos[0], nets, visit, 2), enlarged(photos[0], nets, visit, 4)
    assert {path.exists() for path in first.values()} == {False} and set(visit.folder.iterdir()) == {*second.values()}
    visit.close([other])
    assert visit.stop.is_set() and [photo.exists() for photo in photos] == [False, True]
    other.close()
    assert list(visit.folder.parent.iterdir()) == []
