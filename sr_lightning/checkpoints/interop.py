"""Weights from other projects' files and into such files, and from one network of this project into another."""

import json
import logging
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import network_weights
from sr_lightning.checkpoints.legacy_pickle import read_module
from sr_lightning.errors import InputError
from sr_lightning.networks import EDSR, VDSR, MSRResNet
from sr_lightning.networks.layers import div2k_mean
from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)


# How other projects call the layers of a network with `depth` blocks: {our name: theirs}. Layers that a network lacks
# (enlarging steps beyond its scale) are in the map all the same.


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
    """VDSR of github.com/twtygqyy/pytorch-vdsr: vdsr.py. Its blocks are all convolutions but the first and the last."""
    return {"convs.0": "input", f"convs.{depth + 1}": "output"} | {
        f"convs.{i + 1}": f"residual_layer.{i}.conv" for i in range(depth)
    }


@dataclass(frozen=True, eq=False)
class Layout:
    """How another project calls the weights of a network.

    Attributes:
        project: As `save_weights` calls it.
        network: The class here that computes the same.
        names: Number of blocks -> {our name of a layer: theirs}.
        sign: A key that says that a file is of this layout.
        block: Matches one key of each block in their files.
        constants: Tensors of their files that are no weights, and fixed here.
        wrapper: The key under which their files hold the weights, if any.
        written: Whether `save_weights` writes it.
    """

    project: str
    network: type[nn.Module]
    names: Callable[[int], dict[str, str]]
    sign: str
    block: str
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    wrapper: str | None = None
    written: bool = True

    def __str__(self) -> str:
        return f"{self.network.__name__} ({self.project})"


def mean_shifts() -> dict[str, Tensor]:
    """EDSR-PyTorch's 1x1 convolutions that subtract and add the mean, on images in 0..255."""
    mean, identity = 255 * div2k_mean(3).flatten(), torch.eye(3)[..., None, None]
    return {
        "sub_mean.weight": identity,
        "sub_mean.bias": -mean,
        "add_mean.weight": identity.clone(),
        "add_mean.bias": mean,
    }


LAYOUTS = (
    Layout(
        "edsr-pytorch",
        EDSR,
        edsr_pytorch_edsr,
        sign="body.0.body.0.weight",
        block=r"body\.\d+\.body\.0\.weight",
        constants=mean_shifts(),
    ),
    Layout(
        "basicsr",
        EDSR,
        basicsr_edsr,
        sign="conv_after_body.weight",
        block=r"body\.\d+\.conv1\.weight",
        wrapper="params",
    ),
    Layout(
        "basicsr",
        MSRResNet,
        basicsr_msrresnet,
        sign="upconv1.weight",
        block=r"body\.\d+\.conv1\.weight",
        wrapper="params",
    ),
    Layout(
        "twtygqyy",
        VDSR,
        twtygqyy_vdsr,
        sign="residual_layer.0.conv.weight",
        block=r"residual_layer\.\d+\.conv\.weight",
        written=False,
    ),
)


def load_weights(network: nn.Module, path: str | Path) -> Layout | None:
    """Load all weights of a network from a file.

    Args:
        network: Of the sizes that the file has. Options that leave no trace in a file (EDSR's residual_scale: 1 for the
            published baselines, 0.1 for the large networks) are the caller's to set.
        path: As for `read_weights`.

    Returns:
        The layout of the file; None for this project's own.

    Raises:
        InputError: Not readable, of another network, or any name or shape differs: all that do are named.
    """
    weights, layout = read_weights(path)
    if layout is not None and (reasons := differences(network, layout)):
        raise InputError(f"{path} holds {layout}, which computes something else: {'; '.join(reasons)}")
    own = network.state_dict()
    shapes = {k: f"{shape(weights[k])}, expected {shape(own[k])}" for k in own if k in weights}
    problems = {
        "another shape": {k: text for k, text in shapes.items() if weights[k].shape != own[k].shape},
        "missing in the file": {k: shape(v) for k, v in own.items() if k not in weights},
        "unknown to the network": {k: shape(v) for k, v in weights.items() if k not in own},
    }
    if any(problems.values()):
        raise InputError(
            f"{path} does not fit {type(network).__name__}:{listing(problems)}\n"
            "Build the network with the scale and sizes of the file"
        )
    network.load_state_dict(weights)
    return layout


def warm_start(network: nn.Module, path: str | Path) -> None:
    """Start a network from another's weights: of another scale, depth or class.

    What has the same name and shape in both is copied. All else is listed in the log.

    Args:
        network: Keeps its initial weights elsewhere.
        path: As for `read_weights`.

    Raises:
        InputError: Not readable, or nothing fits.
    """
    weights, layout = read_weights(path)
    own = network.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    left_out = {
        "another shape, left out": {
            k: f"{shape(weights[k])}, here {shape(own[k])}" for k in own if k in weights and k not in fitting
        },
        "only in the file, left out": {k: shape(v) for k, v in weights.items() if k not in own},
        "only in the network, as initialised": {k: shape(v) for k, v in own.items() if k not in weights},
    }
    if not fitting:
        raise InputError(f"warm_start={path}: nothing in it fits {type(network).__name__}:{listing(left_out)}")
    network.load_state_dict(fitting, strict=False)
    origin = f"{path}, {layout}" if layout else f"{path}"
    log.info("warm start from %s: %d of %d tensors%s", origin, len(fitting), len(own), listing(left_out))


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
        path: The file: safetensors, or for another project a torch file unless the name ends in .safetensors.
        layout: "ours" has this project's names. "basicsr" and "edsr-pytorch" have those of these projects, for networks
            that they have as well. EDSR's residual_scale goes into neither: there it is `res_scale`.
        description: How a config describes the network (`model.network`); kept in safetensors' metadata as JSON.
        metadata: More for safetensors' metadata.

    Raises:
        InputError: An unknown layout, or one in which this network cannot be said.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    theirs = None if layout == "ours" else layout_of(network, layout)
    if theirs is not None:
        weights = to_theirs(weights, theirs, len(network.blocks)) | dict(theirs.constants)
    if theirs is not None and Path(path).suffix != ".safetensors":
        with replacing(path) as temporary:
            torch.save({theirs.wrapper: weights} if theirs.wrapper else weights, temporary)
        return
    facts = {
        "format": "pt",
        "class": type(network).__name__,
        "scale": str(network.scale),
        "num_channels": str(network.num_channels),
        "layout": layout,
    }
    if description is not None:
        facts["network"] = json.dumps(description)
    with replacing(path) as temporary:
        save_file(weights, temporary, facts | dict(metadata or {}))


def layout_of(network: nn.Module, project: str) -> Layout:
    """The layout in which a project has a network.

    Raises:
        InputError: It does not have it, or is unknown.
    """
    written = [each for each in LAYOUTS if each.written]
    of_class = [each for each in written if each.project == project and type(network) is each.network]
    if not of_class:
        choices = ", ".join(map(str, written))
        raise InputError(f"layout={project!r} does not have {type(network).__name__}; there are ours and {choices}")
    if reasons := differences(network, of_class[0]):
        raise InputError(f"{of_class[0]} computes something else: {'; '.join(reasons)}")
    return of_class[0]


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], Layout | None]:
    """The weights in a file, by this project's names, on the CPU. No code in the file is run.

    Args:
        path: A checkpoint of this project, or the directory of a run (its best checkpoint is meant); safetensors; a
            torch file with a state dict, also below "params" or "params_ema" (the average is taken where both are
            there); or a pickled module.

    Returns:
        The weights, and the layout if they are another project's. Names that it should not have stay as they are.

    Raises:
        InputError: Not there, not readable, or with other constants than this project's network.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    weights = _read_file(path)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path} holds no weights: it has {', '.join(map(str, list(weights)[:10])) or 'nothing'}")
    layout = next((layout for layout in LAYOUTS if layout.sign in weights), None)
    if layout is None:
        return weights, None
    if wrong := [
        f"{key} is {weights[key].tolist() if key in weights else 'missing'}, expected {value.tolist()}"
        for key, value in layout.constants.items()
        if key not in weights or not same(weights[key], value)
    ]:
        raise InputError(f"{path} was made for other images than {layout} here: {'; '.join(wrong)}")
    return to_ours(weights, layout), layout


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # more than tensors
        return read_module(path)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(content, dict):
        return {}
    if "hyper_parameters" in content:
        return network_weights(content)
    return content.get("params_ema", content.get("params", content))


def to_ours(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename the weights of another project's file, without its constants. Unknown names stay as they are."""
    depth = sum(re.fullmatch(layout.block, key) is not None for key in weights)
    names = {theirs: ours for ours, theirs in layout.names(depth).items()}
    return {rename(key, names): value for key, value in weights.items() if key not in layout.constants}


def to_theirs(weights: Mapping[str, Tensor], layout: Layout, depth: int) -> dict[str, Tensor]:
    """Rename the weights of a network with `depth` blocks as another project does.

    Raises:
        InputError: The other project's network has no such layer.
    """
    names = layout.names(depth)
    if unknown := [key for key in weights if key.rpartition(".")[0] not in names]:
        raise InputError(f"{layout} has nothing like {', '.join(unknown)}")
    return {rename(key, names): value for key, value in weights.items()}


def rename(key: str, names: Mapping[str, str]) -> str:
    """`head.weight` -> `head.0.weight`, where names has {"head": "head.0"}."""
    layer, dot, kind = key.rpartition(".")
    return names.get(layer, layer) + dot + kind


def differences(network: nn.Module, layout: Layout) -> list[str]:
    """Why a network is not the one of a layout, as far as its weights do not tell."""
    if type(network) is not layout.network:
        return [f"this network is {type(network).__name__}"]
    reasons = []
    if getattr(network, "skip", None) is not None:
        reasons.append("this network has global_skip=true")
    if layout.network is EDSR and network.num_channels != 3:
        reasons.append(f"this network has num_channels={network.num_channels}, not 3")
    return reasons


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-6)


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def listing(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Lines "title: name text, …" of the groups that are not empty.

    Names that differ in their first number and share a text share an entry: blocks.{0-15}.conv1.weight 64x64x3x3.
    """
    lines = ""
    for title, texts in groups.items():
        numbers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for name, text in texts.items():
            before, number, after = re.fullmatch(r"(.*?)(\.\d+\.|$)(.*)", name).groups()
            numbers[before, after, text].extend([int(number.strip("."))] if number else [])
        entries = [
            f"{before}{f'.{numbered(found)}.' if found else ''}{after} {text}"
            for (before, after, text), found in numbers.items()
        ]
        if entries:
            lines += f"\n  {title}: {', '.join(entries)}"
    return lines


def numbered(numbers: list[int]) -> str:
    """[3] -> 3; [0, 1, 2, 5] -> {0-2,5}."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
