"""Loggers: metrics.csv, TensorBoard, MLflow, Weights & Biases."""

from sr_lightning.loggers.base import Outcome, RunLogger, closing, log_pictures
from sr_lightning.loggers.metrics_csv import MetricsCSV
from sr_lightning.loggers.mlflow import MLflowRun
from sr_lightning.loggers.tensorboard import TensorBoard
from sr_lightning.loggers.wandb import WandbRun

__all__ = ["MLflowRun", "MetricsCSV", "Outcome", "RunLogger", "TensorBoard", "WandbRun", "closing", "log_pictures"]
