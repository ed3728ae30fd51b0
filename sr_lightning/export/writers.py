"""Writers of each format, and the files as they compute, by the programs that use them."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_lightning import __version__
from sr_lightning.checkpoints.checkpoint import Trained
from sr_lightning.checkpoints.interop import load_weights, save_weights
from sr_lightning.export import GRAPHS
from sr_lightning.export.converted import Converted
from sr_lightning.inference import fuse_for_inference
from sr_lightning.metrics.protocol import Protocol
from sr_lightning.networks.layers import FoldedUpsampler

METADATA = "sr_lightning.json"  # extra file inside a torch.export file

Run = Callable[[Tensor], Tensor]  # lr -> sr, as a file computes it


def write(trained: Trained, to: str, path: Path, layout: str, *, rgb: bool, half: bool) -> Run:
    """Write a network or its weights in a format.

    Returns:
        The file as it computes.
    """
    if to not in GRAPHS:
        return write_weights(trained, path, layout, half)
    if rgb or half:
        network = copy.deepcopy(fused(trained.network))
        trained = replace(trained, network=Converted(network, rgb=rgb, half=half and to != "ncnn"))
    if to == "ncnn":
        return write_ncnn(trained, path, half)
    return write_onnx(trained, path) if to == "onnx" else write_torch_export(trained, path)


def write_onnx(trained: Trained, path: Path) -> Run:
    """Write an ONNX file, weights included.

    Returns:
        The file, run by onnxruntime on the CPU.
    """
    import onnxruntime

    with quiet():
        program = torch.onnx.export(
            fused(trained.network),
            (example(trained.network),),
            dynamo=True,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # source positions with this machine's paths
    program.model.metadata_props.update(metadata(trained))
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    dtype = dtype_of(trained.network)
    return lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.to(dtype).numpy()})[0]).float()


def write_torch_export(trained: Trained, path: Path) -> Run:
    """Write a program for torch.export.load, with JSON metadata in its extra file METADATA.

    Returns:
        The loaded program.
    """
    sizes = {i: torch.export.Dim(name, min=1) for i, name in ((0, "batch"), (2, "height"), (3, "width"))}
    with quiet():
        network, lr = unfolded(fused(trained.network)), example(trained.network)
        program = torch.export.export(network, (lr,), dynamic_shapes=(sizes,))
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # this machine's paths
        torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata(trained), indent=1)})
        loaded, dtype = torch.export.load(path).module(), dtype_of(network)
    return lambda lr: loaded(lr.to(dtype)).float()


def write_ncnn(trained: Trained, path: Path, half: bool = False) -> Run:
    """Write NAME.param and NAME.bin; `half` stores the weights in float16.

    Returns:
        The files, run by ncnn.
    """
    from sr_lightning.export.ncnn_files import convert

    with quiet():
        return convert(unfolded(fused(trained.network)), path, half)


def write_weights(trained: Trained, path: Path, layout: str, half: bool = False) -> Run:
    """Write the weights, with `half` in float16: safetensors, or a torch file if the suffix is .pth or .pt.

    Returns:
        The network with the weights read back from the file.
    """
    network = copy.deepcopy(trained.network)
    save_weights(network.half() if half else network, path, layout, metadata=metadata(trained))
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    load_weights(network, path)
    return network


def fused(network: nn.Module) -> nn.Module:
    """Return the fused network, without gradients."""
    return fuse_for_inference(network).requires_grad_(False)


def unfolded(network: nn.Module) -> nn.Module:
    """Replace folded upsamplers by their layers, in place: their slices want images of at least four pixels a side."""
    for name, module in list(network.named_modules()):
        if isinstance(module, FoldedUpsampler):
            network.set_submodule(name, module.layers)
    return network


def dtype_of(network: nn.Module) -> torch.dtype:
    """Return the type of a network's images."""
    return getattr(network, "dtype", torch.float32)


def example(network: nn.Module) -> Tensor:
    """Return an image to trace with, (2, C, 20, 24): tracing would treat equal sizes, and sizes of 1, as constants."""
    return torch.rand(2, network.num_channels, 20, 24, dtype=dtype_of(network))


def metadata(trained: Trained) -> dict[str, str]:
    """Describe the network, for storage in the file."""
    network = trained.network
    luma = (
        "BT.601 luma, black 16/255 and white 235/255: (65.481 R + 128.553 G + 24.966 B + 16) / 255 of RGB in [0, 1]; "
        "upscale chroma bicubically"
    )
    protocol = {key: value for key, value in trained.config["protocol"].items() if key != "_target_"}
    return {
        "sr_lightning": __version__,
        "torch": torch.__version__,
        "name": trained.name,
        "step": "unknown" if trained.step is None else str(trained.step),
        "scale": str(network.scale),
        "num_channels": str(network.num_channels),
        "receptive_radius": "whole image" if network.receptive_radius is None else str(network.receptive_radius),
        "images": f"lr (N, {network.num_channels}, h, w) -> sr (N, {network.num_channels}, {network.scale}h, "
        f"{network.scale}w), {str(dtype_of(network)).removeprefix('torch.')} in [0, 1], sr not clamped; "
        f"{'RGB' if network.num_channels == 3 else luma}",
        "network": json.dumps(trained.config["model"]["network"]),
        "protocol": Protocol(**protocol).name,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines and warnings of torch's exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
