"""Image files as uint8 arrays of planes, and back."""

import io
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sr_lightning.errors import InputError
from sr_lightning.images.formats import IMAGE_SUFFIXES
from sr_lightning.images.zip_member import ZipMember
from sr_lightning.utils.atomic_files import replacing

SUFFIXES = IMAGE_SUFFIXES
SHOWN = 20  # offenders named in a message
THREADS = min(os.cpu_count() or 1, 8)  # decoding and hashing leave Python's lock alone

Item, Result = TypeVar("Item"), TypeVar("Result")

# EXIF orientation -> what puts the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path | ZipMember) -> np.ndarray:
    """Decode an image file.

    Palettes, CMYK and other colour spaces become RGB; 1-bit becomes 0 and 255; an opaque alpha channel is dropped;
    EXIF rotation is applied. 16-bit gray is divided by 257 and rounded; of 16-bit colour Pillow gives the upper byte,
    which is within one level of that. Colour profiles are not applied, as in the published benchmark sets.

    Args:
        path: A file that Pillow can read, of one picture; of a camera's multi-picture JPEG the main one is taken.

    Returns:
        uint8 planes, contiguous: (3, H, W), or (1, H, W) for a grayscale file.

    Raises:
        InputError: Missing, no image, damaged, animated, transparent, floating point, or too large for Pillow.
    """
    with opened(path) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise InputError(f"{path}: holds {image.n_frames} pictures; save the wanted one alone, as PNG")
        turn = _UPRIGHT.get(_orientation(image))
        image.load()
        image = _gray_or_rgb(image, path)
        if turn is not None:
            image = image.transpose(turn)
        planes = np.asarray(image)  # (H, W) or (H, W, 3)
    planes = planes[None] if planes.ndim == 2 else planes.transpose(2, 0, 1)
    if planes.dtype != np.uint8:  # 16-bit gray
        planes = (planes.astype(np.uint32) + 128) // 257  # rounds to nearest; 257 is odd, so there are no ties
    return np.ascontiguousarray(planes, dtype=np.uint8)


def image_size(path: str | Path | ZipMember) -> tuple[int, int]:
    """(H, W) as `read_image` will return it, from the file's header.

    Raises:
        InputError: Missing, no image, or a damaged header.
    """
    with opened(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def image_files(folder: str | Path) -> list[Path]:
    """The image files of a folder, by name; not those of its subfolders, nor hidden ones.

    Raises:
        InputError: No such folder, or no image in it.
    """
    folder = Path(folder).expanduser()
    looked_for = f"looked for {' '.join(SUFFIXES)}"
    if not folder.is_dir():
        raise InputError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; {looked_for} in a folder")
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: no image in this folder; {looked_for}, not in subfolders")
    return sorted(files)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], what: str = "images") -> Iterator[Result]:
    """`function(item)` of each item, in order, computed in threads with a few results in flight.

    Where an item raises InputError the others are still tried, though no longer yielded, so that all are known at once.

    Args:
        function: One item -> its result.
        items: Any number.
        what: The items' name in the message.

    Raises:
        InputError: After the last item, naming every item that failed and why.
    """
    items = iter(items)
    problems: list[str] = []
    tried = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        pending = deque(pool.submit(function, item) for item in islice(items, 2 * THREADS))
        while pending:
            tried += 1
            try:
                result = pending.popleft().result()
            except InputError as error:
                problems.append(str(error))
            else:
                if not problems:
                    yield result
                del result  # not kept while the next one is awaited
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)
    if problems:
        raise InputError(f"{len(problems)} of {tried} {what} cannot be used:{listing(problems)}")


def listing(offenders: Sequence[object]) -> str:
    """The first offenders, one per line and indented, and how many more there are."""
    more = [f"... and {len(offenders) - SHOWN} more"] if len(offenders) > SHOWN else []
    return "".join(f"\n  {offender}" for offender in [*offenders[:SHOWN], *more])


def write_image(path: str | Path, image: np.ndarray | Image.Image) -> None:
    """Write a picture; the file is complete or not there.

    Args:
        path: The suffix chooses the format, `.png` is lossless.
        image: uint8 planes (1 or 3, H, W), or Pillow's own.

    Raises:
        InputError: A suffix that is no image format.
    """
    path = Path(path)
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format not in Image.SAVE:
        raise InputError(f"{path}: {path.suffix or 'no suffix'} is no format to write an image in; use .png")
    if not isinstance(image, Image.Image):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"expected uint8 of shape (1 or 3, H, W), got {image.dtype} of shape {image.shape}")
        image = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    with replacing(path) as temporary:
        image.save(temporary, format=file_format)


@contextmanager
def opened(path: str | Path | ZipMember) -> Iterator[Image.Image]:
    """An image file, its header read; what Pillow raises until the end of the block becomes an InputError."""
    try:
        source = io.BytesIO(path.read_bytes()) if isinstance(path, ZipMember) else path
        with _silence, Image.open(source) as image:
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
        raise InputError(f"{path}: not an image that Pillow can read; convert it to PNG or take it away") from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(f"{path}: more than {most:,} pixels, which Pillow takes for an attack; cut it up") from None
    except Exception as error:  # decoders raise nearly anything on damaged files: SyntaxError, struct.error, ...
        raise InputError(f"{path}: cannot be decoded ({error}); copy it again, convert it or take it away") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of an image that is not loaded yet; 1 where Pillow will apply it."""
    if image.format == "TIFF":
        return 1
    # Not image.getexif(): the one of PNG decodes the pixels to see whether EXIF follows them.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _gray_or_rgb(image: Image.Image, path: str | Path | ZipMember) -> Image.Image:
    """Mode L, RGB, or I;16 for 16-bit gray."""
    mode = image.mode
    if image.has_transparency_data:
        if mode.startswith("I") or image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            raise InputError(f"{path}: transparent in places; flatten it onto a background")
        image = image.convert("RGBA")
    if mode.startswith("I"):  # I;16 and its byte orders; I is how some files with 16 bits per pixel come
        low, high = image.getextrema()
        if not 0 <= low <= high <= 65535:
            raise InputError(f"{path}: gray values from {low} to {high}; scale them to 0..65535 or to 8 bits")
        return image
    if mode == "F":
        raise InputError(f"{path}: floating point pixels; save it with 8 or 16 bits")
    return image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB")


class _Silence:
    """While any thread is inside, Python warns of nothing.

    Pillow warns of large images and odd metadata, which are fine here. `warnings.catch_warnings` alone would be left
    by threads in another order than they entered it, and so would keep what one of them set.
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


_silence = _Silence()
