"""Users' pictures: read whole, with depth, transparency and metadata, and written in the same way."""

import io
import logging
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from sr_lightning.errors import InputError
from sr_lightning.images.files import opened
from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)

# What of Pillow's `info` each format keeps, by the name of the argument that writes it
KEPT = {
    "BMP": ("dpi",),
    "JPEG": ("icc_profile", "exif", "xmp", "dpi", "comment"),
    "PNG": ("icc_profile", "exif", "dpi"),  # xmp and text are in its pnginfo
    "TIFF": ("icc_profile", "exif", "dpi"),  # xmp is in its exif
    "WEBP": ("icc_profile", "exif", "xmp"),
}
HOLDS_ALPHA = ("PNG", "TIFF", "WEBP")
HOLDS_16_BITS = ("PNG", "TIFF", "PPM")
LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels
MOST_BYTES = {"BMP": 2**32 - 2**16, "TIFF": 2**32 - 2**16}  # their offsets have 32 bits

# Tags of EXIF's first directory, which is also TIFF's, that say how the pixels are stored and lie: the result says that
# anew.
_OF_STORAGE = {
    *range(254, 260),  # size, bits, compression
    *(
        262,
        266,
        273,
        274,
        277,
        278,
        279,
        282,
        283,
        284,
        296,
        317,
        318,
        319,
        320,
        322,
        323,
        324,
        325,
        330,
        338,
        339,
        347,
    ),
    *(512, 513, 514, 529, 530, 531, 532, 700, 34675),  # JPEG in TIFF, and what has an argument of its own
}
_SIZE_OF_EXIF = (40962, 40963)  # width and height in the Exif directory
_XMP_IN_PNG = "XML:com.adobe.xmp"


def read_photo(path: str | Path) -> Image.Image:
    """A picture file as `as_photo` gives it.

    Raises:
        InputError: As of `as_photo`; or missing, no image, damaged, or too large for Pillow.
    """
    with opened(path) as image:
        return as_photo(image, str(path))


def as_photo(image: Image.Image, name: str = "the image") -> Image.Image:
    """A picture as it is enlarged: upright, and in one of five modes; the given one stays as it is.

    Palettes and CMYK become RGB (CMYK through its profile to sRGB, where it has one), 1-bit becomes 8-bit; gray of 16
    bits stays so. Colour of 16 bits does not: Pillow reads its upper bytes, and the log says so.

    Args:
        image: Of one frame; of a camera's multi-picture JPEG the main one is taken.
        name: Of the picture in messages.

    Returns:
        Mode L, LA, RGB, RGBA or I;16. Its `info` has what there is of icc_profile, exif, xmp, dpi, comment,
        compression (of a TIFF) and text (of a PNG, a dict); EXIF without orientation, size and thumbnail.

    Raises:
        InputError: An animation or several pages, floating point, or gray beyond 16 bits.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InputError(
            f"{name}: holds {image.n_frames} pictures; save the wanted one alone, or make an animation a video (mp4)"
        )
    if not image.mode.startswith("I") and any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):
        log.warning("%s: 16 bits per colour, of which Pillow reads 8: the result has 8", name)
    if image.mode.startswith("I") and "transparency" in image.info:
        log.warning("%s: one of its 16-bit grays stands for transparency, which is left out", name)
    exif = _exif(image, name)  # before the file is read and closed
    image.load()
    info = _metadata(image) | {"exif": exif}
    upright = ImageOps.exif_transpose(image)  # a copy in any case
    info["xmp"] = upright.info.get("xmp")  # without orientation
    photo = _in_a_mode(upright, name)
    if image.mode in ("CMYK", "LAB"):  # of whose colours the file's profile speaks
        info["icc_profile"] = photo.info.get("icc_profile")
    photo.info = {key: value for key, value in info.items() if value}
    return photo


def _metadata(image: Image.Image) -> dict[str, object]:
    """What `as_photo` keeps, but exif and xmp, also of what it has returned before."""
    info = {key: image.info.get(key) for key in ("icc_profile", "comment", "compression")}
    if min(image.info.get("dpi", (0, 0))) > 1:  # else it stands for nothing said
        info["dpi"] = image.info["dpi"]
    if isinstance(image, PngImagePlugin.PngImageFile):
        texts = image.text.items()
        info["text"] = {key: text for key, text in texts if key != _XMP_IN_PNG and not key.startswith("Raw profile")}
    elif isinstance(image.info.get("text"), dict):
        info["text"] = image.info["text"]
    return info


def _exif(image: Image.Image, name: str) -> bytes | None:
    """EXIF without what the result says anew; damage to it is no damage to the picture."""
    exif = Image.Exif()
    try:
        exif.load(image.getexif().tobytes())  # a copy
        for tag in _OF_STORAGE & exif.keys():
            del exif[tag]
        if ExifTags.IFD.Exif in exif:
            for tag in _SIZE_OF_EXIF:
                exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error) as error:
        log.warning("%s: its EXIF cannot be read and is left out (%s)", name, error)
        return None


def _in_a_mode(image: Image.Image, name: str) -> Image.Image:
    """Mode L, LA, RGB, RGBA or I;16, by the colours it has."""
    mode = image.mode
    if mode == "F":
        raise InputError(f"{name}: floating point pixels; save it with 8 or 16 bits, or give an array in [0, 1]")
    if mode.startswith("I"):  # I;16 and its byte orders; I is how some files of 16 bits come
        gray = np.asarray(image)
        low, high = int(gray.min()), int(gray.max())
        if not 0 <= low <= high <= 65535:
            raise InputError(f"{name}: gray values from {low} to {high}; scale them to 0..65535 or to 8 bits")
        return Image.fromarray(gray.astype(np.uint16))
    if mode == "CMYK":
        return _from_cmyk(image, name)
    if mode == "LAB":  # with the profile of that
        log.warning("%s: Lab becomes sRGB", name)
    gray = mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if gray else "RGBA")
    return image.convert("L" if gray else "RGB")


def _from_cmyk(image: Image.Image, name: str) -> Image.Image:
    profile = image.info.pop("icc_profile", None)
    if profile is not None:
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            rgb = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("%s: its colour profile cannot be used (%s)", name, error)
        else:
            log.warning("%s: CMYK becomes sRGB by its colour profile", name)
            rgb.info["icc_profile"] = srgb.tobytes()
            return rgb
    log.warning("%s: CMYK becomes RGB without a colour profile", name)
    return image.convert("RGB")


def format_of(path: Path) -> str | None:
    """Pillow's name of the format that a file's suffix says, if Pillow can write it."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    return file_format if file_format in Image.SAVE else None


def check_fits(path: Path, photo: Image.Image, scale: int) -> None:
    """Refuse what a file's format cannot hold, before the work is done.

    Args:
        path: To be written; the suffix is one of `format_of`.
        photo: Of `as_photo`, not enlarged yet.
        scale: By which it will be.

    Raises:
        InputError: Too large for the format, or transparent where the format is not.
    """
    file_format = format_of(path)
    width, height = (side * scale for side in photo.size)
    way_out = "choose another format, such as png"
    if max(width, height) > LONGEST_SIDE.get(file_format, width + height):
        most = LONGEST_SIDE[file_format]
        raise InputError(f"{path}: {file_format} has at most {most} pixels a side, not {width}x{height}; {way_out}")
    if width * height * len(photo.getbands()) * (1 + (photo.mode == "I;16")) > MOST_BYTES.get(file_format, 2**63):
        raise InputError(f"{path}: {width}x{height} pixels are too many for one {file_format} file; {way_out}")
    if photo.mode in ("LA", "RGBA") and file_format not in HOLDS_ALPHA and _transparent(photo):
        raise InputError(f"{path}: {file_format} holds no transparency, which the picture has; {way_out}")


def write_photo(path: Path, photo: Image.Image, quality: int = 95) -> None:
    """Write a picture with its metadata, complete or not at all.

    Args:
        path: Its suffix says the format.
        photo: In a mode and with an `info` of `as_photo`. Gray of 16 bits becomes 8 where the format ends there, which
            the log says.
        quality: Of JPEG and WebP, 1 to 100; 100 is WebP without loss.

    Raises:
        InputError: The format cannot hold the picture.
        OSError: The file cannot be written.
    """
    file_format = format_of(path)
    if photo.mode == "I;16" and file_format not in HOLDS_16_BITS:
        log.warning("%s: %s has 8 bits, so the result has, too", path, file_format)
        info, gray = photo.info, np.asarray(photo).astype(np.uint32)
        photo = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
        photo.info = info
    if photo.mode in ("LA", "RGBA") and file_format not in HOLDS_ALPHA:
        photo = photo.convert(photo.mode[:-1])  # opaque, or check_fits would not have let it pass
    options = {key: photo.info[key] for key in KEPT.get(file_format, ()) if key in photo.info}
    if file_format == "JPEG":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    elif file_format == "WEBP":
        options |= {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
    elif file_format == "PNG":
        options["pnginfo"] = _png_text(photo.info)
    elif file_format == "TIFF":
        options |= {"compression": _tiff_compression(photo), "exif": _tiff_tags(photo)}
    try:
        with replacing(path) as temporary:
            photo.save(temporary, format=file_format, **options)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written as {file_format} ({error}); try another --format") from error


def _png_text(info: dict) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    for key, value in info.get("text", {}).items():
        text.add_text(key, value)
    if "xmp" in info:
        text.add_itxt(_XMP_IN_PNG, info["xmp"].decode(errors="replace"))
    return text


def _tiff_tags(photo: Image.Image) -> bytes:
    tags = Image.Exif()
    tags.load(photo.info.get("exif", b""))
    if "xmp" in photo.info:
        tags[700] = photo.info["xmp"]
    return tags.tobytes()


def _tiff_compression(photo: Image.Image) -> str:
    """The input's, if it loses nothing; none beside EXIF with directories, which Pillow writes only so."""
    exif = photo.getexif()
    if ExifTags.IFD.Exif in exif or ExifTags.IFD.GPSInfo in exif:
        return "raw"
    before = photo.info.get("compression")
    return before if before in ("raw", "tiff_lzw") else "tiff_adobe_deflate"


def _transparent(photo: Image.Image) -> bool:
    return photo.getchannel("A").getextrema()[0] < 255
