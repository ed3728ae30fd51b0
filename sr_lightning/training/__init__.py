"""Training: checks of a config, the trainer, whole runs, dry runs."""
