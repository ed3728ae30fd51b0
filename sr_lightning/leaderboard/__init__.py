"""Leaderboard: all runs below a folder in one table."""

from sr_lightning.leaderboard.evaluate import evaluate

__all__ = ["evaluate"]
