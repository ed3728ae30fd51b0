"""Forms of a network for inference: precisions, memory formats and libraries, of which the fastest is chosen."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from sr_lightning.utils.exact_float32 import exact_float32

Builder = Callable[[nn.Module, str, str], "Form"]  # of a network, a name and a precision


class Form(nn.Module):
    """A network in one precision and memory format.

    Args:
        network: On its device, in evaluation mode.
        name: In the table of times.
        precision: "float32", "bfloat16" or "float16".
        memory_format: Of the input.
        autocast: Convert the weights each time they are used. False: the network's weights are in its precision.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        precision: str = "float32",
        memory_format: torch.memory_format = torch.channels_last,
        autocast: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.name, self.precision, self.memory_format = network, name, precision, memory_format
        self.autocast = autocast and precision != "float32"

    def forward(self, lr: Tensor) -> Tensor:
        with exact_float32() if lr.is_cuda else nullcontext(), self._autocast(lr.device.type):
            return self.network(lr.contiguous(memory_format=self.memory_format)).float()

    def _autocast(self, device_type: str) -> AbstractContextManager:
        return torch.autocast(device_type, getattr(torch, self.precision)) if self.autocast else nullcontext()


def possible_forms(
    network: nn.Module, device: torch.device, precision: str, num_channels: int, scale: int
) -> list[Form]:
    """List the forms of a fused network that a precision allows; the first one is always possible.

    Args:
        network: On the device, in evaluation mode.
        device: A CPU or a GPU.
        precision: As for `FastInference`.
        num_channels: 1 or 3.
        scale: The factor.
    """
    network = network.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        return gpu_forms(network, device, precision, num_channels, scale)
    if precision not in ("auto", "float32"):
        return [Form(network, precision, precision)]
    exact = Form(network, "float32")
    forms = [exact]
    if has_nnpack():
        form = Form(copy.deepcopy(network), "float32 by NNPACK", memory_format=torch.contiguous_format)
        forms += [form] if _use_nnpack(form.network) else []
    for lower in lower_precisions("cpu") if precision == "auto" else ():
        forms += accurate_forms(exact, device, lower, num_channels, scale)
    return forms


def gpu_forms(network: nn.Module, device: torch.device, precision: str, num_channels: int, scale: int) -> list[Form]:
    """List the forms of `possible_forms` on a GPU; of lower precisions only the first that is accurate."""
    build = partial(converted_form, lr=ramp(device, num_channels))
    if precision not in ("auto", "float32"):
        return [build(network, precision, precision)]
    exact = Form(network, "float32")
    planar = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    forms = [exact, Form(planar, "float32 contiguous", memory_format=torch.contiguous_format)]
    for lower in lower_precisions("cuda") if precision == "auto" else ():
        if accurate := accurate_forms(exact, device, lower, num_channels, scale, build):
            return forms + accurate
    return forms


@torch.inference_mode()
def accurate_forms(
    exact: Form, device: torch.device, precision: str, num_channels: int, scale: int, build: Builder = Form
) -> list[Form]:
    """Return the form in a lower precision that keeps the error budget on a smooth image; empty if none does."""
    lr = ramp(device, num_channels)
    network, name = copy.deepcopy(exact.network), precision
    for layer in (None, "tail", "head"):
        if layer is not None and hasattr(network, layer):
            setattr(network, layer, _InFloat32(getattr(network, layer)))
            name += f", {layer} in float32"
        form = build(network, name, precision)
        if (form(lr) - exact(lr)).square().mean() < mse_budget(scale) and (precision != "float16" or _fits(form, lr)):
            return [form]
    return []


def ramp(device: torch.device, num_channels: int) -> Tensor:
    """Return a smooth image of all levels, (1, num_channels, 32, 32)."""
    return torch.linspace(0, 1, 32 * 32, device=device).view(1, 1, 32, 32).repeat(1, num_channels, 1, 1)


def _fits(form: Form, lr: Tensor) -> bool:
    """Return True if the strongest contrasts do not overflow: black and white pixels at random, shaped as `lr`."""
    noise = torch.rand(lr.shape, generator=torch.Generator().manual_seed(0)).round().to(lr.device)
    return bool(form(noise).isfinite().all())


@torch.inference_mode()
def converted_form(network: nn.Module, name: str, precision: str, lr: Tensor) -> Form:
    """Return a form whose weights are converted once; by autocast where the network's own operations need it.

    Args:
        network: It is copied.
        name: In the table of times.
        precision: "bfloat16" or "float16".
        lr: An input to try.
    """
    converted = with_weights_in(copy.deepcopy(network), getattr(torch, precision))
    form = Form(converted, name, precision, autocast=False)
    try:
        form(lr)
    except RuntimeError:  # two operands of different precisions
        return Form(network, name, precision)
    return form


def with_weights_in(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of all layers in place, except those in float32; each layer then converts its input.

    Buffers stay, so that the network subtracts means, and adds its skip, in float32, as it does under autocast.
    """
    exact = {layer for outer in network.modules() if isinstance(outer, _InFloat32) for layer in outer.modules()}
    for layer in network.modules():
        parameters = list(layer.parameters(recurse=False))
        if parameters and layer not in exact:
            for parameter in parameters:
                parameter.data = parameter.data.to(dtype)
            layer.register_forward_pre_hook(partial(_convert_inputs, dtype))
    return network


def _convert_inputs(dtype: torch.dtype, layer: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


class _InFloat32(nn.Module):
    """A layer computed in float32 inside a network in a lower precision."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


class _Nnpack(nn.Module):
    """A 3x3 or 5x5 convolution by NNPACK, which torch itself uses only for batches of at least 16.

    Shapes: (N, C, h, w) -> (N, D, h, w), both contiguous.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.contiguous(), requires_grad=False), conv.bias
        self.padding = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        return torch._nnpack_spatial_convolution(x, self.weight, self.bias, padding=self.padding)


def _use_nnpack(network: nn.Module) -> bool:
    """Replace convolutions that NNPACK may compute faster: 3x3 or 5x5, input times output features at least 64 x 32.

    Others stay channels last, except those on the image, whose output is added to that of NNPACK's. (NNPACK and torch
    have separate threads that wait for each other: with several threads, a network of few layers may get slower.)

    Returns:
        True if any was replaced.
    """
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    chosen = [name for name, conv in convs.items() if _suits_nnpack(conv)]
    for name in chosen:
        network.set_submodule(name, _Nnpack(convs[name]))
    for conv in convs.values():
        if conv.in_channels <= 3:
            conv.to(memory_format=torch.contiguous_format)
    return bool(chosen)


def _suits_nnpack(conv: nn.Conv2d) -> bool:
    known = (conv.kernel_size, conv.padding) in (((3, 3), (1, 1)), ((5, 5), (2, 2)))
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    return known and plain and conv.in_channels * conv.out_channels >= 64 * 32


def mse_budget(scale: int) -> float:
    """Return the mean squared error, of values in [0, 1], that costs the best networks of a scale 0.01 dB on Set5.

    They reach 38.3, 34.8, 32.7 and 27.4 dB at x2, x3, x4 and x8; 0.01 dB is 1/430 of their own error.
    """
    best = {3: 34.8, 4: 32.7, 8: 27.4}.get(scale, 38.3)
    return 10 ** (-best / 10) / 430


def computes_in_bfloat16(device_type: str) -> bool:
    """Return True if a device, "cpu" or "cuda", has instructions for bfloat16, which may be faster than float32."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def lower_precisions(device_type: str) -> list[str]:
    """List the precisions below float32 that a device, "cpu" or "cuda", has instructions for."""
    return (["float16"] if device_type == "cuda" else []) + (["bfloat16"] if computes_in_bfloat16(device_type) else [])


def has_nnpack() -> bool:
    """Return True if torch has NNPACK, and the processor no vectors wider than AVX2, for which it is written."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.nnpack.is_available()


def records_graphs(device: torch.device) -> bool:
    """Return True if a device replays recorded programs: a GPU."""
    return device.type == "cuda"
