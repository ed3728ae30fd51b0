"""Early stopping: end a run whose score on the validation images no longer rises."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import callbacks

from sr_lightning.utils.messages import counted


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's callback for a score of the validation images. Its count of validations is saved in checkpoints.

    A run that it has ended and that is then extended counts from zero.

    Args:
        monitor: The score: "val/psnr" or "val/ssim".
        patience: Validations without a gain after which the run ends.
        min_delta: Gains up to this value count as none; in dB for PSNR.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float) -> None:
        super().__init__(monitor, min_delta, patience, mode="max", check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if _is_exhausted(state_dict):
            self.wait_count = 0


def stopped_early(checkpoint: Mapping[str, Any]) -> bool:
    """Return True if the last validation before a checkpoint has exhausted the patience of `EarlyStopping`."""
    return any(
        _is_exhausted(state) for name, state in checkpoint["callbacks"].items() if name.startswith("EarlyStopping")
    )


def _is_exhausted(state: Mapping[str, Any]) -> bool:
    return state["wait_count"] >= state["patience"]


def condition(settings: Mapping[str, Any]) -> str:
    """Describe when the settings of `EarlyStopping` end a run."""
    unit = "dB" if settings["monitor"] == "val/psnr" else "SSIM"
    return f"no gain over {settings['min_delta']:g} {unit} in {counted(settings['patience'], 'validation')}"
