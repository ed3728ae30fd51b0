"""Options of the upscaler, checked without importing torch."""

from sr_lightning.errors import InputError
from sr_lightning.utils.devices import DEVICES, PRECISIONS, is_device, lacks_gpu

MIN_TILE = 16  # LR pixels: the smallest side of a tile


def check_options(device: str, precision: str, tile: int | str) -> None:
    """Check the options of `Upscaler`; of a GPU's number only torch knows whether it exists.

    Raises:
        InputError: Names every wrong value and the valid ones.
    """
    wrong = []
    if not is_device(device):
        wrong.append(f"device={device!r}: choose {_either(DEVICES)}")
    elif device.startswith("cuda") and lacks_gpu():
        wrong.append(f"device={device!r}: this machine has no GPU; choose auto or cpu")
    if precision not in PRECISIONS:
        wrong.append(f"precision={precision!r}: choose {_either(PRECISIONS)}")
    if precision == "float16" and device == "cpu":
        wrong.append("precision='float16' needs a GPU: choose auto, float32 or bfloat16")
    if tile not in ("auto", 0) and not (isinstance(tile, int) and tile >= MIN_TILE):
        wrong.append(f"tile={tile!r}: choose auto, 0 (the whole image) or at least {MIN_TILE}")
    if wrong:
        raise InputError("; ".join(wrong))


def _either(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
