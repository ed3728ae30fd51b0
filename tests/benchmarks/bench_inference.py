"""Time per image: python tests/benchmarks/bench_inference.py [speed] [psnr] [shuffle] [options].

speed    1920x1080 output, against the network as trained (eager float32, memory contiguous): the fast form, with
         and without keeping freed memory, and onnxruntime
psnr     difference of the fast forms on Set5 (under SR_DATA_ROOT), for the checkpoints of --ckpt; in bfloat16 also on a
         processor without it, which computes it as exactly, but slowly
shuffle  F.pixel_shuffle against the one in networks/layers.py
All on one thread, in interleaved rounds; processor time, which other users of a machine disturb least.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.checkpoints.checkpoint import Trained, load_network
from sr_lightning.export import ONNX_PACKAGES
from sr_lightning.export.writers import write_onnx
from sr_lightning.inference import FastInference, fuse_for_inference, to_channels
from sr_lightning.inference.forms import possible_forms
from sr_lightning.networks import EDSR, ESPCN, FSRCNN
from sr_lightning.networks.layers import pixel_shuffle
from sr_lightning.utils.malloc import keep_freed_memory

HEIGHT, WIDTH = 1080, 1920  # of the output
# How it is computed, and whether in the process that keeps freed memory
CANDIDATES = {
    "eager float32": ("eager", False),
    "float32 fast form": ("float32", False),
    "float32 fast form, memory kept": ("float32", True),
    "fast form": ("auto", False),
    "fast form, memory kept": ("auto", True),
    "onnxruntime float32": ("onnxruntime", False),
    "torch.compile of the fast form, memory kept": ("compile", True),
    "OpenCV dnn_superres": ("opencv", False),
}


def untrained(network: nn.Module, last: nn.Module, spread: float) -> nn.Module:
    """With as much detail in the output as a trained one's, which decides where bfloat16 would lose levels."""
    lr = torch.rand(1, network.num_channels, 48, 48)
    with torch.no_grad():
        network.eval()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nothing = network(lr)
        nn.init.normal_(last.weight, std=0.01)
        last.weight *= spread / (network(lr) - nothing).std()
    return network


def espcn(scale: int) -> nn.Module:
    network = ESPCN(scale=scale, global_skip=True)
    return untrained(network, network.convs[-1], 0.02)


def fsrcnn(scale: int) -> nn.Module:
    network = FSRCNN(scale=scale, global_skip=True)
    return untrained(network, network.enlarge, 0.02)


def edsr_baseline(scale: int) -> nn.Module:
    network = EDSR(scale=scale)
    return untrained(network, network.tail, 0.25)


BUILDERS = {"ESPCN": espcn, "FSRCNN": fsrcnn, "EDSR-baseline": edsr_baseline}


def network_of(case: str) -> nn.Module:
    """Of a checkpoint, or untrained by its name and scale, such as "ESPCN x2"."""
    if Path(case).exists():
        return load_network(case).network
    torch.manual_seed(0)
    name, scale = case.split(" x")
    return BUILDERS[name](int(scale))


def image_for(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, network.num_channels, HEIGHT // network.scale, WIDTH // network.scale, generator=generator)


@cache
def prepared(case: str, how: str, pb: str | None) -> Callable[[], Tensor]:
    """The function that upscales the image."""
    network = network_of(case)
    lr = image_for(network)
    if how == "eager":
        return lambda: network(lr)
    if how in ("float32", "auto"):
        form = FastInference(network, precision=how)
        return lambda: form(lr)
    if how == "compile":
        form = FastInference(network)
        form.form = torch.compile(form.form)
        return lambda: form(lr)
    if how == "onnxruntime":
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            write_onnx(Trained(network, case, 0, {"model": {"network": {}}, "protocol": {}}), Path(folder, "a.onnx"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(Path(folder, "a.onnx"), options, ["CPUExecutionProvider"])
        return lambda: torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0])
    import cv2

    cv2.setNumThreads(1)
    super_resolution = cv2.dnn_superres.DnnSuperResImpl_create()
    super_resolution.readModel(pb)
    super_resolution.setModel(Path(pb).stem.split("_")[0].lower(), network.scale)
    picture = (lr[0].permute(1, 2, 0) * 255).byte().expand(-1, -1, 3).contiguous().numpy()  # colour and 8 bits
    return lambda: torch.from_numpy(super_resolution.upsample(picture))


@torch.inference_mode()
def enlarge(case: str, how: str, pb: str | None) -> float:
    """Seconds of the processor for one image."""
    run = prepared(case, how, pb)
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.inference_mode()
def difference(case: str, how: str, pb: str | None) -> float:
    """The largest difference from eager float32; also warms up."""
    return (prepared(case, how, pb)() - prepared(case, "eager", None)()).abs().max().item()


def start(keep: bool) -> None:
    torch.set_num_threads(1)
    if keep and not keep_freed_memory():
        print("(this C library does not keep freed memory)")


def speed(cases: list[str], pbs: list[str], compiled: bool) -> None:
    of_case = {case: pb for case in cases for pb in pbs if Path(pb).stem.lower() == case.lower().replace(" ", "_")}
    left_out = set() if compiled else {"compile"}
    if missing := [package for package in ONNX_PACKAGES if find_spec(package) is None]:
        print(f"onnxruntime is left out: not installed: {', '.join(missing)}")
        left_out.add("onnxruntime")
    if not of_case:
        print("OpenCV is left out: --pb ESPCN_x2.pb FSRCNN_x4.pb … are the files published for dnn_superres")
    for case in cases:
        names = [
            name
            for name, (how, _) in CANDIDATES.items()
            if how not in left_out and (how != "opencv" or case in of_case)
        ]
        print(f"\n{case}, {WIDTH}x{HEIGHT}")
        context = get_context("spawn")
        with (
            ProcessPoolExecutor(1, context, start, (False,)) as plain,
            ProcessPoolExecutor(1, context, start, (True,)) as kept,
        ):

            def call(function: Callable[..., float], name: str, case: str = case, plain=plain, kept=kept) -> float:
                how, keep = CANDIDATES[name]
                return (kept if keep else plain).submit(function, case, how, of_case.get(case)).result()

            off = {name: None if name.startswith("OpenCV") else call(difference, name) for name in names}
            if "OpenCV dnn_superres" in off:
                call(enlarge, "OpenCV dnn_superres")
            first = call(enlarge, names[0])
            rounds = [{name: call(enlarge, name) for name in names} for _ in range(3 if first > 2 else 9)]
        for name in names:
            ratio = statistics.median(times[names[0]] / times[name] for times in rounds)
            milliseconds = 1000 * statistics.median(times[name] for times in rounds)
            error = "" if off[name] is None else f"  off by {off[name]:.0e}"
            print(f"  {name:44} {ratio:5.2f}x  {milliseconds:7.0f} ms{error}", flush=True)


@torch.inference_mode()
def psnr(cases: list[str]) -> None:
    from sr_lightning.data.sources import benchmark_set
    from sr_lightning.degradations import Bicubic
    from sr_lightning.evaluation.scoring import load_sample
    from sr_lightning.metrics.protocol import Protocol, score

    protocol = Protocol()
    print(f"\nSet5, {protocol.name}")
    for case in cases:
        network = load_network(case).network
        scale = network.scale
        forms = {
            "float32": FastInference(network, precision="float32"),
            "bfloat16": FastInference(network, precision="bfloat16"),
        }
        fused = fuse_for_inference(network)
        with patch("sr_lightning.inference.forms.computes_in_bfloat16", return_value=True):
            possible = possible_forms(fused, torch.device("cpu"), "auto", network.num_channels, scale)
        forms |= {f"auto: {form.name}": form for form in possible if form.precision == "bfloat16"}
        changes: dict[str, list[float]] = {name: [] for name in forms}
        off = dict.fromkeys(forms, 0.0)
        exact = []
        for pair in benchmark_set(os.environ.get("SR_DATA_ROOT", "data"), "Set5", scale):
            sample = load_sample(pair, scale, protocol, Bicubic())
            lr = to_channels(sample.lr, network.num_channels)
            expected = network(lr)
            exact.append(score(expected, sample.hr, scale, protocol)["psnr"].item())
            for name, form in forms.items():
                sr = form(lr)
                off[name] = max(off[name], (sr - expected).abs().max().item())
                changes[name].append(score(sr, sample.hr, scale, protocol)["psnr"].item() - exact[-1])
        print(f"  {case}: {statistics.mean(exact):.3f} dB in eager float32")
        for name, change in changes.items():
            print(f"    {name:36} {statistics.mean(change):+.5f} dB, off by at most {off[name]:.0e}", flush=True)


@torch.inference_mode()
def shuffle() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print("\ntimes F.pixel_shuffle (of the other)")
    for channels, scale in ((1, 2), (1, 3), (1, 4), (3, 2), (3, 4), (64, 2)):
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.rand(1, channels * scale**2, HEIGHT // scale, WIDTH // scale, dtype=dtype)
                x = x.contiguous(memory_format=layout)
                times = {}
                for function in (F.pixel_shuffle, pixel_shuffle):
                    function(x, scale)
                    times[function] = []
                for _ in range(5 if channels > 3 else 15):
                    for function, seconds in times.items():
                        begin = time.process_time()
                        function(x, scale)
                        seconds.append(time.process_time() - begin)
                theirs, ours = (statistics.median(seconds) for seconds in times.values())
                names = f"{str(dtype)[6:]}, {'channels last' if layout == torch.channels_last else 'contiguous'}"
                print(f"  {channels} channels x{scale}, {names}: {theirs / ours:.2f}x  ({1000 * theirs:.1f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="speed, psnr, shuffle (default: speed, shuffle)")
    parser.add_argument("--case", nargs="+", help='such as "ESPCN x2" "EDSR-baseline x4" (default: all at x2 and x4)')
    parser.add_argument("--ckpt", nargs="+", default=[], help="checkpoints for psnr; their speed, too, is measured")
    parser.add_argument("--pb", nargs="+", default=[], help="OpenCV's published files: ESPCN_x2.pb FSRCNN_x4.pb …")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: up to a minute for each case")
    options = parser.parse_args()
    parts = options.parts or ["speed", "shuffle"]
    if "speed" in parts:
        cases = options.ckpt or options.case or [f"{name} x{scale}" for name in BUILDERS for scale in (2, 4)]
        speed(cases, options.pb, options.compile)
    if "psnr" in parts:
        psnr(options.ckpt)
    if "shuffle" in parts:
        shuffle()


if __name__ == "__main__":
    main()
