"""Settings as Python values, and the arguments of a command that say the same."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.sweeps.run import hydra_value, quoted


def arguments(overrides: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the command-line arguments of settings.

    Args:
        overrides: Arguments unchanged, such as "model.optimizer.lr=1e-3" or "~gan".
        settings: Values by key, also of NumPy; a table is the keys below it.

    Raises:
        InputError: An override is no text, or a value cannot be written on a command line.

    Example:
        >>> arguments(["seed=1"], {"model": "espcn", "data": {"batch_size": 8}, "benchmarks": ["Set5"], "resume": None})
        ['seed=1', 'model=espcn', 'data.batch_size=8', 'benchmarks=[Set5]', 'resume=null']
    """
    if odd := [
        override for override in overrides if not isinstance(override, str) or not re.match("~|[^=]+=", override)
    ]:
        raise InputError(f"{odd[0]!r} is not a setting: write 'KEY=VALUE', or KEY=VALUE as a Python argument")
    return [*overrides, *(f"{key}={_text(key, value)}" for key, value in _flat(settings))]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(key: str, value: Any) -> str:
    if hasattr(value, "tolist"):  # a number or an array of NumPy
        value = value.tolist()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        is_word = re.fullmatch(r"[-+]?(null|true|false|nan|inf|[-+.\de_]+)", text, re.IGNORECASE) is None
        return hydra_value(text) if is_word else quoted(text)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return f"[{','.join(_text(key, item) for item in value)}]"
    raise InputError(f"{key}={value!r}: give a number, a text, true, false, None or a list of them")
