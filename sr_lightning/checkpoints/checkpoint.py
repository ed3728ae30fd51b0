"""Reading of checkpoints of train.py, which describe their network; no code in them is run."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sr_lightning import networks
from sr_lightning.checkpoints.key_listing import differing_keys
from sr_lightning.checkpoints.plausibility import check_tensors, not_finite
from sr_lightning.errors import InputError
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.runs.targets import definition, described, is_allowed, way_out
from sr_lightning.utils.tensor_archive import describes_network
from sr_lightning.utils.tensor_files import load_tensors

MAX_SCALE = 64
Allow = str | Sequence[str] | None  # packages besides this project, or classes, that a file may name


@dataclass(frozen=True)
class Trained:
    """A network from a checkpoint, in evaluation mode on the CPU.

    Attributes:
        network: Has `scale` and `num_channels`.
        name: `name` of the run.
        step: Number of training batches; None for weights of another project.
        config: Complete, resolved config of the run, in plain containers.
    """

    network: nn.Module
    name: str
    step: int | None
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
    return checked_fields(checkpoint, path)


def checked_fields(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return a checkpoint of this project if the fields that its readers use are as train.py writes them.

    Raises:
        InputError: A field is missing or holds something else.
    """
    try:
        _check_fields(checkpoint)
        check_tensors(network_weights(checkpoint))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is not a checkpoint as train.py writes it: {reason}") from error
    return checkpoint


def _check_fields(checkpoint: Mapping[str, Any]) -> None:
    config, weights, step = checkpoint["hyper_parameters"], checkpoint["state_dict"], steps_done(checkpoint)
    if not isinstance(config["name"], str | int | float):  # yaml reads name=123 as a number
        raise TypeError("its name is no text")
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise TypeError("its state_dict is no table of weights by name")
    if not isinstance(step, int) or step < 0:
        raise TypeError(f"its number of batches is {step}")


def is_checkpoint(path: str | Path) -> bool:
    """Return True if a file is a checkpoint of this project."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def load_network(path: str | Path, allow: Allow = None) -> Trained:
    """Build the network that a checkpoint describes and load its weights.

    Only networks of this project are built, and subclasses of torch.nn.Module from packages that the user allows, with
    numbers and names as arguments: a checkpoint can run no other code.

    Args:
        path: As for `read_checkpoint`.
        allow: Packages besides this project, or classes, that the checkpoint may name.

    Raises:
        InputError: The file is missing, damaged or not of this project, names a class that is not allowed, or its
            weights do not fit.
    """
    path = find_checkpoint(path)
    return network_of(read_checkpoint(path), path, allow)


def network_of(checkpoint: Mapping[str, Any], path: Path, allow: Allow = None) -> Trained:
    """Build the network of a checkpoint that `read_checkpoint` has read from a file; see `load_network`."""
    config, weights = checkpoint["hyper_parameters"], network_weights(checkpoint)
    with no_larger_than(weights, path):
        network = build_network(config["model"]["network"], path, allow)
    if differing := differing_keys(network.state_dict(), weights):
        raise InputError(f"the weights in {path} do not fit its network:{differing}")
    network.load_state_dict(weights)
    return Trained(network.eval(), str(config["name"]), steps_done(checkpoint), config)


def load_best(path: str | Path, allow: Allow = None) -> Trained:
    """Load a network as `load_network` does, and check that its weights are finite.

    Raises:
        InputError: As for `load_network` and `finite`.
    """
    return finite(load_network(path, allow), find_checkpoint(path))


def finite(trained: Trained, path: Path) -> Trained:
    """Return a network from a file if its weights are finite.

    Raises:
        InputError: Weights are infinite or NaN, because the training diverged.
    """
    weights = trained.network.state_dict()
    if wrong := not_finite(weights):
        raise InputError(
            f"{path} holds NaN or infinite values in {len(wrong)} of {len(weights)} weight tensors, such as "
            f"{wrong[0]}: its training diverged. Use an earlier checkpoint, or train with a smaller learning rate"
        )
    return trained


def build_network(description: Mapping[str, Any], source: str | Path, allow: Allow = None) -> nn.Module:
    """Build a network without trained weights.

    Args:
        description: As in a config: `_target_`, the class, and its keyword arguments.
        source: The file with the description, named in messages.
        allow: As for `load_network`.

    Raises:
        InputError: The class does not exist, is not allowed, does not upscale, or does not accept the arguments.
    """
    arguments = dict(description)
    target = arguments.pop("_target_")
    network_type = network_class(target, source, allow)
    try:
        if odd := [name for name, value in arguments.items() if not _is_plain(value)]:
            raise ValueError(f"its {odd[0]} is neither a number nor a name nor a list of them")
        if not 1 <= arguments.get("scale", 1) <= MAX_SCALE:
            raise ValueError(f"its scale is {arguments['scale']}")
        network = network_type(**arguments)
    except Exception as error:  # a constructor can raise anything for odd arguments
        raise InputError(f"{source} holds a {target} that this version cannot build: {error}") from error
    if not (hasattr(network, "scale") and hasattr(network, "num_channels")):
        raise InputError(f"{source} holds a {target}, which does not upscale: it has no scale and num_channels")
    return network


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return True for a number, name or null, and for short lists and tables of them."""
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return depth < 2 and len(value) <= 1000 and all(_is_plain(item, depth + 1) for item in items)
    return value is None or isinstance(value, bool | int | float | str)


@contextmanager
def no_larger_than(weights: Mapping[str, Tensor], source: str | Path) -> Iterator[None]:
    """Within the block, refuse to build a network with far more parameters than a file has weights.

    A parameter is refused before it is filled, so that a config that asks for a million features takes no memory.

    Raises:
        InputError: From the constructor of the network.
    """
    thread, count, values = threading.get_ident(), 0, 0
    # A network may replace parameters while it is built, as weight normalisation does.
    most_count = 4 * len(weights) + 100
    most_values = 4 * sum(weight.numel() for weight in weights.values()) + 10_000

    def check(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, values
        if threading.get_ident() == thread and parameter is not None:
            count, values = count + 1, values + parameter.numel()
            if count > most_count or values > most_values:
                raise InputError(f"the network described in {source} is far larger than the weights in the file")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def network_class(target: str, source: str | Path, allow: Allow = None) -> type[nn.Module]:
    """Return the class that a file names as that of its network, judged before it is imported.

    Args:
        target: The dotted name, such as "sr_lightning.networks.EDSR".
        source: The file, named in messages.
        allow: As for `load_network`.

    Raises:
        InputError: `sr_lightning.networks` does not export it, and no allowed package defines it; or it is not a
            torch.nn.Module.
    """
    place = definition(target)
    exported = [getattr(networks, name) for name in networks.__all__]
    known = {f"{each.__module__}.{each.__qualname__}": each for each in exported}
    if place in known:
        return known[place]
    if not is_allowed(target, place, allow):
        raise InputError(
            f"{source} names a network that is not one of this project's: {described(target, place)}"
            f"{way_out([place] if place else [])}"
        )
    module, _, name = target.rpartition(".")
    try:
        named = getattr(import_module(module), name)
    except Exception as error:  # importing runs the package's code
        raise InputError(f"{source} names {target} as its network, which cannot be imported: {error}") from error
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
