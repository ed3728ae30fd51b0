"""Users' pictures keep depth, transparency, orientation and metadata."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from sr_lightning.errors import InputError
from sr_lightning.images.photo import DeepPhoto, as_photo, check_fits, read_photo, write_photo

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
# EXIF orientation -> how an upright picture is stored, from the standard's "where the 0th row and column are"
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a.swapaxes(0, 1)[::-1],  # right, top: row 0 is the right side, from its top
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def exif(orientation, suffix, xmp=None):
    data = Image.Exif()
    if suffix == "tif" and xmp is not None:
        data[700] = xmp
    data[ExifTags.Base.Orientation] = orientation
    data[ExifTags.Base.Make] = "Kamera"
    if suffix != "tif":
        data[ExifTags.Base.ImageWidth] = 9
    details = data.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "2001:02:03 04:05:06"
    details[ExifTags.Base.ExifImageWidth] = 9
    data.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return data.tobytes()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
def test_picture_is_turned_upright_and_its_orientation_reset(orientation, suffix, tmp_path):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)))))
    options = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    stored.save(tmp_path / f"a.{suffix}", exif=exif(orientation, suffix), **options)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        kept = opened.copy()
        photo = as_photo(opened)
        if suffix != "tif":  # which Pillow turns itself
            assert opened.getexif()[ExifTags.Base.Orientation] == orientation  # the input is unchanged
            assert (np.asarray(as_photo(kept)) == np.asarray(photo)).all()
    for result in (photo, as_photo(photo)):
        values = np.asarray(result).astype(int)[4::8, 4::8]  # the middle of each block
        assert np.abs(values - COLOUR).max() <= (12 if suffix == "jpg" else 0)
        told = result.getexif()
        assert told.get(ExifTags.Base.Orientation, 1) == 1
        assert told[ExifTags.Base.Make] == "Kamera"


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
def test_metadata_is_copied(suffix, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" dc:title="Title"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Nobody")
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    Image.fromarray(COLOUR).save(
        tmp_path / f"a.{suffix}",
        exif=exif(6, suffix, xmp),
        icc_profile=profile,
        xmp=xmp,
        dpi=(300, 300),
        pnginfo=text,
        comment=b"Hello",
        compression="raw",
    )
    write_photo(tmp_path / f"b.{suffix}", read_photo(tmp_path / f"a.{suffix}"))
    with Image.open(tmp_path / f"b.{suffix}") as image:
        image.load()
        assert image.size == (6, 9)
        assert image.info["icc_profile"] == profile
        assert b"Title" in image.info["xmp"]
        assert b"Orientation" not in image.info["xmp"]
        told = image.getexif()
        assert told[ExifTags.Base.Make] == "Kamera"
        assert told.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2001:02:03 04:05:06"
        assert told.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert ExifTags.Base.ExifImageWidth not in told.get_ifd(ExifTags.IFD.Exif)  # it is no longer true
        if suffix != "webp":
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        if suffix == "png":
            assert image.text["Author"] == "Nobody"
        if suffix == "jpg":
            assert image.info["comment"] == b"Hello"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_keeps_a_lossless_compression(compression, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.tif", compression=compression)
    write_photo(tmp_path / "b.tif", as_photo(read_photo(tmp_path / "a.tif")))
    with Image.open(tmp_path / "b.tif") as image:
        assert image.info["compression"] == ("tiff_adobe_deflate" if compression == "jpeg" else compression)


def colours(mode):
    image = Image.fromarray(COLOUR)
    if mode == "P with a transparent colour":
        image = image.quantize(8)
        image.info["transparency"] = 3
        return image
    if mode == "RGB with a transparent colour":
        image.info["transparency"] = tuple(COLOUR[0, 0].tolist())
        return image
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(COLOUR[..., 0]))
    return image.quantize(16) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "result"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("P", "RGB"),
        ("P with a transparent colour", "RGBA"),
        ("RGB", "RGB"),
        ("RGB with a transparent colour", "RGBA"),
        ("RGBA", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("HSV", "RGB"),
    ],
)
def test_pixel_modes_become_one_of_five(mode, result):
    image = colours(mode)
    photo = as_photo(image)
    assert photo.mode == result
    shown, expected = (np.asarray(i.convert("RGBA")).astype(int) for i in (photo, image))
    assert np.abs(shown - expected).max() <= 1
    assert as_photo(photo).tobytes() == photo.tobytes()


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "int32"])
def test_16_bit_gray_keeps_16_bits(dtype):
    gray = RNG.integers(0, 65536, (5, 7))
    photo = as_photo(Image.fromarray(gray.astype(dtype)))
    assert photo.mode == "I;16"
    assert (np.asarray(photo) == gray).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_files_are_written(suffix, tmp_path):
    gray = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    write_photo(tmp_path / f"a.{suffix}", as_photo(Image.fromarray(gray)))
    assert (np.asarray(read_photo(tmp_path / f"a.{suffix}")) == gray).all()


def test_8_bit_format_reduces_to_8_bits_with_a_warning(tmp_path, caplog):
    gray = np.array([[0, 128, 129, 257, 65535]], np.uint16)  # 128.5 is halfway to the first level
    write_photo(tmp_path / "a.bmp", as_photo(Image.fromarray(gray)))
    assert np.asarray(Image.open(tmp_path / "a.bmp")).tolist() == [[0, 0, 1, 1, 255]]
    assert "BMP has 8 bits, so the result has 8" in caplog.text


def png_of_16_bits(colour):
    """A PNG with three channels of 16 bits, which Pillow cannot write: by the standard, each row unfiltered."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", colour.shape[1], colour.shape[0], 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour))),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_of_16_bits(colour, order):
    """An uncompressed TIFF, by the standard: "<" little-endian, ">" big-endian; bits per channel lie at byte 8."""
    height, width, channels = colour.shape
    data = colour.astype(f"{order}u2").tobytes()
    tags = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 14), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(data))),
    ]
    short = f"{order}HHIHH"
    entries = [struct.pack(short, *tag, 0) if tag[1:3] == (3, 1) else struct.pack(f"{order}HHII", *tag) for tag in tags]
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 14 + len(data))
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    return start + bits + data + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


DEEP = np.random.default_rng(16).integers(0, 65536, (67, 5, 4)).astype(np.uint16)


def test_16_bit_colour_is_read_from_png_and_tiff_of_either_byte_order(tmp_path):
    colour = DEEP[..., :3]
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(colour))
    for name, order in (("little.tif", "<"), ("big.tif", ">")):
        (tmp_path / name).write_bytes(tiff_of_16_bits(colour, order))
    for name in ("deep.png", "little.tif", "big.tif"):
        photo = read_photo(tmp_path / name)
        assert isinstance(photo, DeepPhoto), name
        assert (photo.pixels == colour).all(), name
        assert photo.size == (5, 67)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_is_written_to_png_with_its_metadata(tmp_path, channels):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    info = {"icc_profile": profile, "dpi": (300, 300), "text": {"Author": "me"}, "exif": exif(1, "png")}
    photo = DeepPhoto(DEEP[..., :channels], info)
    for level in (0, 9):
        write_photo(tmp_path / "deep.png", photo, png_compression=level)
        again = read_photo(tmp_path / "deep.png")
        assert (again.pixels == photo.pixels).all()
        assert again.info["icc_profile"] == profile
        assert again.info["text"] == {"Author": "me"}
        assert b"Kamera" in again.info["exif"]
        assert again.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_another_decoder_reads_the_same_16_bits(tmp_path):
    av = pytest.importorskip("av", reason="av is an extra")
    write_photo(tmp_path / "deep.png", DeepPhoto(DEEP))
    with av.open(tmp_path / "deep.png") as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "rgba64be"
    assert (frame.to_ndarray() == DEEP).all()


def test_16_bit_colour_is_rounded_for_formats_of_8_bits_with_a_warning(tmp_path, caplog):
    photo = DeepPhoto(DEEP[..., :3])
    for name in ("a.tif", "a.bmp"):
        write_photo(tmp_path / name, photo)
        assert f"{name}: 16-bit colour is written to PNG only, so the result has 8 bits" in caplog.text
        assert (np.asarray(Image.open(tmp_path / name)) == np.rint(photo.pixels / 257)).all()
    check_fits(tmp_path / "a.jpg", photo, times(2, photo))
    with pytest.raises(InputError, match="cannot store the image's transparency"):
        check_fits(tmp_path / "a.jpg", DeepPhoto(DEEP), (2, 2))


def test_a_turned_image_of_16_bit_colour_is_read_upright(tmp_path):
    write_photo(tmp_path / "turned.png", DeepPhoto(DEEP[..., :3], {"exif": exif(6, "png")}))
    assert (read_photo(tmp_path / "turned.png").pixels == np.rot90(DEEP[..., :3], -1)).all()


def test_16_bit_colour_for_use_in_python_has_8_bits_with_a_warning(tmp_path, caplog):
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(COLOUR.astype(np.uint16) * 256 + 77))
    with Image.open(tmp_path / "deep.png") as image:
        assert (np.asarray(as_photo(image, "deep.png")) == COLOUR).all()
    assert "deep.png: 16 bits per channel, of which Pillow reads 8: the result has 8" in caplog.text


def test_animations_and_multiple_pages_are_refused(tmp_path):
    frames = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1].copy())]
    for suffix in ("gif", "webp", "png", "tif"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match=f"a.{suffix}: contains 2 images; save the one you want, or convert"):
            read_photo(tmp_path / f"a.{suffix}")


def test_pixels_without_a_range_are_refused():
    with pytest.raises(InputError, match="floating point"):
        as_photo(Image.fromarray(np.zeros((2, 2), np.float32)))
    with pytest.raises(InputError, match="gray values from -3 to 0"):
        as_photo(Image.fromarray(np.array([[-3, 0]], np.int32)))


def times(scale, image):
    return tuple(side * scale for side in image.size)


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_alpha_is_written_only_where_needed(suffix, tmp_path):
    image = Image.fromarray(COLOUR).convert("RGBA")
    path = tmp_path / f"a.{suffix}"
    check_fits(path, image, times(2, image))
    write_photo(path, image)
    assert Image.open(path).mode == "RGB"
    image.putpixel((0, 0), (1, 2, 3, 200))
    with pytest.raises(InputError, match="cannot store the image's transparency; choose another format, such as png"):
        check_fits(path, image, times(2, image))
    check_fits(tmp_path / "a.png", image, times(2, image))


@pytest.mark.parametrize(
    ("size", "scale", "name", "message"),
    [
        ((8192, 1), 2, "a.webp", "WEBP has at most 16383 pixels a side, not 16384x2"),
        ((1, 22000), 3, "a.jpg", "JPEG has at most 65500 pixels a side"),
        ((40, 40), 1000, "a.tif", "40000x40000 pixels are too many for one TIFF"),
    ],
)
def test_unsupported_content_is_refused_before_the_work(size, scale, name, message, tmp_path):
    image = Image.new("RGB", size)
    with pytest.raises(InputError, match=message):
        check_fits(tmp_path / name, image, times(scale, image))
    check_fits(tmp_path / "a.png", image, (8 * scale, 8 * scale))


def test_webp_of_quality_100_is_lossless(tmp_path):
    image = Image.fromarray(np.dstack([COLOUR, COLOUR[..., :1] // 200 * 255]))
    write_photo(tmp_path / "a.webp", image, quality=100)
    assert (np.asarray(read_photo(tmp_path / "a.webp")) == np.asarray(image)).all()
    write_photo(tmp_path / "b.webp", image, quality=95)
    assert (np.asarray(read_photo(tmp_path / "b.webp")) != np.asarray(image)).any()


def test_jpeg_does_not_subsample_chroma(tmp_path):
    write_photo(tmp_path / "a.jpg", Image.fromarray(COLOUR))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)


def cmyk_profile():
    """An ICC profile of two grid points per ink, from CMYK to Lab: white paper, everything with ink is black.

    ICC.1:2010, 7.2 (header) and 10.10 (lut8Type).
    """
    header = bytearray(128)
    header[8:12] = b"\x02\x40\x00\x00"
    header[12:24] = b"prtrCMYKLab "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">iii", 63190, 65536, 54061)  # D50
    identity = bytes(range(256))
    grid = b"\xff\x80\x80" + b"\x00\x80\x80" * 15
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    tags = [(b"A2B0", lut), (b"wtpt", white)]
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header[0:4] = struct.pack(">I", offset + len(body))
    return bytes(header) + table + body


def test_cmyk_becomes_srgb_by_its_profile(tmp_path, caplog):
    inks = np.zeros((4, 6, 4), np.uint8)
    inks[:, 3:, 0] = 255  # cyan, which this profile's printer shows as black
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif", icc_profile=cmyk_profile())
    with caplog.at_level(logging.WARNING):
        photo = read_photo(tmp_path / "a.tif")
    assert "converted from CMYK to sRGB with its colour profile" in caplog.text
    assert np.asarray(photo)[:, :3].min() >= 250
    assert np.asarray(photo)[:, 3:].max() <= 20
    kept = ImageCms.ImageCmsProfile(io.BytesIO(photo.info["icc_profile"]))
    assert kept.profile.xcolor_space.strip() == "RGB"


@pytest.mark.parametrize("tag", [ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo])
def test_tiff_with_nested_directories_is_read(tag, tmp_path):
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Camera"
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: "R98"}
    tags.get_ifd(tag)[1] = "N"
    Image.new("RGB", (6, 5), (9, 8, 7)).save(tmp_path / "a.tif", exif=tags, compression="raw")
    photo = read_photo(tmp_path / "a.tif")
    assert photo.getexif()[ExifTags.Base.Make] == "Camera"
    assert photo.getpixel((0, 0)) == (9, 8, 7)


def test_damaged_exif_is_dropped_alone(tmp_path, caplog, monkeypatch):
    Image.new("RGB", (6, 5), (9, 8, 7)).save(tmp_path / "a.png", dpi=(300, 300))

    def damaged(self):
        raise struct.error("unpack requires a buffer of 8 bytes")

    monkeypatch.setattr(Image.Exif, "tobytes", damaged)  # as of a BigTIFF
    photo = read_photo(tmp_path / "a.png")
    assert photo.getpixel((0, 0)) == (9, 8, 7) and "exif" not in photo.info and "dpi" in photo.info
    assert "a.png: unreadable EXIF is dropped" in caplog.text


def test_profile_of_another_colour_space_is_dropped(caplog):
    lab = Image.new("LAB", (4, 4))
    lab.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    photo = as_photo(lab)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(photo.info["icc_profile"]))
    assert (photo.mode, profile.profile.xcolor_space.strip()) == ("RGB", "RGB")
    assert "converted from Lab to sRGB" in caplog.text


def test_alpha_lost_in_16_bits_is_a_warning(tmp_path, caplog):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "a.png", transparency=1000)
    assert read_photo(tmp_path / "a.png").mode == "I;16"
    assert "one 16-bit gray value stands for transparency, which is dropped" in caplog.text


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_photo(tmp_path / "a.png", Image.fromarray(COLOUR))
    assert not list(tmp_path.iterdir())
