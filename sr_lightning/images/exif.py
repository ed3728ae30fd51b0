"""EXIF: orientation of the pixels, and the metadata that a written image carries over."""

import logging
import struct

from PIL import ExifTags, Image, ImageOps

log = logging.getLogger(__name__)

# EXIF orientation -> transpose that turns the image upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Tags of EXIF's first directory (which is also TIFF's) that describe how the pixels are stored. Pillow writes them
# again for the result.
_STORAGE_TAGS = {
    *range(254, 260),  # size, bits, compression
    *(262, 266, *range(273, 275), *range(277, 280), *range(282, 285), 296, *range(317, 321)),
    *(*range(322, 326), 330, 338, 339, 347),
    *(512, 513, 514, 529, 530, 531, 532, 700, 34675),  # JPEG in TIFF; XMP and ICC profile, which are stored separately
}
_SIZE_TAGS = (40962, 40963)  # width and height in the Exif directory
_XMP_TAG = 700


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of an image that is not loaded yet; 1 for TIFF, which Pillow turns itself."""
    if image.format == "TIFF":
        return 1
    # Not image.getexif(): for PNG that decodes the pixels to see whether EXIF follows them.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def swaps_sides(image: Image.Image) -> bool:
    """Return True if turning the image upright exchanges width and height."""
    return orientation(image) >= 5


def upright_transpose(image: Image.Image) -> Image.Transpose | None:
    """Transpose that turns an image upright; None if it is upright. Call it before the image is loaded."""
    return _UPRIGHT.get(orientation(image))


def upright_copy(image: Image.Image) -> Image.Image:
    """Copy of an image, turned upright, without the orientation in its EXIF and XMP."""
    return ImageOps.exif_transpose(image)


def exif_to_keep(image: Image.Image, name: str) -> bytes | None:
    """EXIF without the tags that describe the stored pixels; unreadable EXIF is dropped, not an error.

    Args:
        image: An image whose file is still open.
        name: Used in log messages.
    """
    exif = Image.Exif()
    try:
        exif.load(image.getexif().tobytes())  # a copy
        for tag in _STORAGE_TAGS & exif.keys():
            del exif[tag]
        if ExifTags.IFD.Exif in exif:
            for tag in _SIZE_TAGS:
                exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error) as error:
        log.warning("%s: unreadable EXIF is dropped (%s)", name, error)
        return None


def tiff_exif(image: Image.Image) -> bytes:
    """EXIF and XMP of an image as the tags of a TIFF file."""
    tags = Image.Exif()
    tags.load(image.info.get("exif", b""))
    if "xmp" in image.info:
        tags[_XMP_TAG] = image.info["xmp"]
    return tags.tobytes()


def has_subdirectories(image: Image.Image) -> bool:
    """Return True if the EXIF has an Exif or GPS directory."""
    exif = image.getexif()
    return ExifTags.IFD.Exif in exif or ExifTags.IFD.GPSInfo in exif
