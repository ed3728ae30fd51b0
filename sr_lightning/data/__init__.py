"""Image files, packed image stores, patches and LightningDataModules.

The lists of files need neither torch nor Lightning: the modules that do are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from sr_lightning.data.sources import benchmark_set, bundled_photos, image_folder, joined

if TYPE_CHECKING:
    from sr_lightning.data.datamodule import FolderDataModule, SRDataModule

__all__ = ["FolderDataModule", "SRDataModule", "benchmark_set", "bundled_photos", "image_folder", "joined"]


def __getattr__(name: str) -> Any:
    if name in ("FolderDataModule", "SRDataModule"):
        from sr_lightning.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
