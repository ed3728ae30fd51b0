"""From image files to training batches."""

from sr_lightning.data.datamodule import FolderDataModule, SRDataModule
from sr_lightning.data.sources import benchmark_set, bundled_photos, image_folder

__all__ = ["FolderDataModule", "SRDataModule", "benchmark_set", "bundled_photos", "image_folder"]
