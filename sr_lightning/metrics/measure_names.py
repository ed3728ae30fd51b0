"""Names of the measures in `metrics.extra`, checked without importing torch."""

from collections.abc import Sequence

from sr_lightning.errors import InputError

MEASURE_NAMES = ("spectrum", "consistency", "lpips", "dists", "fid")


def check_measures(names: Sequence[str] | None) -> None:
    """Check the value of the config key `measures`.

    Args:
        names: Names of measures; None for no measures.

    Raises:
        InputError: The value is a string, or contains unknown names; the message lists all of them.

    Example:
        >>> check_measures(["spectrum", "consistency"])
        >>> check_measures(["vmaf"])
        Traceback (most recent call last):
        sr_lightning.errors.InputError: measures: unknown vmaf; give a list of spectrum, consistency, lpips, ...
    """
    if isinstance(names, str):
        wrong = f"{names!r} is not a list"
    elif unknown := [str(name) for name in names or () if name not in MEASURE_NAMES]:
        wrong = f"unknown {', '.join(unknown)}"
    else:
        return
    raise InputError(f"measures: {wrong}; give a list of {', '.join(MEASURE_NAMES)}, such as 'measures=[spectrum]'")
