"""Networks that come with the package. Imports neither torch nor Pillow."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CARD = "card"  # entry of safetensors' metadata: JSON


def included() -> dict[str, Path]:
    """Return the files of weights that come with the package, by name.

    Example:
        >>> included()["luma_x2"].suffix
        '.safetensors'
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def default_for(factor: Fraction | None) -> str:
    """Return the name of the network for a factor of enlargement: of the smallest scale that reaches it in one pass.

    Args:
        factor: None: x2. Above the largest scale: the largest.

    Example:
        >>> default_for(Fraction(3, 2)), default_for(None)
        ('luma_x2', 'luma_x2')
    """
    scales = sorted(int(name.removeprefix("luma_x")) for name in included() if name.startswith("luma_x"))
    return f"luma_x{next((scale for scale in scales if scale >= (factor or 2)), scales[-1])}"


def card_of(path: str | Path) -> dict[str, Any]:
    """Return the card in a file of weights that comes with the package.

    Returns:
        title, recipe, commit, data, terms (of the data), protocol, scores (data set -> psnr, ssim and bicubic's psnr),
        licence, limits (what it is not for).

    Example:
        >>> card_of(included()["luma_x2"])["recipe"]
        'python train.py experiment=pretrained'
    """
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(length)).get("__metadata__", {})
    return json.loads(metadata[CARD])
