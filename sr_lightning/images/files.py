"""Image files as uint8 arrays of planes, and back."""

import io
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, UnidentifiedImageError

from sr_lightning.errors import InputError
from sr_lightning.images.exif import swaps_sides, upright_transpose
from sr_lightning.images.formats import MAX_PIXELS_PER_BYTE, max_pixels
from sr_lightning.images.modes import (
    GRAY_MODES,
    check_integer,
    check_single_image,
    has_16_bits,
    is_transparent,
    to_8_bits,
    to_16_bit_gray,
)
from sr_lightning.images.streams import Stdin
from sr_lightning.images.truncation import load_whole
from sr_lightning.images.zip_member import ZipMember
from sr_lightning.utils.atomic_files import replacing


def read_image(path: str | Path | ZipMember) -> np.ndarray:
    """Decode an image file.

    Palettes, CMYK and other colour spaces become RGB; 1-bit becomes 0 and 255; an opaque alpha channel is dropped;
    EXIF orientation is applied. 16-bit gray is divided by 257 and rounded; of 16-bit colour Pillow reads the upper
    byte, which is within one level of that. Colour profiles are not applied, as in the published benchmark sets.

    Args:
        path: A file that Pillow can read, with one image; of a camera's multi-picture JPEG the main one is read.

    Returns:
        uint8 planes, contiguous, writable: (3, H, W), or (1, H, W) for a grayscale file.

    Raises:
        InputError: The file is missing, no image, damaged, truncated, animated, transparent, floating point, or too
            large.
    """
    with open_image(path) as image:
        check_single_image(image, path, "save the one you want as PNG")
        transpose = upright_transpose(image)
        load_whole(image, path)
        image = _to_gray_or_rgb(image, path)
        if transpose is not None:
            image = image.transpose(transpose)
        planes = np.asarray(image)  # (H, W) or (H, W, 3)
    planes = planes[None] if planes.ndim == 2 else planes.transpose(2, 0, 1)
    return np.array(planes if planes.dtype == np.uint8 else to_8_bits(planes), order="C")  # Pillow's own is read-only


def image_size(path: str | Path | ZipMember | Stdin) -> tuple[int, int]:
    """Read (H, W) of what `read_image` returns from the file's header.

    Raises:
        InputError: The file is missing, no image, or its header is damaged.
    """
    with open_image(path) as image:
        width, height = image.size
        return (width, height) if swaps_sides(image) else (height, width)


def write_image(path: str | Path, image: np.ndarray | Image.Image, **options: object) -> None:
    """Write an image file, complete or not at all.

    Args:
        path: Its suffix selects the format; `.png` is lossless.
        image: uint8 planes (1 or 3, H, W), or a Pillow image.
        **options: Arguments of Pillow's `save`.

    Raises:
        InputError: The suffix is not one of an image format.
    """
    path = Path(path)
    file_format = format_of(path)
    if file_format is None:
        raise InputError(f"{path}: {path.suffix or 'no suffix'} is not a writable image format; use .png")
    if not isinstance(image, Image.Image):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"expected uint8 of shape (1 or 3, H, W), got {image.dtype} of shape {image.shape}")
        image = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    with replacing(path) as temporary:
        image.save(temporary, format=file_format, **options)


def format_of(path: PurePath) -> str | None:
    """Pillow's name of the format that a file's suffix stands for; None if Pillow cannot write it."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    return file_format if file_format in Image.SAVE else None


@contextmanager
def open_image(path: str | Path | ZipMember | Stdin) -> Iterator[Image.Image]:
    """Open an image file and read its header; errors of Pillow within the block become InputErrors.

    Sizes that the file cannot hold, or above the limit, are refused before anything is decoded.
    """
    try:
        _set_limit()
        source = path if isinstance(path, str | Path) else io.BytesIO(path.read_bytes())
        with _no_pillow_warnings, Image.open(source) as image:
            _check_holds(path, image)
            yield image
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, not an image file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image that Pillow can read; convert it to PNG or remove it") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(
            f"{path}: more than {limit:,} pixels, the limit against malicious files; set the environment variable "
            "SR_MAX_PIXELS to a larger number, or split it into smaller images"
        ) from None
    except Exception as error:  # decoders raise nearly anything on damaged files: SyntaxError, struct.error, ...
        raise InputError(f"{path}: cannot be decoded ({error}); copy it again, convert it or remove it") from error


def _set_limit() -> None:
    """Set Pillow's limit of pixels from SR_MAX_PIXELS."""
    if (limit := max_pixels()) is not None:
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2  # Pillow warns above it, refuses above twice


def _check_holds(path: str | Path | ZipMember | Stdin, image: Image.Image) -> None:
    """Refuse an image whose header says more pixels than its file can hold."""
    length = (Path(path) if isinstance(path, str) else path).stat().st_size
    if image.width * image.height > length * MAX_PIXELS_PER_BYTE.get(image.format, math.inf):
        raise InputError(
            f"{path}: {image.width}x{image.height} pixels cannot be in {length:,} bytes: damaged or malicious; "
            "copy it again or remove it"
        )


def _to_gray_or_rgb(image: Image.Image, path: str | Path | ZipMember) -> Image.Image:
    """Convert to mode L, RGB, or I;16 for 16-bit gray."""
    mode = image.mode
    if image.has_transparency_data:
        if has_16_bits(image) or is_transparent(image.convert("RGBA")):
            raise InputError(f"{path}: has transparent pixels; flatten it onto a background")
        image = image.convert("RGBA")
    if has_16_bits(image):
        return to_16_bit_gray(image, path)
    check_integer(image, path, "save it with 8 or 16 bits")
    return image.convert("L" if mode in GRAY_MODES else "RGB")


class _NoPillowWarnings:
    """Context in which Python shows no warnings, safe to enter from several threads.

    Pillow warns of large images and odd metadata, which are fine here. `warnings.catch_warnings` alone restores what it
    found on entry; threads leave in another order than they entered, so one thread's setting could stay.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.caught = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.caught = warnings.catch_warnings(action="ignore")
                self.caught.__enter__()
            self.inside += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.caught.__exit__(None, None, None)


_no_pillow_warnings = _NoPillowWarnings()
