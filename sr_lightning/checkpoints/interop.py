"""Weights in the formats of this and other projects: loading, warm starts, writing."""

import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sr_lightning.checkpoints.key_listing import differing_keys, format_groups, shape_text
from sr_lightning.checkpoints.key_maps import KEY_MAPS, RENAMINGS, KeyMap, Renaming, export_keys, import_keys
from sr_lightning.checkpoints.spandrel_networks import SpandrelNetwork
from sr_lightning.checkpoints.weight_files import DIGESTS, digests, read_file, states_in
from sr_lightning.errors import InputError
from sr_lightning.networks import EDSR, PLKSR, SAFMN, SPAN, Compact, RealPLKSR, RRDBNet, SwinIR
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)

PUBLISHED = (Compact, RRDBNet, SPAN, PLKSR, RealPLKSR, SAFMN, SwinIR)  # have the published names of weights


def load_weights(network: nn.Module, path: str | Path) -> KeyMap | Renaming | None:
    """Load all weights of a network from a file.

    Args:
        network: Built with the sizes in the file. Files do not record every option: set EDSR's residual_scale to 1 for
            the published baselines, to 0.1 for the large networks.
        path: As for `read_weights`.

    Returns:
        The key map of the file; None for this project's own names.

    Raises:
        InputError: The file is unreadable or of another network, or names or shapes differ; the message lists all.
    """
    weights, key_map = read_weights(path, network)
    fill(network, weights, key_map, path)
    return key_map


def fill(
    network: nn.Module, weights: Mapping[str, Tensor], key_map: KeyMap | Renaming | None, path: str | Path
) -> None:
    """Load weights that `read_weights` has read from a file into a network.

    Raises:
        InputError: As of `load_weights`, except that the file is unreadable.
    """
    if key_map is not None and (reasons := differences(network, key_map)):
        raise InputError(f"{path} holds {key_map} and does not fit: {'; '.join(reasons)}")
    own, weights = network.state_dict(), without_derived(network, weights)
    if differing := differing_keys(own, weights):
        raise InputError(
            f"{path} does not fit {type(network).__name__}:{differing}\n"
            f"Build the network with the scale and sizes of the file{_setting_of_biases(network, weights)}"
        )
    network.load_state_dict(weights)


def warm_start(network: nn.Module, path: str | Path) -> None:
    """Initialise a network with weights of another scale, depth or class.

    Weights with the same name and shape in both are copied. All others are listed in the log.

    Args:
        network: Its other weights stay unchanged.
        path: As for `read_weights`.

    Raises:
        InputError: The file is unreadable, or nothing in it fits.
    """
    weights, key_map = read_weights(path, network)
    own, weights = network.state_dict(), without_derived(network, weights)
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    left_out = {
        "another shape, left out": {
            k: f"{shape_text(weights[k])}, here {shape_text(own[k])}" for k in own if k in weights and k not in fitting
        },
        "only in the file, left out": {k: shape_text(v) for k, v in weights.items() if k not in own},
        "only in the network, as initialised": {k: shape_text(v) for k, v in own.items() if k not in weights},
    }
    if not fitting:
        raise InputError(f"warm_start={path}: nothing in it fits {type(network).__name__}:{format_groups(left_out)}")
    network.load_state_dict(fitting, strict=False)
    origin = f"{path}, {key_map}" if key_map else f"{path}"
    log.info("warm start from %s: %d of %d tensors%s", origin, len(fitting), len(own), format_groups(left_out))


def save_weights(
    network: nn.Module,
    path: str | Path,
    layout: str = "ours",
    description: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of a network for this or another project, completely or not at all.

    Args:
        network: In training or inference form.
        path: The file to write: safetensors with layout "ours" or the suffix .safetensors, else a torch file.
        layout: "ours" writes this project's key names; "published" all that files of PUBLISHED or spandrel's networks
            hold, in torch files as `params_ema`; "basicsr" and "edsr-pytorch" the names of these projects, for networks
            that exist there. Files do not record EDSR's residual_scale: set `res_scale` there.
        description: The network's part of a config (`model.network`), stored in safetensors' metadata as JSON.
        metadata: Further entries of safetensors' metadata.

    Raises:
        InputError: The layout is unknown or cannot express this network.
    """
    state, wrapper = _in_layout(network, layout)
    weights = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if layout != "ours" and Path(path).suffix != ".safetensors":
        with replacing(path) as temporary:
            torch.save({wrapper: weights} if wrapper else weights, temporary)
        return
    facts = {
        "format": "pt",
        "class": type(network).__name__,
        "scale": str(network.scale),
        "num_channels": str(network.num_channels),
        "layout": layout,
    }
    facts[DIGESTS] = json.dumps(digests(weights))
    if description is not None:
        facts["network"] = json.dumps(description)
    with replacing(path) as temporary:  # save_file would write a file that only its owner can read
        Path(temporary).write_bytes(with_sorted_metadata(save(weights, facts | dict(metadata or {}))))


def with_sorted_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, so that the same network gives the same bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _in_layout(network: nn.Module, layout: str) -> tuple[Mapping[str, Tensor], str | None]:
    """Return the weights under the names of a layout, and the key under which its torch files hold them, if any.

    Raises:
        InputError: As of `save_weights`.
    """
    if layout == "ours":
        return network.state_dict(), None
    if layout == "published" and isinstance(network, SpandrelNetwork):
        return network.state_dict(), "params_ema"
    if layout == "published" and type(network) in PUBLISHED:
        if reasons := unpublished(network):
            raise InputError(
                f"layout='published': no published {type(network).__name__} has {', '.join(reasons)}; choose ours"
            )
        return getattr(network, "published_state", network.state_dict)(), "params_ema"
    key_map = key_map_for(network, layout)
    return export_keys(network.state_dict(), key_map, len(network.blocks)), key_map.wrapper


def unpublished(network: nn.Module) -> list[str]:
    """List the settings of a PUBLISHED network that its published files do not have, and their readers not expect."""
    settings = []
    if getattr(network, "skip", None) is not None:
        settings.append("global_skip=true")
    if network.num_channels != 3 and not isinstance(network, Compact | RRDBNet | SwinIR):
        settings.append(f"num_channels={network.num_channels}")
    if isinstance(network, SPAN):
        settings += [f"num_blocks={len(network.blocks)}"] * (len(network.blocks) != 6)
        settings += ["branches=false"] * isinstance(network.conv_1, nn.Conv2d)
    if isinstance(network, RRDBNet):
        growth = network.body[0].rdb1.conv1.out_channels
        settings += ["scale=3"] * (network.steps == (3,)) + [f"growth={growth}"] * (growth != 32)
    return settings


def key_map_for(network: nn.Module, project: str) -> KeyMap:
    """Return the key map of a project for a network.

    Raises:
        InputError: The project is unknown or has no such network.
    """
    writable = [each for each in KEY_MAPS if each.writable]
    of_class = [each for each in writable if each.project == project and type(network) is each.network]
    if not of_class:
        published = [f"{each.__name__} (published)" for each in PUBLISHED]
        choices = ", ".join([*map(str, writable), *published])
        raise InputError(f"layout={project!r} has no {type(network).__name__}; choose ours or one of {choices}")
    if reasons := differences(network, of_class[0]):
        raise InputError(f"layout={project!r}: {of_class[0]} does not fit: {'; '.join(reasons)}")
    return of_class[0]


def read_weights(
    path: str | Path, network: nn.Module | None = None
) -> tuple[dict[str, Tensor], KeyMap | Renaming | None]:
    """Read the weights in a file to the CPU, under this project's names. No code in the file is run.

    Args:
        path: A checkpoint of this project, or a run's directory (its best checkpoint); safetensors; a torch file with
            a state dict, also inside WRAPPERS (the average is used if both exist); or a pickled module.
        network: Decides which prefixes of names are stripped, see `states_in`; None: all PREFIXES.

    Returns:
        The weights; and the key map if they are another project's, else None. Unknown names are unchanged.

    Raises:
        InputError: The file is missing, unreadable or damaged, its values are not plausible, or it is made for images
            of another mean or range.
    """
    path = find_checkpoint(path)
    states = states_in(read_file(path), path)
    return named(states[0], path) if network is None else best_for(network, states, path)


def best_for(
    network: nn.Module, states: Sequence[Mapping[str, Tensor]], path: Path
) -> tuple[dict[str, Tensor], KeyMap | Renaming | None]:
    """Return the weights and the key map of the one of `states_in` that has the most names of a network."""
    own = network.state_dict().keys()
    return max((named(state, path) for state in states), key=lambda found: len(own & found[0].keys()))


def named(weights: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], KeyMap | Renaming | None]:
    """Rename weights as `read_weights` does.

    Raises:
        InputError: The file is made for images of another mean or range.
    """
    renaming = next((renaming for renaming in RENAMINGS if renaming.detect_key in weights), None)
    if renaming is not None:
        return renaming.rename(weights), renaming
    key_map = next((key_map for key_map in KEY_MAPS if key_map.matches(weights)), None)
    if key_map is None:
        return dict(weights), None
    if wrong := [
        f"{key} is {weights[key].tolist() if key in weights else 'missing'}, expected {value.tolist()}"
        for key, value in key_map.constants.items()
        if key not in weights or not _allclose(weights[key], value)
    ]:
        raise InputError(f"{path} expects images of another mean or range than {key_map} here: {'; '.join(wrong)}")
    return import_keys(weights, key_map), key_map


def differences(network: nn.Module, key_map: KeyMap | Renaming) -> list[str]:
    """List the reasons, other than names and shapes of weights, why a network is not that of a key map."""
    if type(network) is not key_map.network:
        return [f"this network is {type(network).__name__}"]
    reasons = []
    if getattr(network, "skip", None) is not None:
        reasons.append("this network has global_skip=true")
    if key_map.network is EDSR and network.num_channels != 3:
        reasons.append(f"this network has num_channels={network.num_channels}, not 3")
    return reasons


def without_derived(network: nn.Module | type[nn.Module], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what published files of the network hold besides its weights: folded layers, constants."""
    pattern = getattr(network, "derived", "")
    return {key: value for key, value in weights.items() if re.fullmatch(pattern, key) is None}


def _setting_of_biases(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Return the advice to change `bias` if that is a setting of the network and biases are the whole difference."""
    differing = network.state_dict().keys() ^ weights.keys()
    is_setting = "bias" in inspect.signature(type(network)).parameters
    if not is_setting or not all(key.endswith(".bias") for key in differing):
        return ""
    return f": set model.network.bias={str(differing <= weights.keys()).lower()}"


def _allclose(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-6)
