"""Work behind the page, without Gradio: networks by name, limits, and the files of one visit."""

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sr_lightning.app import BICUBIC
from sr_lightning.errors import InputError
from sr_lightning.images.files import image_size, open_image
from sr_lightning.images.folder import short_name
from sr_lightning.images.modes import has_16_bits, to_8_bits
from sr_lightning.images.photo import DeepPhoto, read_photo, write_photo
from sr_lightning.networks import Bicubic
from sr_lightning.upscale.pipeline import enlarge
from sr_lightning.upscale.upscaler import Upscaler

FACTORS = (2, 3, 4, 6, 8)
BROWSER_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP")  # that browsers show
PREVIEW_SIDE = 1024  # pixels, at most


class Stopped(Exception):  # noqa: N818  no error
    """The visitor has cancelled the computation, or left."""


class Networks:
    """Networks by name, each loaded when it is first used.

    Args:
        files: Name on the page -> file of weights.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files, self._loaded = dict(files), dict[str, Upscaler]()
        self.names = list(files)

    def __getitem__(self, name: str) -> Upscaler:
        if name not in self._loaded:
            self._loaded[name] = Upscaler.load(self._files[name])
        return self._loaded[name]


class Visit:
    """Files of one open page: its folder of results, and the photos that it has received.

    Args:
        folder: Of all visits.

    Attributes:
        stop: Set to end the computation at its next tile; each computation has its own.
        busy: Held by the computation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.received: set[Path] = set()
        self.stop, self.busy = threading.Event(), threading.Lock()

    def begin(self) -> None:
        """Allow the next computation; one that was stopped ends all the same."""
        self.stop = threading.Event()

    def close(self, others: Sequence["Visit"] = ()) -> None:
        """End the computation and delete all files, except photos that another visit has received as well."""
        self.stop.set()
        with self.busy:
            shutil.rmtree(self.folder, ignore_errors=True)
        for photo in self.received.difference(*(other.received for other in others)):
            shutil.rmtree(photo.parent, ignore_errors=True)  # Gradio makes a folder for each


def check_size(photo: Path, factor: int, max_pixels: int) -> tuple[int, int]:
    """Read the size of a photo from its header, and check the size of its result.

    Returns:
        Width and height of the result.

    Raises:
        InputError: No image, damaged, or the result has more than `max_pixels`.
    """
    height, width = image_size(photo)
    if width * height * factor**2 > max_pixels:
        raise InputError(
            f"{photo}: {width}x{height} pixels, of which x{factor} makes {width * height * factor**2:,}; the limit of "
            f"this page is {max_pixels:,}"
        )
    return width * factor, height * factor


def preview(photo: Path) -> Path:
    """Return a file that browsers show: the photo, or a small PNG beside it.

    Raises:
        InputError: The photo cannot be read.
    """
    with open_image(photo) as image:
        if image.format in BROWSER_FORMATS:
            return photo
    picture = read_photo(photo)
    if isinstance(picture, DeepPhoto):
        picture = picture.with_8_bits()
    elif has_16_bits(picture):
        picture = Image.fromarray(to_8_bits(np.asarray(picture)))
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    shown = photo.with_name(f"{short_name(f'{photo.stem}_preview')}.png")
    write_photo(shown, picture)
    return shown


def factor_for(networks: Networks, names: Sequence[str], factor: int | None) -> int:
    """Return the factor of all results: the one given, or the largest of the networks.

    Raises:
        InputError: No network is given, or one cannot be loaded.
    """
    if not names:
        raise InputError("Choose at least one network")
    return factor or max(networks[name].scale for name in names)


def enlarge_photo(
    photo: Path,
    networks: Networks,
    names: Sequence[str],
    factor: int,
    visit: Visit,
    max_pixels: int,
    progress: Callable[[float, str], object],
) -> dict[str, Path]:
    """Enlarge a photo with several networks, and bicubically for comparison.

    Args:
        photo: The file.
        networks: The networks.
        names: Of the networks to apply.
        factor: Of all results.
        visit: Gets the results, in place of earlier ones.
        max_pixels: Of a result.
        progress: Called with the share that is done, in [0, 1], and what is computed: bicubic or a network's name.

    Returns:
        Bicubic and names of networks -> PNG with metadata and depth of the photo, all of one size.

    Raises:
        InputError: The photo cannot be read, the result is too large, or a network cannot be loaded.
        Stopped: `visit.stop` was set.
    """
    size, stop = check_size(photo, factor, max_pixels), visit.stop
    with visit.busy:
        picture = read_photo(photo)
        for old in visit.folder.iterdir():
            old.unlink()
        results, done = {}, 0.0
        for name in (BICUBIC, *names):
            net = Upscaler(Bicubic(scale=factor), BICUBIC) if name == BICUBIC else networks[name]

            def advance(share: float, name: str = name) -> None:
                nonlocal done
                if stop.is_set():
                    raise Stopped
                done += share / (1 + len(names))
                progress(min(done, 1), name)

            advance(0)
            stem = short_name(re.sub(r"[^\w.+-]+", "_", f"{photo.stem}_{name}"))
            results[name] = visit.folder / f"{stem}_x{factor}.png"
            write_photo(results[name], enlarge(net, picture, advance, size))
    return results
