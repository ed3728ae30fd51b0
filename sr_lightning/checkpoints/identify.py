"""The network that a file of weights belongs to, found from the names and shapes of its tensors."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isqrt, nextafter, prod
from pathlib import Path
from typing import Any

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
from sr_lightning.checkpoints.interop import (
    best_for,
    fill,
    named,
    read_file,
    recorded_network,
    states_in,
    without_derived,
)
from sr_lightning.checkpoints.key_listing import differing_keys, shape_text
from sr_lightning.checkpoints.key_maps import KeyMap, Renaming
from sr_lightning.checkpoints.spandrel_networks import load_by_spandrel
from sr_lightning.errors import InputError, UnknownNetworkError
from sr_lightning.networks import (
    EDSR,
    EDSRBN,
    ESPCN,
    FSRCNN,
    PLKSR,
    RCAN,
    SAFMN,
    SPAN,
    SRCNN,
    VDSR,
    WDSR,
    Compact,
    MSRResNet,
    RealPLKSR,
    RRDBNet,
    SRResNet,
    SwinIR,
)
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.utils.tensor_archive import describes_network

SHOWN = 6  # tensors of an unknown file named in the message
Settings = dict[str, Any]  # keyword arguments of a network


class Shapes:
    """Names and shapes of the weights in a file.

    Args:
        weights: By name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._shapes = {key: tuple(value.shape) for key, value in weights.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def out(self, layer: str) -> int:
        """Return the output channels of a layer."""
        return self._weight(layer)[0]

    def into(self, layer: str) -> int:
        """Return the input channels of a layer."""
        return self._weight(layer)[1]

    def side(self, layer: str) -> int:
        """Return the side of the kernel of a convolution."""
        return self._weight(layer)[2]

    def count(self, pattern: str) -> int:
        """Count the numbers in the place of `#` in names: "blocks.#.conv1"."""
        regex = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)") + r"(\..*)?")
        return len({match[1] for name in self._shapes if (match := regex.fullmatch(name))})

    def stages(self, layers: str) -> int:
        """Return the factor of an `upsampler`: the product of its pixel shuffles."""
        convs = (f"{layers}.{i}" for i in range(12) if len(self._shapes.get(f"{layers}.{i}.weight", ())) == 4)
        return prod(isqrt(self.out(conv) // self.into(conv)) for conv in convs)

    def shuffle(self, layer: str, num_channels: int) -> int:
        """Return the factor of the pixel shuffle after the last convolution."""
        return isqrt(self.out(layer) // num_channels)

    def _weight(self, layer: str) -> tuple[int, ...]:
        """Return the shape of a weight, also of a normalised one."""
        for name in (f"{layer}.weight", f"{layer}.parametrizations.weight.original1"):
            if name in self._shapes:
                return self._shapes[name]
        raise KeyError(layer)


@dataclass(frozen=True)
class Form:
    """Recognition of a network.

    Attributes:
        network: The class.
        keys: Names that all its files have.
        settings: Shapes -> keyword arguments.
        hidden: Arguments that change the output, and that the shapes do not show, or not always.
        without: Names that none of its files has.
    """

    network: type[nn.Module]
    keys: tuple[str, ...]
    settings: Callable[[Shapes], Settings]
    hidden: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def fits(self, shapes: Shapes) -> bool:
        """Return True if a file has the names of this network."""
        return all(key in shapes for key in self.keys) and not any(key in shapes for key in self.without)


def _ratio(part: int, whole: int) -> float:
    """Return the fraction of which a network computes `int(fraction * whole) == part`."""
    ratio = part / whole
    return ratio if int(ratio * whole) == part else nextafter(ratio, inf)


def _residual(s: Shapes) -> Settings:
    return {
        "scale": s.stages("upsampler"),
        "num_features": s.out("head"),
        "num_blocks": s.count("blocks.#.conv1"),
        "num_channels": s.into("head"),
    }


def _without_channels(settings: Callable[[Shapes], Settings]) -> Callable[[Shapes], Settings]:
    return lambda s: {key: value for key, value in settings(s).items() if key != "num_channels"}


def _rcan(s: Shapes) -> Settings:
    return {
        "scale": s.stages("upsampler"),
        "num_features": s.out("head"),
        "num_groups": s.count("groups.#.merge"),
        "num_blocks": s.count("groups.0.blocks.#.conv1"),
        "reduction": s.out("head") // s.out("groups.0.blocks.0.squeeze"),
    }


def _wdsr(s: Shapes) -> Settings:
    features, channels = s.out("head"), s.into("head")
    low = s.out("blocks.0.reduce") if "blocks.0.reduce.bias" in s else None
    return {
        "scale": s.shuffle("tail", channels),
        "num_features": features,
        "num_blocks": s.count("blocks.#.expand"),
        "expansion": _ratio(s.out("blocks.0.expand"), features),
        "low_rank": None if low is None else _ratio(low, features),
        "weight_norm": "head.weight" not in s,
        "num_channels": channels,
    }


def _espcn(s: Shapes) -> Settings:
    convs = [f"convs.{i}" for i in range(s.count("convs.#"))]
    return {
        "scale": isqrt(s.out(convs[-1])),
        "num_features": [s.out(conv) for conv in convs[:-1]],
        "kernel_sizes": [s.side(conv) for conv in convs],
    }


def _vdsr(s: Shapes) -> Settings:
    return {"num_features": s.out("convs.0"), "num_layers": s.count("convs.#"), "bias": "convs.0.bias" in s}


def _fsrcnn(s: Shapes) -> Settings:
    return {
        "num_features": s.out("convs.0"),
        "num_shrunk": s.out("convs.1"),
        "num_mappings": s.count("convs.#") - 3,
    }


def _srcnn(s: Shapes) -> Settings:
    convs = ("conv1", "conv2", "conv3")
    return {"num_features": [s.out(conv) for conv in convs[:2]], "kernel_sizes": [s.side(conv) for conv in convs]}


def _compact(s: Shapes) -> Settings:
    channels, last = s.into("body.0"), s.count("body.#") - 1
    return {
        "scale": s.shuffle(f"body.{last}", channels),
        "num_features": s.out("body.0"),
        "num_blocks": (last - 2) // 2,
        "num_channels": channels,
    }


def _rrdbnet(s: Shapes) -> Settings:
    channels = s.out("conv_last")
    unshuffle = isqrt(s.into("conv_first") // channels)
    return {
        "scale": 2 ** sum(f"conv_up{i}.weight" in s for i in (1, 2, 3)) // unshuffle,
        "num_features": s.out("conv_first"),
        "num_blocks": s.count("body.#.rdb1.conv1"),
        "growth": s.out("body.0.rdb1.conv1"),
        "unshuffle": unshuffle,
        "num_channels": channels,
    }


def _span(s: Shapes) -> Settings:
    is_published = "conv_1.eval_conv.weight" in s
    first = "conv_1.sk" if (branches := "conv_1.sk.weight" in s) else "conv_1"
    channels = s.into(first)
    return {
        "scale": s.shuffle("upsampler.0", channels),
        "num_features": s.out(first),
        "num_blocks": s.count("block_#.c1_r"),
        "num_channels": channels,
        "branches": branches,
    } | ({"norm": "no_norm" not in s} if is_published else {})


def _blocks_with_large_kernel(s: Shapes) -> Settings:
    channels, features, num_blocks = s.into("feats.0"), s.out("feats.0"), s.count("feats.#.lk.conv")
    last = num_blocks + 1 + ("feats.1.channel_mixer.0.weight" in s)  # RealPLKSR has a dropout layer before it
    return {
        "scale": s.shuffle(f"feats.{last}", channels),
        "num_features": features,
        "num_blocks": num_blocks,
        "kernel_size": s.side("feats.1.lk.conv"),
        "split_ratio": _ratio(s.out("feats.1.lk.conv"), features),
        "attention": "feats.1.attn.f.0.weight" in s,
        "num_channels": channels,
    }


def _plksr(s: Shapes) -> Settings:
    mixer = "feats.1.channe_mixer"
    return _blocks_with_large_kernel(s) | {"mixer_kernels": [s.side(f"{mixer}.0"), s.side(f"{mixer}.2")]}


def _realplksr(s: Shapes) -> Settings:
    return _blocks_with_large_kernel(s) | {
        "layer_norm": "feats.1.layer_norm.weight" in s,
        "dysample": "to_img.offset.weight" in s,
    }


def _safmn(s: Shapes) -> Settings:
    channels, features = s.into("to_feat"), s.out("to_feat")
    return {
        "scale": s.shuffle("to_img.0", channels),
        "num_features": features,
        "num_blocks": s.count("feats.#.safm.aggr"),
        "expansion": _ratio(s.out("feats.0.ccm.ccm.0"), features),
        "num_channels": channels,
    }


def _swinir(s: Shapes) -> Settings:
    channels, features = s.into("conv_first"), s.out("conv_first")
    first = "layers.0.residual_group.blocks.0"
    positions, heads = s[f"{first}.attn.relative_position_bias_table"]
    return {
        "scale": s.shuffle("upsample.0", channels),
        "num_features": features,
        "num_groups": s.count("layers.#.conv"),
        "num_blocks": s.count("layers.0.residual_group.blocks.#.attn.qkv"),
        "num_heads": heads,
        "window_size": (isqrt(positions) + 1) // 2,
        "expansion": _ratio(s.out(f"{first}.mlp.fc1"), features),
        "num_channels": channels,
    }


RESIDUAL = ("head.weight", "blocks.0.conv1.weight", "merge.weight", "tail.weight")
FORMS = (
    Form(EDSR, RESIDUAL, _residual, hidden=("residual_scale", "global_skip"), without=("blocks.0.norm1.weight",)),
    Form(EDSRBN, (*RESIDUAL, "blocks.0.norm1.weight"), _residual, without=("activation.weight",)),
    Form(
        SRResNet,
        (*RESIDUAL, "activation.weight", "norm.weight"),
        _without_channels(_residual),
        hidden=("lr_normalisation", "tanh"),
    ),
    Form(MSRResNet, ("head.weight", "blocks.0.conv1.weight", "refine.weight"), _without_channels(_residual)),
    Form(RCAN, ("head.weight", "groups.0.blocks.0.squeeze.weight", "tail.weight"), _rcan),
    Form(WDSR, ("blocks.0.expand.bias", "shortcut.bias"), _wdsr, hidden=("residual_scale", "global_skip")),
    Form(FSRCNN, ("convs.0.weight", "enlarge.weight"), _fsrcnn, hidden=("scale", "global_skip")),
    Form(SRCNN, ("conv1.weight", "conv2.weight", "conv3.weight"), _srcnn, hidden=("scale", "global_skip")),
    Form(Compact, ("body.0.weight", "body.1.weight", "body.2.weight"), _compact),
    Form(RRDBNet, ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.weight"), _rrdbnet),
    Form(SPAN, ("conv_1.sk.weight", "block_1.c1_r.sk.weight", "conv_cat.weight"), _span, hidden=("norm",)),
    Form(SPAN, ("conv_1.weight", "block_1.c1_r.weight", "conv_cat.weight"), _span, hidden=("norm", "global_skip")),
    Form(PLKSR, ("feats.0.weight", "feats.1.channe_mixer.0.weight", "feats.1.lk.conv.weight"), _plksr),
    Form(RealPLKSR, ("feats.0.weight", "feats.1.channel_mixer.0.weight", "feats.1.lk.conv.weight"), _realplksr),
    Form(SAFMN, ("to_feat.weight", "feats.0.safm.aggr.weight", "to_img.0.weight"), _safmn),
    Form(SwinIR, ("layers.0.residual_group.blocks.0.attn.qkv.weight", "upsample.0.weight"), _swinir),
)
# Both have `convs` alone: VDSR's last one has one channel, ESPCN's scale**2.
PLAIN = (
    Form(VDSR, ("convs.0.weight",), _vdsr, hidden=("scale",)),
    Form(ESPCN, ("convs.0.weight",), _espcn, hidden=("activation", "global_skip")),
)
PUBLISHED_RESIDUAL_SCALES = {(64, 16): 1.0, (256, 32): 0.1}  # of EDSR, by num_features and num_blocks


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
        InputError: As of `checkpoint.load_best` and `interop.states_in`; or the network is neither one of this
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
