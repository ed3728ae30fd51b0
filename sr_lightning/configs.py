"""Location of the Hydra configs."""

from pathlib import Path

_CHECKOUT, _INSTALLED = Path(__file__).parents[1] / "conf", Path(__file__).parent / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT  # a wheel contains them inside the package
