"""The scoring protocol, and PSNR and SSIM under it.

The names below are resolved when they are first used (PEP 562), so that importing this package, or the torch-free
`metrics.measure_names`, does not import torch. The torchmetrics classes in `metrics.per_image` are not re-exported:
importing torchmetrics takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sr_lightning.metrics.protocol import Protocol, score
    from sr_lightning.metrics.psnr_ssim import psnr, ssim, ssim_daala

__all__ = ["Protocol", "psnr", "score", "ssim", "ssim_daala"]

_SUBMODULES = {
    "Protocol": "protocol",
    "psnr": "psnr_ssim",
    "score": "protocol",
    "ssim": "psnr_ssim",
    "ssim_daala": "psnr_ssim",
}


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_SUBMODULES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
