"""Key names of other projects' weights: EDSR-PyTorch, BasicSR, pytorch-vdsr."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sr_lightning.errors import InputError
from sr_lightning.networks import EDSR, RCAN, VDSR, MSRResNet, RRDBNet
from sr_lightning.networks.layers import div2k_mean

# Names of the layers of a network with `depth` blocks, {our name: their name}. The maps include upsampling stages that
# the network lacks at its scale.


def edsr_pytorch_edsr(depth: int) -> dict[str, str]:
    """EDSR of github.com/sanghyun-son/EDSR-PyTorch: src/model/edsr.py, common.py."""
    return (
        {"head": "head.0", "merge": f"body.{depth}", "tail": "tail.1"}
        | {f"blocks.{i}.conv1": f"body.{i}.body.0" for i in range(depth)}
        | {f"blocks.{i}.conv2": f"body.{i}.body.2" for i in range(depth)}
        | {f"upsampler.{i}": f"tail.0.{i}" for i in (0, 2, 4)}
    )


def basicsr_edsr(depth: int) -> dict[str, str]:
    """EDSR of github.com/XPixelGroup/BasicSR: basicsr/archs/edsr_arch.py, arch_util.py."""
    return (
        {"head": "conv_first", "merge": "conv_after_body", "tail": "conv_last"}
        | {f"blocks.{i}.conv{j}": f"body.{i}.conv{j}" for i in range(depth) for j in (1, 2)}
        | {f"upsampler.{i}": f"upsample.{i}" for i in (0, 2, 4)}
    )


def basicsr_msrresnet(depth: int) -> dict[str, str]:
    """MSRResNet of github.com/XPixelGroup/BasicSR, x2 to x4: basicsr/archs/srresnet_arch.py."""
    return (
        {"head": "conv_first", "refine": "conv_hr", "tail": "conv_last"}
        | {f"blocks.{i}.conv{j}": f"body.{i}.conv{j}" for i in range(depth) for j in (1, 2)}
        | {"upsampler.0": "upconv1", "upsampler.3": "upconv2"}
    )


def twtygqyy_vdsr(depth: int) -> dict[str, str]:
    """VDSR of github.com/twtygqyy/pytorch-vdsr, vdsr.py. Its blocks are the convolutions between first and last."""
    return {"convs.0": "input", f"convs.{depth + 1}": "output"} | {
        f"convs.{i + 1}": f"residual_layer.{i}.conv" for i in range(depth)
    }


@dataclass(frozen=True, eq=False)
class KeyMap:
    """The key names that another project gives to the weights of a network.

    Attributes:
        project: The `layout` of `save_weights`.
        network: The equivalent class of this project.
        key_map: Number of blocks -> {our name of a layer: theirs}.
        detect_key: A key that, with those of the blocks, only files of that project have.
        block_pattern: Matches one key of each block in their files.
        constants: Tensors in their files that are constants in this project.
        wrapper: The key under which their files hold the weights, if any.
        writable: True if `save_weights` writes it.
    """

    project: str
    network: type[nn.Module]
    key_map: Callable[[int], dict[str, str]]
    detect_key: str
    block_pattern: str
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    wrapper: str | None = None
    writable: bool = True

    def __str__(self) -> str:
        return f"{self.network.__name__} ({self.project})"

    def depth(self, weights: Mapping[str, Tensor]) -> int:
        """Count the blocks in a file."""
        return sum(re.fullmatch(self.block_pattern, key) is not None for key in weights)

    def matches(self, weights: Mapping[str, Tensor]) -> bool:
        """Return True if these are names of that project."""
        return self.detect_key in weights and self.depth(weights) > 0


def mean_shifts() -> dict[str, Tensor]:
    """Return the weights of EDSR-PyTorch's 1x1 convolutions that subtract and add the mean of images in 0..255."""
    mean, identity = 255 * div2k_mean(3).flatten(), torch.eye(3)[..., None, None]
    return {
        "sub_mean.weight": identity,
        "sub_mean.bias": -mean,
        "add_mean.weight": identity.clone(),
        "add_mean.bias": mean,
    }


KEY_MAPS = (
    KeyMap(
        "edsr-pytorch",
        EDSR,
        edsr_pytorch_edsr,
        detect_key="body.0.body.0.weight",
        block_pattern=r"body\.\d+\.body\.0\.weight",
        constants=mean_shifts(),
    ),
    KeyMap(
        "basicsr",
        EDSR,
        basicsr_edsr,
        detect_key="conv_after_body.weight",
        block_pattern=r"body\.\d+\.conv1\.weight",
        wrapper="params",
    ),
    KeyMap(
        "basicsr",
        MSRResNet,
        basicsr_msrresnet,
        detect_key="upconv1.weight",
        block_pattern=r"body\.\d+\.conv1\.weight",
        wrapper="params",
    ),
    KeyMap(
        "twtygqyy",
        VDSR,
        twtygqyy_vdsr,
        detect_key="residual_layer.0.conv.weight",
        block_pattern=r"residual_layer\.\d+\.conv\.weight",
        writable=False,
    ),
)


@dataclass(frozen=True, eq=False)
class Renaming:
    """Names of another project, where those of the layers alone say which is which; for reading only.

    Attributes:
        project: The project.
        network: The equivalent class of this project.
        detect_key: A key that only these files have.
        names: All their keys -> {their key: ours}. Others keep their names, and are of no network of this project.
        constants: Matches keys that are left out, because they are constants in this project.
    """

    project: str
    network: type[nn.Module]
    detect_key: str
    names: Callable[[Collection[str]], dict[str, str]]
    constants: str = ""

    def __str__(self) -> str:
        return f"{self.network.__name__} ({self.project})"

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights under our names, without constants."""
        names = self.names(weights)
        kept = {key: value for key, value in weights.items() if re.fullmatch(self.constants, key) is None}
        return {names.get(key, key): value for key, value in kept.items()}


def by_patterns(*patterns: tuple[str, str]) -> Callable[[Collection[str]], dict[str, str]]:
    """Return the `names` of regular expressions and replacements, of which the first that matches a layer counts."""

    def rename(keys: Collection[str]) -> dict[str, str]:
        names = {}
        for key in keys:
            layer, dot, kind = key.rpartition(".")
            new = (re.sub(pattern, by, layer) for pattern, by in patterns if re.fullmatch(pattern, layer))
            if (ours := next(new, None)) is not None:
                names[key] = ours + dot + kind
        return names

    return rename


def first_esrgan(keys: Collection[str]) -> dict[str, str]:
    """RRDBNet of github.com/xinntao/ESRGAN's first version, also in traiNNer: a sequence numbered through."""
    numbers = sorted({int(key.split(".")[0]) for key in keys if re.fullmatch(r"\d+\.(weight|bias)", key)})
    layers = {numbers[0]: "conv_first", numbers[-2]: "conv_hr", numbers[-1]: "conv_last"}
    layers |= {number: f"conv_up{i}" for i, number in enumerate(numbers[1:-2], start=1)}
    return by_patterns(
        (r"1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", r"body.\1.rdb\2.conv\3"),
        (r"1\.sub\.\d+", "conv_body"),
        *((str(number), layer) for number, layer in layers.items()),
    )(keys)


RENAMINGS = (
    Renaming("ESRGAN", RRDBNet, "1.sub.0.RDB1.conv1.0.weight", first_esrgan),
    Renaming(
        "BSRGAN",
        RRDBNet,
        "RRDB_trunk.0.RDB1.conv1.weight",
        by_patterns(
            (r"RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)", r"body.\1.rdb\2.conv\3"),
            (r"upconv(\d)", r"conv_up\1"),
            ("trunk_conv", "conv_body"),
            ("HRconv", "conv_hr"),
            (r"(conv_first|conv_last)", r"\1"),
        ),
    ),
    Renaming(
        "RCAN",
        RCAN,
        "body.0.body.0.body.3.conv_du.0.weight",
        by_patterns(
            (r"body\.(\d+)\.body\.(\d+)\.body\.0", r"groups.\1.blocks.\2.conv1"),
            (r"body\.(\d+)\.body\.(\d+)\.body\.2", r"groups.\1.blocks.\2.conv2"),
            (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0", r"groups.\1.blocks.\2.squeeze"),
            (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2", r"groups.\1.blocks.\2.excite"),
            (r"body\.(\d+)\.body\.\d+", r"groups.\1.merge"),
            (r"body\.\d+", "merge"),
            (r"head\.0", "head"),
            (r"tail\.0\.(\d)", r"upsampler.\1"),
            (r"tail\.1", "tail"),
        ),
        constants=r"(sub|add)_mean\.(weight|bias)",
    ),
)


def import_keys(weights: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Rename the weights of another project's file to our names, without its constants. Unknown names are unchanged."""
    names = {theirs: ours for ours, theirs in key_map.key_map(key_map.depth(weights)).items()}
    return {_rename(key, names): value for key, value in weights.items() if key not in key_map.constants}


def export_keys(weights: Mapping[str, Tensor], key_map: KeyMap, depth: int) -> dict[str, Tensor]:
    """Rename the weights of a network with `depth` blocks to another project's names, and add its constants.

    Raises:
        InputError: The other project's network has no such layer.
    """
    names = key_map.key_map(depth)
    if unknown := [key for key in weights if key.rpartition(".")[0] not in names]:
        raise InputError(f"{key_map} has no layer for {', '.join(unknown)}")
    return {_rename(key, names): value for key, value in weights.items()} | dict(key_map.constants)


def _rename(key: str, names: Mapping[str, str]) -> str:
    """Rename the layer in a key: `head.weight` -> `head.0.weight` with names {"head": "head.0"}."""
    layer, dot, kind = key.rpartition(".")
    return names.get(layer, layer) + dot + kind
