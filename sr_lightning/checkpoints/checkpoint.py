"""Reading the checkpoints of train.py: they describe their network, and reading one runs no code in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.tensor_files import load_tensors


@dataclass(frozen=True)
class Trained:
    """A network from a checkpoint, in evaluation mode on the CPU.

    Attributes:
        network: Has `scale` and `num_channels`.
        name: The run's name for it.
        step: Batches it was trained for.
        config: The whole resolved config of the run, plain containers.
    """

    network: nn.Module
    name: str
    step: int
    config: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of this project: tensors and plain containers.

    Args:
        path: The file, or a run's directory, of which the best checkpoint is read.

    Raises:
        InputError: The file is missing, damaged or not of this project.
    """
    path = find_checkpoint(path)
    checkpoint = load_tensors(path)
    if not describes_network(checkpoint):
        raise InputError(
            f"{path} does not say which network it holds: was it written by this project's train.py? "
            "To score another project's file, add model=… and scale=…"
        )
    return checkpoint


def describes_network(checkpoint: Any) -> bool:
    """True if a checkpoint's config names the network's class, where train.py puts it."""
    for key in ("hyper_parameters", "model", "network", "_target_"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            return False
        checkpoint = checkpoint[key]
    return isinstance(checkpoint, str)


def is_checkpoint(path: str | Path) -> bool:
    """True if a file is a checkpoint of this project."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def load_network(path: str | Path) -> Trained:
    """Build the network that a checkpoint describes and load its weights.

    Only subclasses of torch.nn.Module are built, from plain numbers and names: a checkpoint can run no other code.

    Args:
        path: As for `read_checkpoint`.

    Raises:
        InputError: The file is missing, damaged or not of this project, or its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["hyper_parameters"]
    network = build_network(config["model"]["network"], path)
    try:
        network.load_state_dict(network_weights(checkpoint))
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit its network: {error}") from error
    return Trained(network.eval(), config["name"], steps_done(checkpoint), config)


def load_best(path: str | Path) -> Trained:
    """Load the network of a checkpoint, or the best of a run's directory, for use.

    Raises:
        InputError: As for `load_network`; or weights are infinite or NaN, as after a training that diverged.
    """
    path = find_checkpoint(path)
    trained = load_network(path)
    wrong = [key for key, value in trained.network.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} of its weights are not finite ({wrong[0]}, …), its training has diverged; take an "
            "earlier checkpoint, or train with a lower learning rate"
        )
    return trained


def build_network(description: Mapping[str, Any], source: str | Path) -> nn.Module:
    """Build a network without trained weights.

    Args:
        description: As in a config: `_target_`, the class, and its keyword arguments.
        source: The file with the description, for the message.

    Raises:
        InputError: The class is missing, is no network for super-resolution, or has other arguments.
    """
    arguments = dict(description)
    target = arguments.pop("_target_")
    try:
        network = network_class(target, source)(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"{source} holds a {target} that this version cannot build: {error}") from error
    if not (hasattr(network, "scale") and hasattr(network, "num_channels")):
        raise InputError(f"{source} holds a {target}, which does not upscale: it has no scale and num_channels")
    return network


def network_class(target: str, source: str | Path) -> type[nn.Module]:
    """The class that a file names as its network's.

    Args:
        target: The dotted name, such as "sr_lightning.networks.EDSR".
        source: The file, for the message.

    Raises:
        InputError: It is no torch.nn.Module, so building it might run anything.
        ImportError: There is no such module.
        AttributeError: The module has no such name.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise ImportError(f"{target} is no dotted name")
    named = getattr(import_module(module), name)
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise InputError(f"{source} names {target} as its network, which is not a torch.nn.Module")
    return named


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of the network alone: of its moving average if the run computed one."""
    weights = checkpoint["state_dict"]
    prefix = "averaged." if any(key.startswith("averaged.") for key in weights) else "network."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def steps_done(checkpoint: Mapping[str, Any]) -> int:
    """Batches trained when the checkpoint was written, whatever the number of optimizers."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
