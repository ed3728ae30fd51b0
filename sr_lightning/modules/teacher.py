"""Knowledge distillation: the SR of a frozen, larger network as a target beside HR."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import Allow
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.errors import InputError
from sr_lightning.inference import to_channels


class Teacher:
    """A network in evaluation mode, and the weight of the loss to its SR.

    Distilling the Knowledge in a Neural Network, Hinton et al. 2015 (arXiv 1503.02531), with images in place of class
    probabilities. No nn.Module: its network is not part of checkpoints, optimizers and training mode.

    Args:
        network: The teacher.
        weight: Weight of the loss at the first step; the loss to HR has 1.
        steps: Number of steps over which the weight falls linearly to 0; None: it stays the same.
    """

    def __init__(self, network: nn.Module, weight: float = 1.0, steps: int | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.weight, self.steps = weight, steps

    @classmethod
    def load(
        cls, path: str | Path, student: nn.Module, weight: float | None, steps: int | None, allow: Allow = None
    ) -> "Teacher":
        """Load the teacher of a network.

        Args:
            path: As for `load_any`.
            student: The network to train.
            weight: As of the class; None: 1.
            steps: As of the class.
            allow: As for `load_any`.

        Raises:
            InputError: A wrong weight or number of steps; a file that cannot be used, or whose network has another
                scale or other colours than the student.
        """
        weight = 1.0 if weight is None else weight
        if isinstance(weight, bool) or not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise InputError(f"model.teacher_weight={weight}: give a number above 0, such as 1, or null for 1")
        if steps is not None and (type(steps) is not int or steps < 1):
            raise InputError(f"model.teacher_steps={steps}: give a number of steps of at least 1, or null for all")
        try:
            with torch.device("cpu"):  # a dry run has the meta device as default, on which weights cannot be read
                network = load_any(path, allow).network
        except InputError as error:
            raise InputError(f"model.teacher={path}: {error}") from error
        colours = {1: "luma", 3: "RGB"}
        kinds = [f"x{each.scale} on {colours[each.num_channels]}" for each in (network, student)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"model.teacher={path} enlarges {kinds[0]}, the network to train {kinds[1]}: give a teacher of that "
                "kind, or change scale or model.network.num_channels"
            )
        return cls(network.to(torch.get_default_device()), weight, steps)

    def weight_at(self, step: int | Tensor) -> float | Tensor:
        """Return the weight of the loss in the batch after `step` others; float32 () for a tensor float64 ()."""
        if self.steps is None:
            return self.weight
        if isinstance(step, Tensor):
            return (self.weight * (1 - step / self.steps).clamp(min=0)).float()
        return self.weight * max(0.0, 1 - step / self.steps)

    @torch.no_grad()
    def __call__(self, lr: Tensor) -> Tensor:
        """Upscale lr (N, 3, h, w) in [0, 1] to the teacher's SR (N, C, H, W) float32."""
        return self.network(to_channels(lr, self.network.num_channels)).float()
