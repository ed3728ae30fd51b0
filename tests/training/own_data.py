"""A data module as users write them: it finds its images itself."""

from typing import Any

from sr_lightning.data import SRDataModule, image_folder


class OwnData(SRDataModule):
    def __init__(self, hr: str, lr: None, val_hr: None, val_lr: None, val_fraction: float, **settings: Any) -> None:
        pairs = image_folder(hr)
        super().__init__(pairs[:-1], pairs[-1:], **settings)
