"""Recognition of each network by names and shapes of its weights, which show its settings."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isqrt, nextafter, prod
from typing import Any

from torch import Tensor, nn

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
