"""Reading of checkpoints of train.py, which describe their network; no code in them is run."""

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
        name: `name` of the run.
        step: Number of training batches.
        config: Complete, resolved config of the run, in plain containers.
    """

    network: nn.Module
    name: str
    step: int
    config: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this project: tensors and plain containers.

    Args:
        path: The file, or a run's directory, whose best checkpoint is read.

    Raises:
        InputError: The file is missing, damaged or not of this project.
    """
    path = find_checkpoint(path)
    checkpoint = load_tensors(path)
    if not describes_network(checkpoint):
        raise InputError(
            f"{path} does not describe its network, so it is not a checkpoint of this project's train.py. "
            "To score another project's file, add model=… and scale=…"
        )
    return checkpoint


def describes_network(checkpoint: Any) -> bool:
    """Return True if a checkpoint's config names the network's class, where train.py stores it."""
    for key in ("hyper_parameters", "model", "network", "_target_"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            return False
        checkpoint = checkpoint[key]
    return isinstance(checkpoint, str)


def is_checkpoint(path: str | Path) -> bool:
    """Return True if a file is a checkpoint of this project."""
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
    """Load a network as `load_network` does, and check that its weights are finite.

    Raises:
        InputError: As for `load_network`; or weights are infinite or NaN, because the training diverged.
    """
    path = find_checkpoint(path)
    trained = load_network(path)
    weights = trained.network.state_dict()
    wrong = [key for key, value in weights.items() if not value.isfinite().all()]
    if wrong:
        raise InputError(
            f"{path} holds NaN or infinite values in {len(wrong)} of {len(weights)} weight tensors, such as "
            f"{wrong[0]}: its training diverged. Use an earlier checkpoint, or train with a smaller learning rate"
        )
    return trained


def build_network(description: Mapping[str, Any], source: str | Path) -> nn.Module:
    """Build a network without trained weights.

    Args:
        description: As in a config: `_target_`, the class, and its keyword arguments.
        source: The file with the description, named in messages.

    Raises:
        InputError: The class does not exist, does not upscale, or does not accept the arguments.
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
    """Return the class that a file names as that of its network.

    Args:
        target: The dotted name, such as "sr_lightning.networks.EDSR".
        source: The file, named in messages.

    Raises:
        InputError: It is not a torch.nn.Module; building it could run arbitrary code.
        ImportError: There is no such module.
        AttributeError: The module has no such name.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise ImportError(f"{target} is not a dotted name")
    named = getattr(import_module(module), name)
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise InputError(f"{source} names {target} as its network, which is not a torch.nn.Module")
    return named


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of the network alone; that of its moving average if the run computed one."""
    weights = checkpoint["state_dict"]
    prefix = "averaged." if any(key.startswith("averaged.") for key in weights) else "network."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def steps_done(checkpoint: Mapping[str, Any]) -> int:
    """Return the number of batches trained when the checkpoint was written, with any number of optimizers."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


def is_trained(checkpoint: Mapping[str, Any], max_steps: int) -> bool:
    """Return True if all batches are trained and the last validation is done."""
    loop = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
    return steps_done(checkpoint) >= max_steps and not loop.get("validation_pending", False)
