"""Colour of 16 bits per channel, which Pillow opens and saves with 8."""

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sr_lightning.images.exif import upright_copy
from sr_lightning.images.files import open_image
from sr_lightning.images.streams import Stdin

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}  # channels -> colour type of PNG's header
_STRIPE = 64  # rows that are filtered at a time


def has_deep_colour(image: Image.Image) -> bool:
    """Return True if an image that is not loaded yet is RGB or RGBA of 16 bits in a file that `read_deep_colour` reads.

    One colour that stands for transparency is not supported.
    """
    deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", []))
    return deep and image.mode in ("RGB", "RGBA") and "transparency" not in image.info


def read_deep_colour(path: str | Path | Stdin) -> np.ndarray:
    """Decode an image of `has_deep_colour`, turned upright, to uint16 (H, W, 3 or 4).

    Pillow's unpackers of 16-bit colour keep one byte of two, which one depends on the byte order in their name. So the
    file is decoded twice, once with the other byte order.

    Raises:
        InputError: The file cannot be decoded.
    """
    high, low = (_decode(path, other_order=other) for other in (False, True))
    return high.astype(np.uint16) << 8 | low


def _decode(path: str | Path | Stdin, *, other_order: bool) -> np.ndarray:
    with open_image(path) as image:
        if other_order:
            image.tile = [tile._replace(args=_swapped(tile.args)) for tile in image.tile]
        image.load()
        return np.asarray(upright_copy(image))


def _swapped(args: object) -> object:
    """Exchange the byte order in a decoder's arguments, of which the first, or only one, is the raw mode."""
    if isinstance(args, tuple):
        return (_swapped(args[0]), *args[1:])
    mode, _, order = str(args).partition(";16")
    native = "L" if sys.byteorder == "little" else "B"
    return f"{mode};16{'B' if order.replace('N', native) == 'L' else 'L'}"


def deep_png(pixels: np.ndarray, compress_level: int, **options: object) -> bytes:
    """Encode a PNG of 16 bits per channel.

    Args:
        pixels: uint16 (H, W, 3 or 4).
        compress_level: 0 (none) to 9 (smallest).
        **options: Metadata: arguments of Pillow's `save`.
    """
    height, width, channels = pixels.shape
    file = io.BytesIO()
    Image.new("RGB" if channels == 3 else "RGBA", (1, 1)).save(file, format="PNG", **options)  # for its metadata
    chunks = []
    for kind, data in _chunks(file.getvalue()):
        if kind == b"IHDR":
            data = struct.pack(">IIBB", width, height, 16, _COLOUR_TYPES[channels]) + data[10:]
        elif kind == b"IDAT":
            data = _compressed(pixels, compress_level)
        chunks.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return _SIGNATURE + b"".join(chunks)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of each chunk of a PNG that Pillow wrote."""
    place = len(_SIGNATURE)
    while place < len(png):
        size, kind = struct.unpack_from(">I4s", png, place)
        yield kind, png[place + 8 : place + 8 + size]
        place += 12 + size


def _compressed(pixels: np.ndarray, compression: int) -> bytes:
    """Compress pixels (H, W, C), each row filtered by its left or upper neighbours, whichever leaves the least."""
    height, width, channels = pixels.shape
    compressor = zlib.compressobj(compression)
    parts, above = [], np.zeros((1, 2 * width * channels), np.uint8)
    for top in range(0, height, _STRIPE):
        rows = np.ascontiguousarray(pixels[top : top + _STRIPE], ">u2").view(np.uint8).reshape(-1, above.shape[1])
        left = rows.copy()
        left[:, 2 * channels :] -= rows[:, : -2 * channels]
        up = rows - np.concatenate([above, rows[:-1]])
        use_up = np.abs(up.view(np.int8)).sum(1, np.int64) < np.abs(left.view(np.int8)).sum(1, np.int64)
        filtered = np.where(use_up[:, None], up, left)
        kind = np.where(use_up, 2, 1).astype(np.uint8)[:, None]
        parts.append(compressor.compress(np.concatenate([kind, filtered], axis=1).tobytes()))
        above = rows[-1:]
    return b"".join([*parts, compressor.flush()])
