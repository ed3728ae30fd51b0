"""All runs below a folder in one table."""

from sr_lightning.leaderboard.board import evaluate

__all__ = ["evaluate"]
