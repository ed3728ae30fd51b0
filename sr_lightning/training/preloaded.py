"""Imports that a sweep makes once, in the process from which its cells are forked (`sweeps/processes.py`)."""

from sr_lightning.utils.large_imports import import_torchmetrics, large_imports

with large_imports():  # nor does the collector of a cell write to the pages that all share
    import_torchmetrics()
    import sr_lightning.training.train  # noqa: F401
