"""Networks that this project lacks, built by the package spandrel for their weights."""

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import no_larger_than
from sr_lightning.errors import InputError
from sr_lightning.networks.layers import reflect_to_multiple
from sr_lightning.utils.messages import reason

log = logging.getLogger(__name__)


class SpandrelNetwork(nn.Module):
    """A network of spandrel, with the names of weights of its files.

    Subclasses have the name of the architecture, by which messages name networks.

    Args:
        described: Spandrel's `ImageModelDescriptor`.

    Attributes:
        receptive_radius: None, because it is unknown: tiles are approximate.
        alignment: Parts of an image begin at a multiple of this, as windows do.
        exports_any_size: False: graphs of foreign networks are not written.

    Shapes: lr (N, num_channels, h, w) in [0, 1] -> sr (N, num_channels, h*scale, w*scale), float32, not clamped.
    """

    receptive_radius = None
    exports_any_size = False

    def __init__(self, described: Any) -> None:
        super().__init__()
        self.model = described.model
        self.scale, self.num_channels = described.scale, described.input_channels
        self.alignment, self.minimum = described.size_requirements.multiple_of, described.size_requirements.minimum

    def forward(self, lr: Tensor) -> Tensor:
        height, width = (self.scale * side for side in lr.shape[-2:])
        x = reflect_to_multiple(lr, self.minimum if min(lr.shape[-2:]) < self.minimum else self.alignment)
        return self.model(x)[..., :height, :width].float()

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return self.model.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        return self.model.load_state_dict(*args, **options)


def load_by_spandrel(states: Sequence[Mapping[str, Tensor]], path: Path, unknown: InputError) -> SpandrelNetwork:
    """Build the network of weights that no network of this project has.

    Args:
        states: The weights in all readings of their names, `weight_files.states_in`; spandrel does not see the file.
        path: The file, named in messages.
        unknown: The error without spandrel.

    Raises:
        InputError: Spandrel or torchvision is missing, or spandrel does not know the weights either, or they do not
            upscale RGB or luma images.
    """
    if find_spec("spandrel") is None:
        raise InputError(f"{unknown}. Spandrel knows more networks: pip install spandrel") from unknown
    try:
        spandrel = importlib.import_module("spandrel")
    except Exception as error:  # a torchvision of another torch raises its own
        raise InputError(
            f"{unknown}. Spandrel knows more networks, but needs a working torchvision: pip install torchvision "
            f"({reason(error)})"
        ) from error
    problem = None
    for weights in states:
        try:
            network, sr = _built(spandrel, weights, path)
            break
        except spandrel.UnsupportedModelError:
            continue
        except Exception as error:  # networks raise anything for shapes that they do not expect
            problem = problem or error
    else:
        if problem is None:
            raise InputError(f"{unknown}. Spandrel does not know them either") from unknown
        raise InputError(f"{unknown}. Spandrel cannot use them: {reason(problem)}") from problem
    name, scale = type(network).__name__, network.scale
    if network.num_channels not in (1, 3) or scale < 2 or sr.shape != (1, network.num_channels, 8 * scale, 8 * scale):
        raise InputError(f"{path} holds {name}, which does not upscale RGB or luma images")
    log.warning("%s holds %s x%d, which spandrel reads: look up its licence at its source", path, name, scale)
    return network


def _built(spandrel: Any, weights: Mapping[str, Tensor], path: Path) -> tuple[SpandrelNetwork, Tensor]:
    """Return spandrel's network of a state dict, and its output for a small image; some want more than an image."""
    with no_larger_than(weights, path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = spandrel.ModelLoader().load_from_state_dict(dict(weights))
    network = _subclass(described.architecture.name)(described).eval().requires_grad_(False)
    with torch.inference_mode():
        return network, network(torch.zeros(1, described.input_channels, 8, 8))


def _subclass(name: str) -> type[SpandrelNetwork]:
    return type(name, (SpandrelNetwork,), {})
