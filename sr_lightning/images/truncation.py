"""Truncated files that Pillow reads as whole images, whose missing pixels are black or gray.

Decoding twice finds them: only missing pixels depend on what stands in place of missing data. The first decoding tells
which files may be truncated, so that few are decoded twice.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageFile

from sr_lightning.errors import InputError

_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; arithmetic coding leaves out zeros at the end
_PROGRESSIVE, _SOI, _EOI, _SOS = 0xC2, 0xD8, 0xD9, 0xDA
_DRI, _RESTARTS = 0xDD, range(0xD0, 0xD8)
_MORE_DATA = b"".join(bytes([*range(1, 255), 0xFF, restart]) for restart in _RESTARTS)


def load_whole(image: Image.Image, name: object) -> None:
    """Decode an image; the file of an opened one is checked.

    Args:
        image: Any image.
        name: Used in the message.

    Raises:
        InputError: The data of the file end before the last pixel.
    """
    content = _content(image) if isinstance(image, ImageFile.ImageFile) and image.tile else None
    image.load()
    if content is None:
        return
    if _is_truncated_jpeg(image, content) if image.format in ("JPEG", "MPO") else _is_truncated(image, content):
        raise InputError(f"{name}: truncated, its data end before the last pixel; copy it again or remove it")


def _content(image: ImageFile.ImageFile) -> bytes:
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    return content


def _is_truncated(image: Image.Image, content: bytes) -> bool:
    """Decode into memory that is not black, if the last row is black or the rows are interlaced."""
    if _last_rows(image, 1).strip(b"\0") and not image.info.get("interlace"):
        return False
    with Image.open(io.BytesIO(content)) as again:
        again.im = Image.new(again.mode, again.size, 1).im
        again.load()
        return _last_rows(again, 2) != _last_rows(image, 2)


def _last_rows(image: Image.Image, count: int) -> bytes:
    return image.crop((0, max(image.height - count, 0), *image.size)).tobytes()


def _is_truncated_jpeg(image: Image.Image, content: bytes) -> bool:
    """Decode with more data at the end of the last scan, if the last pixel is gray or there are several scans.

    In a file of one scan the missing blocks are gray, except if the data end at a restart marker. A file that lacks a
    part of its last block only is not noticed.
    """
    scans = _scans(content)
    first = next(scans, None)
    if first is None:
        return False
    if first.is_only_one and not _is_gray(image.getpixel((image.width - 1, image.height - 1))):
        return first.interval > 0 and _lacks_restarts(image, first, content)
    scans = [first, *scans]
    if not _are_complete(scans):
        return True
    end = _end_of_scan(content, scans[-1].start)
    with Image.open(io.BytesIO(content[:end] + _MORE_DATA + content[end:])) as again:
        again.load()
        return again.tobytes() != image.tobytes()


def _is_gray(pixel: int | tuple[int, ...]) -> bool:
    """Return True unless the brightness differs from that of a missing block; chroma may be of a neighbour."""
    if isinstance(pixel, tuple):
        pixel = pixel[0] * 0.299 + pixel[1] * 0.587 + pixel[2] * 0.114 if len(pixel) == 3 else 128
    return abs(pixel - 128) <= 2


def _lacks_restarts(image: Image.Image, scan: "_Scan", content: bytes) -> bool:
    """Return True if the only scan of a file has fewer restart markers than its number of blocks requires."""
    across, down = (max(layer[i] for layer in image.layer) if len(image.layer) > 1 else 1 for i in (1, 2))
    blocks = math.ceil(image.width / (8 * across)) * math.ceil(image.height / (8 * down))
    part = content[scan.start : _end_of_scan(content, scan.start)]
    return sum(part.count(bytes([0xFF, restart])) for restart in _RESTARTS) < math.ceil(blocks / scan.interval) - 1


@dataclass(frozen=True)
class _Scan:
    """A scan of a JPEG file.

    Attributes:
        frame: Marker of its frame, one of _SOF.
        num_components: Of the frame.
        components: Those of the scan.
        band: First and last coefficient.
        low_bit: 0 if the coefficients are exact after the scan.
        start: Position of its data in the file.
        interval: Blocks between restart markers; 0: there are none.
    """

    frame: int
    num_components: int
    components: bytes
    band: tuple[int, int]
    low_bit: int
    start: int
    interval: int

    @property
    def is_only_one(self) -> bool:
        """Whether the frame has no other scan."""
        return self.frame != _PROGRESSIVE and len(self.components) == self.num_components


def _scans(content: bytes) -> Iterator[_Scan]:
    """Yield the scans of the first image of a JPEG file; none if its coding is not among _SOF."""
    frame = num_components = interval = 0
    position = content.find(b"\xff", 2)
    while 0 <= position < len(content) - 4 and (marker := content[position + 1]) != _EOI:
        if marker in (0x00, 0x01, _SOI, 0xFF, *_RESTARTS):  # no segment, or a byte of filling
            position = content.find(b"\xff", position + 1)
            continue
        after = position + 2 + int.from_bytes(content[position + 2 : position + 4])
        segment = content[position + 4 : after]
        if marker in _SOF:
            frame, num_components = marker, segment[5]
        elif marker == _DRI:
            interval = int.from_bytes(segment)
        elif marker == _SOS and frame:
            components, (first, last, bits) = segment[1:-3:2], segment[-3:]
            yield _Scan(frame, num_components, components, (first, last), bits & 15, after, interval)
            after = _end_of_scan(content, after)
        position = content.find(b"\xff", after)


def _end_of_scan(content: bytes, start: int) -> int:
    """Return the position of the marker after the data of a scan."""
    position = content.find(b"\xff", start)
    while 0 <= position < len(content) - 1 and content[position + 1] in (0x00, *_RESTARTS):
        position = content.find(b"\xff", position + 2)
    return position if position >= 0 else len(content)


def _are_complete(scans: list[_Scan]) -> bool:
    """Return True if there are scans of all components, in a progressive file of all frequencies to the last bit."""
    exact = {component: set() for scan in scans for component in scan.components}
    for scan in scans:
        for component in scan.components if scan.low_bit == 0 else ():
            exact[component].update(range(scan.band[0], scan.band[1] + 1))
    wanted = 64 if scans[0].frame == _PROGRESSIVE else 1
    return len(exact) == scans[0].num_components and all(len(bands) >= wanted for bands in exact.values())
