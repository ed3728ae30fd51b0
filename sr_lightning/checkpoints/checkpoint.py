"""Checkpoints that describe themselves, are never half written and run no code when they are read."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a kill leaves the old checkpoint or the new one, never a part.

    Lightning's own writes to the system's temporary folder first, which is only a rename on the same file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


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
    """The content of a checkpoint written by this project: tensors and plain containers.

    Raises:
        InputError: No such file, not readable, or not one of this project's.
    """
    path = Path(path)
    if path.is_dir():
        names = ("checkpoints/best.ckpt", "best.ckpt", "checkpoints/last.ckpt", "last.ckpt")
        there = next((path / name for name in names if (path / name).is_file()), None)
        raise InputError(f"{path} is a folder" + (f"; its checkpoint is {there}" if there else " without a checkpoint"))
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} cannot be read as a checkpoint: it is damaged, or no file of train.py") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint, damaged or cut off: {error}") from error
    if not describes_network(checkpoint):
        raise InputError(
            f"{path} does not say which network it holds: was it written by this project's train.py? "
            "Another project's file is scored with model=… scale=… beside it"
        )
    return checkpoint


def describes_network(checkpoint: Any) -> bool:
    """Whether a checkpoint's config has the network's class, where train.py puts it."""
    for key in ("hyper_parameters", "model", "network", "_target_"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            return False
        checkpoint = checkpoint[key]
    return isinstance(checkpoint, str)


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file is a checkpoint written by this project."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def load_network(path: str | Path) -> Trained:
    """Build the network a checkpoint describes and load its weights.

    Only subclasses of torch.nn.Module are built, from plain numbers and names: a checkpoint can run no other code.

    Raises:
        InputError: The file is missing, unreadable or not of this project, or its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["hyper_parameters"]
    description = dict(config["model"]["network"])
    target = description.pop("_target_")
    try:
        network = network_class(target, path)(**description)
    except (ImportError, TypeError) as error:
        raise InputError(f"{path} holds a {target} that this version cannot build: {error}") from error
    if not (hasattr(network, "scale") and hasattr(network, "num_channels")):
        raise InputError(f"{path} holds a {target}, which enlarges nothing: it has no scale and num_channels")
    try:
        network.load_state_dict(network_weights(checkpoint))
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit its network: {error}") from error
    return Trained(network.eval(), config["name"], steps_done(checkpoint), config)


def load_best(path: str | Path) -> Trained:
    """The network of a checkpoint, or of the best one in a run's directory, for use.

    Raises:
        InputError: As of `load_network`; or weights are infinite or NaN, as after a training that diverged.
    """
    path = Path(path).expanduser()
    if (path / "checkpoints" / "best.ckpt").is_file():
        path = path / "checkpoints" / "best.ckpt"
    trained = load_network(path)
    wrong = [key for key, value in trained.network.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} of its weights are not finite ({wrong[0]}, …), its training has diverged; take an "
            "earlier checkpoint, or train with a lower learning rate"
        )
    return trained


def network_class(target: str, source: str | Path) -> type[nn.Module]:
    """The class that a file names as its network's.

    Args:
        target: As in a config, "sr_lightning.networks.EDSR".
        source: The file, for the message.

    Raises:
        InputError: It is no torch.nn.Module, and might run anything.
        ImportError: There is nothing of that name.
    """
    named = get_object(target)
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise InputError(f"{source} names {target} as its network, which is not a torch.nn.Module")
    return named


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of the network alone: of its moving average where the run kept one."""
    weights = checkpoint["state_dict"]
    prefix = "averaged." if any(key.startswith("averaged.") for key in weights) else "network."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def steps_done(checkpoint: dict[str, Any]) -> int:
    """Batches trained when the checkpoint was written, whatever the number of optimizers."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
