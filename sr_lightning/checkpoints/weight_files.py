"""Files of weights in any format: what they hold, under the names that it has there. No code in a file is run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sr_lightning.checkpoints.checkpoint import checked_fields, network_weights
from sr_lightning.checkpoints.legacy_pickle import read_module
from sr_lightning.checkpoints.ncnn_files import NCNN_SUFFIXES, read_ncnn
from sr_lightning.checkpoints.plausibility import LARGEST, check_tensors, implausible
from sr_lightning.errors import InputError
from sr_lightning.utils.messages import reason
from sr_lightning.utils.tensor_archive import describes_network
from sr_lightning.utils.tensor_files import PickledClassesError, load_tensors

DIGESTS = "digests"  # entry of safetensors' metadata: JSON, name of a tensor -> its digest
# Under these names training programs store the state dict of the network; BasicSR's average comes first.
WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "generator", "network", "net_g")
# Of the keys: DataParallel, torch.compile, and the attribute of a module that contains the network.
PREFIXES = ("module.", "_orig_mod.", "generator.", "netG.", "net_g.", "model.", "network.", "net.")


def read_file(path: Path) -> Any:
    """Read what a file of weights holds, with the wrappers and names that it has there; see `states_in`.

    Raises:
        InputError: The file is unreadable or damaged.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in NCNN_SUFFIXES:
        return read_ncnn(path)
    try:
        return load_tensors(path)
    except PickledClassesError:
        return read_module(path)


def states_in(content: Any, path: Path) -> list[dict[str, Tensor]]:
    """Return the weights in a file under the names that they have there, in all readings of these names.

    Args:
        content: As `read_file` returns it.
        path: The file, named in messages.

    Returns:
        The weights without all PREFIXES; with one more of them at a time, since a network may have such a name itself;
        and without a first part that all names share.

    Raises:
        InputError: There are no weights, or their values are not plausible.
    """
    if describes_network(content):
        return [_checked(network_weights(checked_fields(content, path)), path)]
    first, *others = _readings(content if isinstance(content, dict) else {})
    states, problem = [], None
    for reading in (first, *others):
        try:
            states.append(_checked(reading, path))
        except InputError as error:
            problem = problem or error
    if problem and not states:
        raise problem
    return states


def _checked(weights: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return weights by name if they are tensors of plausible values."""
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path} holds no weights: it has {', '.join(map(str, list(weights)[:10])) or 'nothing'}")
    if odd := [key for key in weights if not isinstance(key, str)]:
        raise InputError(f"{path} holds no weights by name: it has the key {odd[0]}")
    try:
        check_tensors(weights)
    except TypeError as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    if wrong := implausible(weights):
        raise InputError(
            f"{path} is damaged, or of a training that diverged: values that are not finite, or beyond {LARGEST:g}, in "
            f"{len(wrong)} of {len(weights)} tensors, such as {wrong[0]}"
        )
    return weights


def _readings(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the state dict out of the wrappers of training programs, and strip prefixes from its keys: `states_in`."""
    for _ in range(3):  # not without end: a pickle can contain itself
        content = _unwrapped(content)
    readings = [content]
    while prefix := next((p for p in PREFIXES if any(str(key).startswith(p) for key in readings[0])), None):
        readings.insert(0, _stripped(readings[0], prefix))
    first = {str(key).partition(".")[:2] for key in readings[0]}
    if len(first) == 1 and (shared := "".join(first.pop())).endswith("."):
        readings.append(_stripped(readings[0], shared))
    return readings


def _unwrapped(content: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict under one of WRAPPERS, or the only one under another name; else the content itself."""
    if (name := next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)) is not None:
        return content[name]
    inner = [value for value in content.values() if isinstance(value, dict) and _is_state(value)]
    return inner[0] if len(inner) == 1 else content


def _is_state(content: dict[str, Any]) -> bool:
    return len(content) > 0 and all(isinstance(value, Tensor) for value in content.values())


def _stripped(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in content.items() if str(key).startswith(prefix)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
        recorded = json.loads(metadata.get(DIGESTS, "{}"))
    except Exception as error:  # a false header can raise anything
        raise InputError(f"{path} cannot be read as weights: {reason(error)}") from error
    if recorded and (damaged := sorted(dict(digests(weights).items() ^ recorded.items()))):
        raise InputError(f"{path} is damaged: wrong digest of {', '.join(damaged)}")
    return weights


def recorded_network(path: Path) -> dict[str, Any] | None:
    """Return the network's part of a config that `save_weights` stored in a safetensors file; None without one."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            recorded = json.loads((file.metadata() or {}).get("network", "null"))
    except Exception as error:  # as in `_read_safetensors`
        raise InputError(f"{path} cannot be read as weights: {reason(error)}") from error
    return recorded if isinstance(recorded, dict) and "_target_" in recorded else None


def digests(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a digest of the type, shape and values of each tensor."""
    found = {}
    for key, value in weights.items():
        digest = hashlib.blake2b(f"{value.dtype} {tuple(value.shape)}".encode(), digest_size=8)
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
        found[key] = digest.hexdigest()
    return found
