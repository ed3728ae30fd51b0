"""Image files of every kind, made by Pillow or by hand, against what they must decode to."""

import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from sr_lightning.errors import InputError
from sr_lightning.images.files import image_size, read_image, write_image
from sr_lightning.images.folder import ignored_files, image_files
from sr_lightning.images.formats import DATA_SUFFIXES
from sr_lightning.utils.threads import in_threads

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # (H, W, 3)


def save(path, pixels, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def test_colour_is_read_as_contiguous_planes(tmp_path):
    image = read_image(save(tmp_path / "a.png", RGB))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, np.stack([RGB[..., 0], RGB[..., 1], RGB[..., 2]]))


def test_gray_is_read_as_one_plane(tmp_path):
    image = read_image(save(tmp_path / "a.png", RGB[..., 0]))
    assert image.flags.writeable  # torch warns of others
    np.testing.assert_array_equal(image, RGB[None, ..., 0])


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    assert read_image(save(tmp_path / "a.png", bits)).tolist() == [[[255, 0], [0, 255]]]


def test_palette_becomes_rgb(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert read_image(save(tmp_path / "a.png", image)).tolist() == [[[10, 200]], [[20, 100]], [[30, 50]]]


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = np.zeros((8, 8, 4), dtype=np.uint8)
    cmyk[..., 1] = 255  # pure magenta
    image = read_image(save(tmp_path / "a.jpg", Image.fromarray(cmyk, "CMYK"), quality=100))
    np.testing.assert_allclose(image[:, 4, 4].astype(int), [255, 0, 255], atol=2)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_is_dropped(tmp_path, mode):
    gray = Image.fromarray(RGB[..., 0])
    image = read_image(save(tmp_path / "a.png", gray, mode))
    assert len(image) == (1 if mode == "LA" else 3)
    np.testing.assert_array_equal(image, np.repeat(RGB[None, ..., 0], len(image), axis=0))


def test_transparency_of_any_kind_is_refused(tmp_path):
    rgba = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    rgba[0, 0, 3] = 254
    gray = Image.fromarray(RGB[..., 0])
    palette = Image.fromarray(RGB).quantize(4)
    for path in (
        save(tmp_path / "rgba.png", rgba),
        save(tmp_path / "la.png", Image.fromarray(rgba).convert("LA")),
        save(tmp_path / "colour_key.png", RGB, transparency=tuple(RGB[0, 0].tolist())),
        save(tmp_path / "gray_key.png", gray, transparency=int(RGB[0, 0, 0])),
        save(tmp_path / "palette.png", palette, transparency=0),
        save(tmp_path / "palette_bytes.png", palette, transparency=b"\x80\xff"),
    ):
        with pytest.raises(InputError, match=rf"{path.name}: has transparent pixels; flatten it onto a background"):
            read_image(path)


def test_unused_transparent_colour_is_accepted(tmp_path):
    black = np.zeros((2, 2, 3), np.uint8)
    assert not read_image(save(tmp_path / "a.png", black, transparency=(1, 2, 3))).any()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_gray_is_scaled_and_rounded(tmp_path, name):
    values = np.array([[0, 128, 129, 257, 385, 386, 32767, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / name, values))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0], np.round(values / 257))


def test_sixteen_bit_gray_of_a_big_endian_tiff_is_read(tmp_path):
    values = np.array([[0, 257], [32768, 65535], [500, 65407]], dtype=np.uint16)
    tags = {256: 2, 257: 3, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 3, 279: 12}  # size, bits, ..., of LONG type
    entries = [struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items()]
    directory = struct.pack(">H", len(tags)) + b"".join(entries) + struct.pack(">I", 0)
    (tmp_path / "a.tif").write_bytes(b"MM\0*" + struct.pack(">I", 20) + values.astype(">u2").tobytes() + directory)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], np.round(values / 257))


def test_sixteen_bit_colour_is_within_one_level_of_the_rounded_value(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (1, 500, 3), dtype=np.uint16)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 500, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + values.astype(">u2").tobytes()))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[:, 0], np.round(values[0].T / 257), atol=1)


def test_values_beyond_sixteen_bits_and_floats_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.tif: gray values from 0 to 65536; scale them"):
        read_image(save(tmp_path / "a.tif", np.array([[0, 65536]], dtype=np.int32)))
    with pytest.raises(InputError, match=r"b\.tif: floating point pixels"):
        read_image(save(tmp_path / "b.tif", np.ones((2, 2), dtype=np.float32)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_pixels_and_size_alike(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    save(tmp_path / name, RGB, exif=exif, **options)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    assert image_size(tmp_path / name) == image.shape[1:] == ((5, 7) if orientation < 5 else (7, 5))


def test_png_size_is_read_without_decoding(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(content, "PNG")
    (tmp_path / "a.png").write_bytes(content.getvalue()[:200])
    assert image_size(tmp_path / "a.png") == (64, 48)


def test_animations_and_multiple_pages_are_refused(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (0, 100, 200)]
    for name in ("a.webp", "a.tif", "a.png"):
        path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match=rf"{name}: contains 3 images; save the one you want as PNG"):
            read_image(path)


def test_main_picture_of_an_mpo_file_is_read(tmp_path):
    frames = [Image.new("RGB", (16, 16), (level,) * 3) for level in (50, 200)]
    save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert abs(int(read_image(tmp_path / "a.jpg")[0, 8, 8]) - 50) <= 1


def test_unreadable_file_is_named_with_the_reason(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(whole, "PNG")
    (tmp_path / "truncated.png").write_bytes(whole.getvalue()[:3000])
    (tmp_path / "text.png").write_text("<html>quota exceeded</html>")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "truncated.png": "cannot be decoded",
        "text.png": "not an image that Pillow can read",
        "empty.png": "not an image that Pillow can read",
        "folder.png": "a folder, not an image file",
        "absent.png": "no such file",
    }.items():
        with pytest.raises(InputError, match=rf"{tmp_path / name}: {reason}"):
            read_image(tmp_path / name)


def test_large_images_pass_without_a_warning_and_larger_ones_are_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png", RGB)  # 35 pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow warns above it, refuses above twice
        assert read_image(tmp_path / "a.png").shape == (3, 5, 7)
        assert image_size(tmp_path / "a.png") == (5, 7)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
        with pytest.raises(InputError, match=r"a\.png: more than 30 pixels.* SR_MAX_PIXELS"):
            read_image(tmp_path / "a.png")
        monkeypatch.setenv("SR_MAX_PIXELS", "35")
        assert read_image(tmp_path / "a.png").shape == (3, 5, 7)
        monkeypatch.setenv("SR_MAX_PIXELS", "1e9")
        with pytest.raises(InputError, match=r"^SR_MAX_PIXELS=1e9: give a number of pixels"):
            read_image(tmp_path / "a.png")


def jpeg(pixels, **options):
    content = io.BytesIO()
    Image.fromarray(pixels, "CMYK" if pixels.shape[2:] == (4,) else None).save(content, "JPEG", **options)
    return content.getvalue()


def png(rows, width, height, interlace=0):
    """8-bit gray PNG from the given bytes of filtered rows."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# By a file of their own: interlaced pixels, a JPEG header of another size
ADAM7 = b"".join(b"\0" + bytes([5] * n) for n in (1, 1, *[2] * 3, *[4] * 6, *[8] * 4))  # rows of 8x8 pixels
LARGE_JPEG = jpeg(RGB).replace(struct.pack(">HH", 5, 7), struct.pack(">HH", 13_000, 13_000))


@pytest.mark.parametrize("pixels", [48, 63], ids=["half", "last row"])
@pytest.mark.parametrize("level", [0, 7])
def test_png_whose_data_end_early_is_truncated(tmp_path, pixels, level):
    rows = (b"\0" + bytes([level] * 8)) * 8
    (tmp_path / "a.png").write_bytes(png(rows, 8, 8))
    assert (read_image(tmp_path / "a.png") == level).all()
    (tmp_path / "a.png").write_bytes(png(rows[: pixels // 9 * 9], 8, 8))
    with pytest.raises(InputError, match=r"a\.png: truncated, its data end before the last pixel; copy it again"):
        read_image(tmp_path / "a.png")


def test_interlaced_png_whose_data_end_early_is_truncated(tmp_path):
    (tmp_path / "a.png").write_bytes(png(ADAM7, 8, 8, interlace=1))
    assert (read_image(tmp_path / "a.png") == 5).all()
    for length in (2, 25, len(ADAM7) - 9):
        (tmp_path / "a.png").write_bytes(png(ADAM7[:length], 8, 8, interlace=1))
        with pytest.raises(InputError, match=r"a\.png: .*truncated"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "options",
    [
        *({"quality": 90, "subsampling": subsampling} for subsampling in (0, 1, 2)),
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"restart_marker_blocks": 3, "progressive": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("colours", ["gray", "rgb", "cmyk"])
def test_jpeg_cut_anywhere_and_closed_is_truncated(tmp_path, options, colours):
    rows, columns = np.mgrid[:70, :90]
    pixels = np.stack([127 + 120 * np.sin(rows * (0.3 + c) + columns * 0.2) for c in range(4)], axis=-1).astype(
        np.uint8
    )
    pixels = {"gray": pixels[..., 0], "rgb": pixels[..., :3], "cmyk": pixels}[colours]
    content = jpeg(pixels, **options)
    (tmp_path / "a.jpg").write_bytes(content)
    whole = read_image(tmp_path / "a.jpg")
    start = content.index(b"\xff\xda") + 14
    for length in range(start, len(content) - 2, 61):
        (tmp_path / "a.jpg").write_bytes(content[:length] + b"\xff\xd9")
        try:
            read = read_image(tmp_path / "a.jpg")
        except InputError:
            continue
        assert (read == whole)[:, :-16, :-16].all() and (read != whole).mean() < 0.05  # in the last block


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_are_whole(tmp_path, level, options):
    (tmp_path / "a.jpg").write_bytes(jpeg(np.full((40, 50, 3), level, np.uint8), **options))
    assert (read_image(tmp_path / "a.jpg") == level).all()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.new("L", (9, 8), level).convert(mode, dither=Image.Dither.NONE)
        if "A" in mode:
            image.putalpha(255)
        assert len(np.unique(read_image(save(tmp_path / "a.png", image)))) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png(bytes(2), 1, 170_000_000)),
        ("a.jpg", LARGE_JPEG),
        (
            "a.gif",
            b"GIF89a" + struct.pack("<HHBBB", 13_000, 13_000, 0, 0, 0) + b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
        ),
        ("a.pgm", b"P5 13000 13000 255\n" + bytes(100)),
    ],
)
def test_more_pixels_than_a_file_can_hold_are_refused_before_decoding(tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    message = rf"{name}: \d+x\d+ pixels cannot be in {len(content):,} bytes: damaged or malicious"
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)


def test_densest_files_are_read(tmp_path):
    white = Image.new("1", (16_000, 8_000), 1)
    assert image_size(save(tmp_path / "a.png", white, compress_level=9)) == (8_000, 16_000)
    (tmp_path / "a.jpg").write_bytes(jpeg(np.zeros((4000, 4000), np.uint8), progressive=True, optimize=True))
    assert image_size(tmp_path / "a.jpg") == (4000, 4000)


def test_threads_leave_warning_filters_unchanged(tmp_path):
    files = [save(tmp_path / f"{i}.png", RGB) for i in range(40)]
    before = list(warnings.filters)
    assert len(list(in_threads(read_image, files))) == 40
    assert warnings.filters == before


def test_image_files_are_sorted_and_only_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.Tiff", "notes.txt", ".hidden.png", "._b.PNG"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "d.png").touch()
    assert [file.name for file in image_files(tmp_path)] == ["a.jpg", "b.PNG", "c.Tiff"]


def test_every_suffix_of_a_picture_that_pillow_decodes_counts(tmp_path):
    Image.init()
    # No decoder in Pillow, drawings, icons of several sizes, animations and videos
    other = {"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "WMF", "CUR", "ICNS", "ICO"}
    wanted = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - other}
    assert not wanted - set(DATA_SUFFIXES)
    for name in ("a.JPG", "b.jpe", "c.jfif", "d.tif", "e.WebP"):
        (tmp_path / name).touch()
    assert len(image_files(tmp_path)) == 5


def test_ignored_files_are_counted_by_kind(tmp_path):
    for name in ("a.png", "x.txt", "y.TXT", "z.npy", ".DS_Store", "._a.png", "LICENSE"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    assert ignored_files(tmp_path) == "2 .txt, 1 .DS_Store, 1 .npy, 1 LICENSE, 1 hidden .png"
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"no image in this folder, but 2 \.txt, 1 \.DS_Store"):
        image_files(tmp_path)


def test_missing_or_empty_folder_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"absent: no such folder; looked for .*\.png"):
        image_files(tmp_path / "absent")
    with pytest.raises(InputError, match=r"empty: no image in this folder; looked for .*\.png"):
        image_files(tmp_path / "empty")
    with pytest.raises(InputError, match=r"file: a file; looked for .*\.png .* in a folder"):
        image_files(tmp_path / "file")


def test_threads_keep_order_and_few_results_in_flight():
    started = []

    def work(number):
        started.append(number)
        return number * number

    results = in_threads(work, range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) < 40
    assert list(results) == [number * number for number in range(3, 1000)]


def test_bad_items_are_named_at_once_up_to_a_limit():
    def work(number):
        if number % 4 == 3:
            raise InputError(f"item {number} is bad")
        return number

    yielded = []
    with pytest.raises(InputError) as caught:
        yielded.extend(in_threads(work, range(100), "items"))
    message = str(caught.value)
    assert message.startswith("25 of 100 items cannot be used:\n  item 3 is bad\n  item 7 is bad\n")
    assert "item 79 is bad" in message and "item 83 is bad" not in message and message.endswith("... and 5 more")


def test_bug_is_not_reported_as_a_bad_item():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [1, 0, 2]))


def test_stopping_early_leaves_no_thread():
    before = threading.active_count()
    results = in_threads(abs, range(1000))
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("pixels", [RGB.transpose(2, 0, 1), RGB[None, ..., 0]], ids=["rgb", "gray"])
def test_written_image_reads_back(tmp_path, pixels):
    write_image(tmp_path / "new" / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), pixels)
    assert os.listdir(tmp_path / "new") == ["a.png"]


def test_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", RGB.transpose(2, 0, 1))

    def disk_full(self, file, **options):
        with file.open("wb") as broken:
            broken.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "a.png", np.zeros((3, 2, 2), np.uint8))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB.transpose(2, 0, 1))
    assert os.listdir(tmp_path) == ["a.png"]


def test_writing_needs_uint8_planes_and_a_known_format(tmp_path):
    with pytest.raises(ValueError, match=r"got float32 of shape \(3, 2, 2\)"):
        write_image(tmp_path / "a.png", np.zeros((3, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 of shape \(2, 2, 3\)"):
        write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.xyz: \.xyz is not a writable image format; use \.png"):
        write_image(tmp_path / "a.xyz", np.zeros((3, 2, 2), np.uint8))


def test_real_images_decode_as_by_pillow(data_root):
    for path in (data_root / "T91" / "t1.png", next((data_root / "BSDS500" / "train").glob("*.jpg"))):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected.transpose(2, 0, 1))
