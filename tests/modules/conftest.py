"""A minimal trainer for tests of single steps."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl

from sr_lightning.data import FolderDataModule
from sr_lightning.degradations import Bicubic


@pytest.fixture
def data(pictures, tmp_path) -> FolderDataModule:
    """Batches of four 8x8 LR patches, x2."""
    return FolderDataModule(
        *(str(pictures),), scale=2, degradation=Bicubic(), patch_size=8, batch_size=4, max_steps=100, seed=0,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip


@pytest.fixture
def fit(data, tmp_path) -> Callable[..., pl.Trainer]:
    """A function that trains a module for some steps on `data`, without logger and callbacks."""

    def fit(module: pl.LightningModule, steps: int, **settings: Any) -> pl.Trainer:
        trainer = pl.Trainer(
            max_epochs=1, limit_train_batches=steps, limit_val_batches=0, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=tmp_path, **settings,
        )  # fmt: skip
        trainer.fit(module, data)
        return trainer

    return fit
