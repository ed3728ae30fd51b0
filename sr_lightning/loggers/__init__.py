"""Loggers: metrics.csv, TensorBoard, Weights & Biases."""

from sr_lightning.loggers.loggers import TensorBoard, WandbRun

__all__ = ["TensorBoard", "WandbRun"]
