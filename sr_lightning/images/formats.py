"""File formats of images and videos, and the limit of pixels, known before Pillow and torch are imported."""

import os

from sr_lightning.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Found in the folders of a data set: all that Pillow decodes, without icons (several sizes in one file) and animations.
DATA_SUFFIXES = (
    *IMAGE_SUFFIXES,
    *(".apng", ".avif", ".avifs", ".blp", ".bw", ".dcx", ".dds", ".dib", ".fit", ".fits", ".ftc", ".ftu", ".gbr"),
    *(".gif", ".icb", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf", ".jpx", ".mpo", ".msp"),
    *(".pbm", ".pcd", ".pcx", ".pfm", ".pnm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga"),
    *(".vda", ".vst", ".xbm", ".xpm"),
)

# Values of --format, and the suffixes with which `sr_lightning.upscale` writes an image; others become .png.
IMAGE_FORMATS = ("png", "jpg", "webp", "tif", "bmp")
WRITABLE_IMAGE_SUFFIXES = (*(f".{name}" for name in IMAGE_FORMATS), ".jpeg", ".tiff")

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
WRITABLE_VIDEO_SUFFIXES = (".m4v", ".mkv", ".mov", ".mp4", ".webm")  # containers; others become .mkv

# Found in folders and by patterns. An animated .gif is then refused with the reason.
UPSCALE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif", *VIDEO_SUFFIXES)

# The limits of each format, by Pillow's name
SUPPORTS_ALPHA = ("PNG", "TIFF", "WEBP")
SUPPORTS_16_BITS = ("PNG", "TIFF", "PPM")
MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels
MAX_BYTES = {"BMP": 2**32 - 2**16, "TIFF": 2**32 - 2**16}  # their offsets have 32 bits

# Pixels that one byte of a file can stand for, in formats that bound it. Deflate makes 1032 bytes of one, LZW fewer;
# a unit of JPEG, at most 32x32 pixels, takes at least a bit.
MAX_PIXELS_PER_BYTE = {"GIF": 8256, "JPEG": 8256, "MPO": 8256, "PNG": 8256, "PPM": 8}

# Compression of PNG, 0 (none) to 9. With Pillow's own default, 6, photos and their enlargements are 1 to 11 % smaller,
# but take three to four times as long, which is as long as a small network (docs/upscale.md).
PNG_COMPRESSION = 2

# Entries of Pillow's `info` that are written to each format, by the name of the argument of `save`
SAVED_METADATA = {
    "BMP": ("dpi",),
    "JPEG": ("icc_profile", "exif", "xmp", "dpi", "comment"),
    "PNG": ("icc_profile", "exif", "dpi"),  # xmp and text are in its pnginfo
    "TIFF": ("icc_profile", "exif", "dpi"),  # xmp is in its exif
    "WEBP": ("icc_profile", "exif", "xmp"),
}


def max_pixels() -> int | None:
    """Return the limit of pixels that the user sets by SR_MAX_PIXELS, if any.

    Raises:
        InputError: It is not a number.
    """
    text = os.environ.get("SR_MAX_PIXELS")
    if text and not text.isdecimal():
        raise InputError(f"SR_MAX_PIXELS={text}: give a number of pixels, such as 1000000000")
    return int(text) if text else None
