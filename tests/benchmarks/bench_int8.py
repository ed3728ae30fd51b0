"""int8 against float32 for an input of 480x270 at x2, on one thread: python tests/benchmarks/bench_int8.py.

For each network: its fast form in float32; onnxruntime with statically quantized weights and activations; and torch's
quantized convolutions (oneDNN) alone, without the layers between them, against those of the fast form in float32.
Least processor time of four rounds. The scales are arbitrary: only speed is measured, no loss.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.checkpoints.checkpoint import Trained
from sr_lightning.export.writers import write_onnx
from sr_lightning.inference import FastInference
from sr_lightning.networks import EDSR, ESPCN, FSRCNN
from sr_lightning.utils.malloc import keep_freed_memory

NETWORKS = {
    "ESPCN": lambda: ESPCN(scale=2, global_skip=True),
    "FSRCNN": lambda: FSRCNN(scale=2, global_skip=True),
    "EDSR-baseline": lambda: EDSR(scale=2),
}


def seconds(*functions: Callable[[], object]) -> list[float]:
    times = [float("inf")] * len(functions)
    for _ in range(4):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            times[i] = min(times[i], time.process_time() - start)
    return times


class Calibration(CalibrationDataReader):
    def __init__(self, lr: Tensor) -> None:
        self.inputs = iter([{"lr": lr[..., :48, :48].numpy()}])

    def get_next(self) -> dict | None:
        return next(self.inputs, None)


def by_onnxruntime(network: nn.Module, lr: Tensor) -> Callable[[], object]:
    with tempfile.TemporaryDirectory() as folder:
        exact, folded, quantized = (Path(folder, f"{name}.onnx") for name in ("exact", "folded", "quantized"))
        write_onnx(Trained(network, "", 0, {"model": {"network": {}}, "protocol": {}}), exact)
        quant_pre_process(exact, folded, skip_symbolic_shape=True)
        quantize_static(folded, quantized, Calibration(lr), per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(quantized, options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"lr": lr.numpy()})


def convolutions(form: nn.Module, lr: Tensor) -> tuple[float, float]:
    """Seconds of all convolutions of whole images in float32 and in int8."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0])))
        for module in form.modules()
        if getattr(module, "weight", None) is not None and module.weight.ndim == 4
    ]
    form(lr)
    for hook in hooks:
        hook.remove()
    totals = [0.0, 0.0]
    for module, x in calls:
        if x.shape[-2:] != lr.shape[-2:]:
            continue  # the border of a folded upsampler
        outputs = len(module.weight)
        x8 = torch.quantize_per_tensor(x.contiguous(memory_format=torch.channels_last), 0.01, 0, torch.quint8)
        w8 = torch.quantize_per_channel(
            module.weight, torch.full((outputs,), 0.002), torch.zeros(outputs, dtype=torch.long), 0, torch.qint8
        )
        packed = torch.ops.quantized.conv2d_prepack(w8, module.bias, [1, 1], list(module.padding), [1, 1], 1)
        exact, quantized = seconds(
            lambda module=module, x=x: module(x),
            lambda x8=x8, packed=packed: torch.ops.quantized.conv2d(x8, packed, 0.01, 0),
        )
        totals[0] += exact
        totals[1] += quantized
    return totals[0], totals[1]


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    torch.backends.quantized.engine = "onednn"
    for name, build in NETWORKS.items():
        network = build().eval()
        lr = torch.rand(1, network.num_channels, 270, 480)
        form = FastInference(network, precision="float32")
        exact, quantized = seconds(lambda form=form, lr=lr: form(lr), by_onnxruntime(network, lr))
        conv, conv8 = convolutions(form, lr)
        print(
            f"{name}: onnxruntime int8 {exact / quantized:.2f}x, convolutions of torch in int8 {conv / conv8:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
