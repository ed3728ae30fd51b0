"""The network that a file of weights belongs to, found from the names and shapes of its tensors."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import (
    Allow,
    Trained,
    build_network,
    checked_fields,
    finite,
    network_of,
    no_larger_than,
)
from sr_lightning.checkpoints.forms import FORMS, PLAIN, PUBLISHED_RESIDUAL_SCALES, Form, Settings, Shapes
from sr_lightning.checkpoints.interop import best_for, fill, named, without_derived
from sr_lightning.checkpoints.key_listing import differing_keys, shape_text
from sr_lightning.checkpoints.key_maps import KeyMap, Renaming
from sr_lightning.checkpoints.spandrel_networks import load_by_spandrel
from sr_lightning.checkpoints.weight_files import read_file, recorded_network, states_in
from sr_lightning.errors import InputError, UnknownNetworkError
from sr_lightning.networks import EDSR, VDSR
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.tensor_archive import describes_network

SHOWN = 6  # tensors of an unknown file named in the message


def load_any(path: str | Path, allow: Allow = None, given: Settings | None = None) -> Trained:
    """Load the network of any file of weights: of this project, which describes it, or of another, which shows it.

    Args:
        path: A checkpoint or a run's directory; or as for `interop.read_weights`.
        allow: As for `checkpoint.load_network`.
        given: Keyword arguments of the network that the file does not show, such as {"scale": 2} for VDSR; others must
            be those of the file.

    Returns:
        The network; of another project's file, its name is that of the file, and `step` is None.

    Raises:
        InputError: As of `checkpoint.load_best` and `weight_files.states_in`; or the network is neither one of this
            project nor of spandrel, if that is installed, or has settings that the file does not show, or other ones.
    """
    path, given = find_checkpoint(path), given or {}
    content = read_file(path)
    if describes_network(content):
        trained = finite(network_of(checked_fields(content, path), path, allow), path)
        _check_given(given, trained.network, trained.config["model"]["network"], path)
        return trained
    states = states_in(content, path)
    description = recorded_network(path)
    if description is None:
        try:
            description = _describe_any(states, path, given)
        except UnknownNetworkError as unknown:
            return _of_spandrel(states, path, given, unknown)
    with no_larger_than(states[0], path):
        network = build_network(description, path, allow)
    _check_given(given, network, description, path)
    fill(network, *best_for(network, states, path), path)
    return _trained(network, path, description)


def _describe_any(states: Sequence[Mapping[str, Tensor]], path: Path, given: Settings) -> Settings:
    """Describe the first of `states_in` that a network of this project has; raise the error of the first if none."""
    unknown = None
    for state in states:
        try:
            return describe(*named(state, path), path, given)
        except UnknownNetworkError as error:
            unknown = unknown or error
    raise unknown or UnknownNetworkError(f"{path} holds no weights")


def _trained(network: nn.Module, path: Path, description: Settings) -> Trained:
    config = {"name": path.stem, "model": {"network": description}, "protocol": {}}
    return Trained(network.eval(), path.stem, None, config)


def _of_spandrel(
    states: Sequence[Mapping[str, Tensor]], path: Path, given: Settings, unknown: UnknownNetworkError
) -> Trained:
    """Load a network that spandrel knows.

    Raises:
        InputError: As of `load_by_spandrel`; or a setting differs from that of the file.
    """
    network = load_by_spandrel(states, path, unknown)
    description = {"spandrel": type(network).__name__, "scale": network.scale}
    _check_given(given, network, description, path)
    return _trained(network, path, description)


def _check_given(given: Settings, network: nn.Module, description: Settings, path: Path) -> None:
    """Check settings that the user gives against the network of a file.

    Raises:
        InputError: One differs, or the network does not have it.
    """
    name, parameters = type(network).__name__, inspect.signature(type(network)).parameters
    known = {key: parameter.default for key, parameter in parameters.items()} | dict(description)
    for key, value in given.items():
        if key not in known:
            raise InputError(f"{path} holds {name}, which has no {key}: leave it out")
        if known[key] != value:
            raise InputError(f"{path} holds {name} with {key}={known[key]}, not {value}: leave it out")


def describe(
    weights: Mapping[str, Tensor], key_map: KeyMap | Renaming | None, path: str | Path, given: Settings
) -> Settings:
    """Return `model.network` of a config, `_target_` and keyword arguments, for a file of weights.

    Args:
        weights: As read by `interop.read_weights`.
        key_map: As read by `interop.read_weights`.
        path: The file, named in messages.
        given: As for `load_any`.

    Raises:
        InputError: As of `load_any`.
    """
    form, settings = identify(weights, path)
    name = form.network.__name__
    if unknown := given.keys() - inspect.signature(form.network).parameters.keys():
        raise InputError(f"{path} holds {name}, which has no {', '.join(sorted(unknown))}: leave it out")
    if wrong := [key for key in given if key in settings and settings[key] != given[key]]:
        raise InputError(
            f"{path} holds {name} with {wrong[0]}={settings[wrong[0]]}, not {given[wrong[0]]}: leave it out"
        )
    settings |= given
    if key_map is not None:
        settings |= _of_other_projects(form, settings)
    hidden = [key for key in form.hidden if key not in settings]
    if hidden:
        example = {"scale": "2", "activation": "ReLU", "lr_normalisation": "unit", "residual_scale": "1.0"}
        options = " ".join(f"--network {key}={example.get(key, 'false')}" for key in hidden)
        raise InputError(
            f"{path} holds {name}, and its weights do not show {' and '.join(hidden)}. Name the value: in sr-upscale "
            f"and sr-export {options}, in evaluate.py scale=x2 or model=… with all its settings; for "
            "model.teacher give the file that sr-export writes with it"
        )
    return {"_target_": f"sr_lightning.networks.{name}"} | settings


def _of_other_projects(form: Form, settings: Settings) -> Settings:
    """Return what is known of the hidden settings in files of other projects: none adds bicubic, EDSR has two sizes."""
    known = {"global_skip": False} if "global_skip" in form.hidden else {}
    size = settings.get("num_features"), settings.get("num_blocks")
    if form.network is EDSR and size in PUBLISHED_RESIDUAL_SCALES:
        known["residual_scale"] = PUBLISHED_RESIDUAL_SCALES[size]
    return {key: value for key, value in known.items() if key not in settings}


def identify(weights: Mapping[str, Tensor], source: str | Path) -> tuple[Form, Settings]:
    """Find the network of weights, and the keyword arguments that their shapes show.

    Args:
        weights: Under the names of this project.
        source: The file, named in messages.

    Raises:
        UnknownNetworkError: No network of this project has such weights; names the first of them.
    """
    shapes = Shapes(weights)
    for form in (*FORMS, *PLAIN):
        if not form.fits(shapes):
            continue
        try:
            settings = form.settings(shapes)
        except (KeyError, IndexError, ZeroDivisionError, ValueError):
            continue
        if form.network is VDSR and shapes.out(f"convs.{settings['num_layers'] - 1}") != 1:
            continue
        if _is_exact(form, settings, weights):
            return form, settings
    first = ", ".join(f"{key} {shape_text(value)}" for key, value in list(weights.items())[:SHOWN])
    raise UnknownNetworkError(
        f"{source} holds weights of no network that this project has, in {len(weights)} tensors: {first}"
        f"{', …' if len(weights) > SHOWN else ''}"
    )


def _is_exact(form: Form, settings: Settings, weights: Mapping[str, Tensor]) -> bool:
    """Return True if the network with these settings has the names and shapes of the weights."""
    learned = {key: value.to("meta") for key, value in without_derived(form.network, weights).items()}
    with torch.device("meta"), no_larger_than(learned, "the file"):
        try:
            network = form.network(**({"scale": 2} if "scale" in form.hidden else {}), **settings)
        except (InputError, ValueError, TypeError, RuntimeError):
            return False
    return not differing_keys(network.state_dict(), learned)
