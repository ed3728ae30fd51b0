"""Standard input and output in place of image files, for `-` on the command line."""

import os
import shutil
import sys
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import BinaryIO

from sr_lightning.errors import InputError

SUFFIXES = {"BMP": ".bmp", "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp"}


class Stdin(PurePosixPath):
    """The image on standard input: a name with the suffix of its format, and the methods of `Path` that reading needs.

    Attributes:
        data: The encoded image.
    """

    data: bytes = b""

    @classmethod
    def read(cls) -> "Stdin":
        """Read standard input to its end.

        Raises:
            InputError: It is a terminal, closed or empty, or not an image.
        """
        from sr_lightning.images.files import open_image  # imports Pillow

        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("-: nothing is piped into standard input: cat photo.jpg | sr-upscale - ...")
        given = cls("stdin")
        given.data = sys.stdin.buffer.read()
        if not given.data:
            raise InputError("-: standard input is empty")
        with open_image(given) as image:
            named = cls(f"stdin{SUFFIXES.get(image.format, '.png')}")
        named.data = given.data
        return named

    def read_bytes(self) -> bytes:
        return self.data

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(self.data))


class Stdout(PurePosixPath):
    """Standard output: a name with the suffix of the format to write."""

    def write(self, file: Path) -> None:
        """Copy a file to standard output.

        Raises:
            InputError: Its reader has closed it, or the disk behind it is full.
        """
        try:
            with file.open("rb") as source:
                shutil.copyfileobj(source, self._stream())
            self._stream().flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream().fileno())  # Python flushes it again at its end
            raise InputError(f"-o -: standard output cannot be written: {error.strerror}") from None

    @staticmethod
    def check() -> None:
        """Check that standard output is a pipe or a file.

        Raises:
            InputError: It is closed or a terminal.
        """
        if sys.stdout is None or sys.stdout.isatty():
            raise InputError("-o -: standard output is a terminal, or closed; redirect it: > big.png")

    @staticmethod
    def _stream() -> BinaryIO:
        return sys.stdout.buffer
