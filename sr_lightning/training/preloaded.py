"""`train`, imported in less time; a sweep does so once, in the process from which its cells are forked."""

from sr_lightning.utils.large_imports import import_torchmetrics, large_imports

with large_imports():  # nor does the collector of a cell write to the pages that all share
    import_torchmetrics()
    from sr_lightning.training.train import train

__all__ = ["train"]
