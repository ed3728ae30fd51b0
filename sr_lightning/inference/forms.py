"""Forms of a network for inference: precisions, memory formats and libraries, of which the fastest is chosen."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Form(nn.Module):
    """A network in one precision and memory format.

    Args:
        network: On its device, in evaluation mode.
        name: In the table of times.
        precision: "float32", "bfloat16" or "float16".
        memory_format: Of the input.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        precision: str = "float32",
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.network, self.name, self.precision, self.memory_format = network, name, precision, memory_format

    def forward(self, lr: Tensor) -> Tensor:
        with self._computing(lr.device.type):
            return self.network(lr.contiguous(memory_format=self.memory_format)).float()

    def _computing(self, device_type: str) -> AbstractContextManager:
        if self.precision != "float32":
            return torch.autocast(device_type, getattr(torch, self.precision))
        if device_type == "cuda":  # convolutions would use TF32 otherwise
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()


def possible_forms(network: nn.Module, precision: str, num_channels: int, scale: int) -> list[Form]:
    """List the forms of a fused network that a precision allows; the first one is always possible.

    Args:
        network: On its device, in evaluation mode.
        precision: As for `FastInference`.
        num_channels: 1 or 3.
        scale: The factor.
    """
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    network = network.to(memory_format=torch.channels_last)
    if precision not in ("auto", "float32"):
        return [Form(network, precision, precision)]
    exact = Form(network, "float32")
    forms = [exact]
    if device.type == "cpu" and has_nnpack():
        form = Form(copy.deepcopy(network), "float32 by NNPACK", memory_format=torch.contiguous_format)
        forms += [form] if _use_nnpack(form.network) else []
    for lower in lower_precisions(device.type) if precision == "auto" else ():
        forms += accurate_forms(exact, lower, num_channels, scale)
    return forms


@torch.inference_mode()
def accurate_forms(exact: Form, precision: str, num_channels: int, scale: int) -> list[Form]:
    """Return the form in a lower precision that keeps the error budget on a smooth image; empty if none does."""
    device = next(tensor.device for tensor in exact.network.parameters())
    lr = torch.linspace(0, 1, 32 * 32, device=device).view(1, 1, 32, 32).repeat(1, num_channels, 1, 1)
    form = Form(copy.deepcopy(exact.network), precision, precision)
    for layer in (None, "tail", "head"):
        if layer is not None and hasattr(form.network, layer):
            setattr(form.network, layer, _InFloat32(getattr(form.network, layer)))
            form.name += f", {layer} in float32"
        if (form(lr) - exact(lr)).square().mean() < mse_budget(scale):
            return [form]
    return []


class _InFloat32(nn.Module):
    """A layer computed in float32 inside a network in bfloat16."""

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
