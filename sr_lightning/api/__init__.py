"""Training and scoring from Python: `sr_lightning.train` and `sr_lightning.evaluate`."""
