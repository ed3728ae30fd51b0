"""Users' photos: read and written with bit depth, transparency and metadata."""

import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from sr_lightning.errors import InputError
from sr_lightning.images.deep_colour import deep_png, has_deep_colour, read_deep_colour
from sr_lightning.images.exif import exif_to_keep, has_subdirectories, tiff_exif, upright_copy
from sr_lightning.images.files import format_of, open_image, write_image
from sr_lightning.images.formats import (
    MAX_BYTES,
    MAX_SIDE,
    PNG_COMPRESSION,
    SAVED_METADATA,
    SUPPORTS_16_BITS,
    SUPPORTS_ALPHA,
)
from sr_lightning.images.modes import (
    GRAY_MODES,
    check_integer,
    check_single_image,
    has_16_bits,
    is_transparent,
    to_8_bits,
    to_16_bit_gray,
)
from sr_lightning.images.streams import Stdin, Stdout
from sr_lightning.images.truncation import load_whole
from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)

_XMP_IN_PNG = "XML:com.adobe.xmp"


@dataclass
class DeepPhoto:
    """A photo in colour of 16 bits per channel, which Pillow's images do not have.

    Attributes:
        pixels: uint16 (H, W, 3 or 4).
        info: As that of a result of `as_photo`.
    """

    pixels: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def with_8_bits(self) -> Image.Image:
        """Round to a Pillow image of 8 bits per channel."""
        photo = Image.fromarray(to_8_bits(self.pixels))
        photo.info = self.info
        return photo


Photo = Image.Image | DeepPhoto


def read_photo(path: str | Path | Stdin) -> Photo:
    """Read an image file and convert it with `as_photo`, or keep the 16 bits of RGB and RGBA.

    Raises:
        InputError: As of `as_photo`; or the file is missing, no image, damaged, or too large for Pillow.
    """
    with open_image(path) as image:
        deep = has_deep_colour(image)
        photo = as_photo(image, str(path), warn=not deep)
    return DeepPhoto(read_deep_colour(path), photo.info) if deep else photo


def as_photo(image: Image.Image, name: str = "the image", *, warn: bool = True) -> Image.Image:
    """Turn an image upright and convert it to one of five modes; the input is not modified.

    Palettes and CMYK become RGB (CMYK with its profile to sRGB, if it has one), 1-bit becomes 8-bit; 16-bit gray keeps
    its 16 bits. 16-bit colour does not: Pillow reads its upper bytes, and the log warns of it.

    Args:
        image: An image of one frame; of a camera's multi-picture JPEG the main one is used.
        name: Used in messages.
        warn: Log that 16-bit colour loses its lower bytes.

    Returns:
        Mode L, LA, RGB, RGBA or I;16. Its `info` has those that exist of icc_profile, exif, xmp, dpi, comment,
        compression (of a TIFF) and text (of a PNG, a dict); EXIF without orientation, size and thumbnail.

    Raises:
        InputError: An animation or several pages, floating point, or gray beyond 16 bits.
    """
    check_single_image(image, name, "save the one you want, or convert an animation to a video (mp4)")
    if warn and not has_16_bits(image) and any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):
        log.warning("%s: 16 bits per channel, of which Pillow reads 8: the result has 8", name)
    if has_16_bits(image) and "transparency" in image.info:
        log.warning("%s: one 16-bit gray value stands for transparency, which is dropped", name)
    exif = exif_to_keep(image, name)  # before the file is read and closed
    load_whole(image, name)
    info = _metadata(image) | {"exif": exif}
    upright = upright_copy(image)
    info["xmp"] = upright.info.get("xmp")  # without orientation
    photo = _convert(upright, name)
    if image.mode in ("CMYK", "LAB"):  # the file's profile describes those colours
        info["icc_profile"] = photo.info.get("icc_profile")
    photo.info = {key: value for key, value in info.items() if value}
    return photo


def _metadata(image: Image.Image) -> dict[str, object]:
    """Metadata of `as_photo` except exif and xmp; `image` may be a result of `as_photo`."""
    info = {key: image.info.get(key) for key in ("icc_profile", "comment", "compression")}
    if min(image.info.get("dpi", (0, 0))) > 1:  # other values mean that no resolution is given
        info["dpi"] = image.info["dpi"]
    if isinstance(image, PngImagePlugin.PngImageFile):
        texts = image.text.items()
        info["text"] = {key: text for key, text in texts if key != _XMP_IN_PNG and not key.startswith("Raw profile")}
    elif isinstance(image.info.get("text"), dict):
        info["text"] = image.info["text"]
    return info


def _convert(image: Image.Image, name: str) -> Image.Image:
    """Convert to mode L, LA, RGB, RGBA or I;16, whichever holds the image's colours."""
    check_integer(image, name, "save it with 8 or 16 bits, or give an array in [0, 1]")
    if has_16_bits(image):
        return to_16_bit_gray(image, name)
    if image.mode == "CMYK":
        return _from_cmyk(image, name)
    if image.mode == "LAB":  # Pillow converts by a profile of its own
        log.warning("%s: converted from Lab to sRGB", name)
    gray = image.mode in GRAY_MODES
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
            log.warning("%s: converted from CMYK to sRGB with its colour profile", name)
            rgb.info["icc_profile"] = srgb.tobytes()
            return rgb
    log.warning("%s: converted from CMYK to RGB without a colour profile", name)
    return image.convert("RGB")


def check_fits(path: Path | Stdout, photo: Photo, size: tuple[int, int]) -> None:
    """Refuse an image that a file's format cannot store, before it is upscaled.

    Args:
        path: The file to write; `format_of` knows its suffix.
        photo: A result of `read_photo`, before upscaling.
        size: Width and height of the result.

    Raises:
        InputError: Too large for the format, or transparent and the format has no alpha channel.
    """
    file_format = format_of(path)
    width, height = size
    advice = "choose another format, such as png"
    if max(width, height) > MAX_SIDE.get(file_format, width + height):
        limit = MAX_SIDE[file_format]
        raise InputError(f"{path}: {file_format} has at most {limit} pixels a side, not {width}x{height}; {advice}")
    photo = photo.with_8_bits() if isinstance(photo, DeepPhoto) else photo  # of 16 bits only PNG is written, unlimited
    if width * height * len(photo.getbands()) * (1 + (photo.mode == "I;16")) > MAX_BYTES.get(file_format, 2**63):
        raise InputError(f"{path}: {width}x{height} pixels are too many for one {file_format} file; {advice}")
    if photo.mode in ("LA", "RGBA") and file_format not in SUPPORTS_ALPHA and is_transparent(photo):
        raise InputError(f"{path}: {file_format} cannot store the image's transparency; {advice}")


def write_photo(path: Path, photo: Photo, quality: int = 95, png_compression: int = PNG_COMPRESSION) -> None:
    """Write an image with its metadata, complete or not at all.

    Args:
        path: Its suffix selects the format.
        photo: In a mode and with an `info` of `as_photo`, or a `DeepPhoto`. 16 bits become 8 if the format has none,
            with a line in the log; 16-bit colour is written to PNG only.
        quality: Of JPEG and WebP, 1 to 100; 100 is lossless WebP.
        png_compression: Of PNG, 0 (none) to 9 (smallest).

    Raises:
        InputError: The format cannot store the image.
        OSError: The file cannot be written.
    """
    file_format = format_of(path)
    photo = _with_depth_of(path, photo)
    if isinstance(photo, Image.Image) and photo.mode in ("LA", "RGBA") and file_format not in SUPPORTS_ALPHA:
        photo = photo.convert(photo.mode[:-1])  # opaque, otherwise check_fits has refused it
    options: dict[str, Any] = {k: photo.info[k] for k in SAVED_METADATA.get(file_format, ()) if k in photo.info}
    try:
        if file_format == "JPEG":
            options |= {"quality": quality, "subsampling": "4:4:4"}
        elif file_format == "WEBP":
            options |= {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
        elif file_format == "PNG":
            options |= {"pnginfo": _png_text(photo.info), "compress_level": png_compression}
        elif file_format == "TIFF":
            options |= {"compression": _tiff_compression(photo), "exif": tiff_exif(photo)}
        if isinstance(photo, DeepPhoto):
            with replacing(path) as temporary:
                temporary.write_bytes(deep_png(photo.pixels, **options))
        else:
            write_image(path, photo, **options)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written as {file_format} ({error}); try another --format") from error


def _with_depth_of(path: Path, photo: Photo) -> Photo:
    """Round 16 bits to 8 if no more are written to the file's format."""
    file_format = format_of(path)
    if isinstance(photo, DeepPhoto) and file_format != "PNG":
        log.warning("%s: 16-bit colour is written to PNG only, so the result has 8 bits", path)
        return photo.with_8_bits()
    if not isinstance(photo, DeepPhoto) and photo.mode == "I;16" and file_format not in SUPPORTS_16_BITS:
        log.warning("%s: %s has 8 bits, so the result has 8", path, file_format)
        gray = Image.fromarray(to_8_bits(np.asarray(photo)))
        gray.info = photo.info
        return gray
    return photo


def _png_text(info: dict) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    for key, value in info.get("text", {}).items():
        text.add_text(key, value)
    if "xmp" in info:
        text.add_itxt(_XMP_IN_PNG, info["xmp"].decode(errors="replace"))
    return text


def _tiff_compression(photo: Image.Image) -> str:
    """Choose the input's compression if it is lossless; none beside EXIF with directories, which Pillow requires."""
    if has_subdirectories(photo):
        return "raw"
    original = photo.info.get("compression")
    return original if original in ("raw", "tiff_lzw") else "tiff_adobe_deflate"
