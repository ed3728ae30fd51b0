"""Pixel modes of Pillow images: checks and conversions that training images and users' photos share."""

import numpy as np
from PIL import Image

from sr_lightning.errors import InputError

GRAY_MODES = ("1", "L", "LA", "La")


def check_single_image(image: Image.Image, name: object, advice: str) -> None:
    """Refuse animations and files of several pages. Of a camera's multi-picture JPEG Pillow reads the main image.

    Args:
        image: An open image.
        name: Used in the message.
        advice: Ends the message.

    Raises:
        InputError: The file contains several images.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InputError(f"{name}: contains {image.n_frames} images; {advice}")


def check_integer(image: Image.Image, name: object, advice: str) -> None:
    """Refuse floating point pixels.

    Args:
        image: A loaded image.
        name: Used in the message.
        advice: Ends the message.

    Raises:
        InputError: The pixels are floating point numbers.
    """
    if image.mode == "F":
        raise InputError(f"{name}: floating point pixels; {advice}")


def has_16_bits(image: Image.Image) -> bool:
    """Return True for gray of 16 bits: I;16 and its byte orders, and I, in which Pillow opens some such files."""
    return image.mode.startswith("I")


def to_16_bit_gray(image: Image.Image, name: object) -> Image.Image:
    """Convert an image of `has_16_bits` to mode I;16.

    Raises:
        InputError: Values outside of 0..65535.
    """
    gray = np.asarray(image)
    low, high = int(gray.min()), int(gray.max())
    if not 0 <= low <= high <= 65535:
        raise InputError(f"{name}: gray values from {low} to {high}; scale them to 0..65535 or to 8 bits")
    return Image.fromarray(gray.astype(np.uint16))


def to_8_bits(gray: np.ndarray) -> np.ndarray:
    """Divide values of 16 bits by 257 and round to the nearest; 257 is odd, so there are no ties."""
    return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)


def is_transparent(image: Image.Image) -> bool:
    """Return True if any pixel of an image with an alpha channel is not opaque."""
    return image.getchannel("A").getextrema()[0] < 255
