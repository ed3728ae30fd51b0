"""Training runs: checks, trainer, training, dry run."""
