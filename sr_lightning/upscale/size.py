"""Size of results: the network's factor, another factor, or a number of pixels. Imports neither torch nor Pillow."""

import re
from collections.abc import Callable
from fractions import Fraction

from sr_lightning.errors import InputError

MAX_FACTOR = 64  # of a factor other than the network's: three passes of x4
MAX_PIXELS = 2**31  # of a result of such a factor; Pillow needs up to four bytes for each

SizeOf = Callable[[int, int], tuple[int, int]]  # width and height of an image -> of the result


def parse_factor(text: str) -> Fraction:
    """Parse the value of --factor.

    Raises:
        InputError: Not a number above 1 and up to MAX_FACTOR.
    """
    factor = Fraction(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) else Fraction(0)
    if not 1 < factor <= MAX_FACTOR:
        raise InputError(f"--factor {text}: choose a number above 1, up to {MAX_FACTOR}, such as 3 or 2.5")
    return factor


def parse_box(text: str) -> tuple[int | None, int | None]:
    """Parse the value of --to: width and height, of which one may be missing.

    Raises:
        InputError: Not 4096x, x2160 or 4096x2160, or no pixels.
    """
    match = re.fullmatch(r"(\d{0,9})x(\d{0,9})", text, re.ASCII)
    width, height = (int(side) if side else None for side in match.groups()) if match else (None, None)
    if (width or height) is None or 0 in (width, height):
        raise InputError(f"--to {text}: give a width 4096x, a height x2160, or 4096x2160, into which results fit")
    return width, height


def size_of_results(factor: str | None, to: str | None) -> SizeOf | None:
    """Return the size of the result as a function of an image's, from the options --factor and --to.

    The function raises an InputError if it would not enlarge an image, or by more than MAX_FACTOR, or to more than
    MAX_PIXELS.

    Returns:
        None if neither option is given: the network's own factor.

    Raises:
        InputError: A wrong value, or both options.
    """
    if factor is not None and to is not None:
        raise InputError("--factor and --to both set the size of results; leave one out")
    if factor is not None:
        exact = parse_factor(factor)
        return lambda width, height: _checked(f"--factor {factor}", width, height, exact)
    if to is not None:
        box = parse_box(to)
        return lambda width, height: _checked(f"--to {to}", width, height, _fitting(width, height, *box))
    return None


def suffix_of(factor: str | None, to: str | None, scale: int) -> str:
    """Return the end of the names of results: _x4, _x2.5 or _4096x."""
    return f"_{to}" if to else f"_x{float(factor):g}" if factor else f"_x{scale}"


def passes(size: tuple[int, int], new_size: tuple[int, int], scale: int) -> int:
    """Return how many times a network of this scale must be applied to reach a size; at least 1."""
    count = 1
    while any(side * scale**count < new for side, new in zip(size, new_size, strict=True)):
        count += 1
    return count


def _fitting(width: int, height: int, box_width: int | None, box_height: int | None) -> Fraction:
    """Return the largest factor with which an image fits into a box."""
    factors = [Fraction(box_width, width)] if box_width else []
    return min([*factors, Fraction(box_height, height)] if box_height else factors)


def _checked(option: str, width: int, height: int, factor: Fraction) -> tuple[int, int]:
    if factor <= 1:
        raise InputError(
            f"{width}x{height} pixels, which {option} would not enlarge; choose more, or leave this file out"
        )
    new_width, new_height = (int(side * factor + Fraction(1, 2)) for side in (width, height))
    if factor > MAX_FACTOR or new_width * new_height > MAX_PIXELS:
        raise InputError(
            f"{width}x{height} pixels, which {option} would enlarge to {new_width}x{new_height}; the limits are a "
            f"factor of {MAX_FACTOR} and {MAX_PIXELS:,} pixels, so choose less"
        )
    return new_width, new_height
