"""Leaderboard: all runs below a folder in one table."""

from sr_lightning.leaderboard.ranking import evaluate

__all__ = ["evaluate"]
