"""Time of a training step on many GPUs, from a model, and the model checked on processors (docs/scale.md).

  python tests/benchmarks/bench_scale.py            the tables for 8, 4 x 8 and 32 x 8 GPUs
  python tests/benchmarks/bench_scale.py check      steps of two processes, and the all-reduce of two and four

The model: a process computes its part of the batch, then an all-reduce sums the gradients. Its time is that of NCCL's
own cost model, the least over algorithms and protocols of latency + bytes / bandwidth. With overlap, DDP's buckets are
sent during the backward pass, in the order in which their gradients are complete. Waiting for the slowest process,
loading data, validation and saving are not in it.
"""

import itertools
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sr_lightning.training.dry_run import metered, module_without_downloads, one_step
from tests.helpers import compose

# Milliseconds of a step on an H100, 16 patches of 48 x 48 LR, bfloat16, measured: eager, and as one CUDA graph. SwinIR
# was not measured: its operations are assumed to take as long as RCAN's.
STEPS = {"edsr_baseline x2": (9.5, 3.83), "rcan x4": (264.0, 62.0), "swinir_light x2": None}
SHORTEST = 0.6e-6  # seconds of an operation in a graph: of ESPCN, the smallest network measured
BATCH, SIDE = 16, 48
CLUSTERS = ((1, 8), (4, 8), (32, 8))  # nodes, GPUs of each

# Seconds, and bytes in a second. Base latency, latency of a step over NVLink, of one over the network, share of the
# bandwidth: src/graph/tuning.cc of NCCL, commit b647562. LL sends half flags.
PROTOCOLS = {
    ("ring", "LL"): (6.6e-6, 0.6e-6, 2.7e-6, 1 / 4),
    ("ring", "LL128"): (14e-6, 1.9e-6, 4.0e-6, 0.92),
    ("ring", "Simple"): (8.4e-6, 3.4e-6, 14e-6, 1.0),
    ("tree", "LL"): (6.8e-6, 0.6e-6, 5.0e-6, 0.92 / 3.8),
    ("tree", "LL128"): (14e-6, 1.25e-6, 8.5e-6, 0.92 * 120 / 128),
    ("tree", "Simple"): (0.0, 28e-6, 28e-6, 0.92),
}
OVERHEAD = {"LL": 1e-6, "LL128": 1e-6, "Simple": 3e-6}  # of each step of a ring over several nodes
NVLINK = 370e9  # of the 450e9 of a direction, by NCCL's authors (NVIDIA/nccl-tests, issue 212)
NETWORKS = {  # bytes in a second of a node, and seconds that a message takes besides
    "InfiniBand, 8 x 400 Gb/s": (8 * 50e9, 0.0),
    "Ethernet, 100 Gb/s": (12.5e9, 25e-6),  # TCP; its latency is assumed
}
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # of DDP


def all_reduce(size: float, nodes: int, gpus: int, network: str) -> float:
    """Seconds of an all-reduce of `size` bytes, by NCCL's cost model."""
    number, (node_bandwidth, extra) = nodes * gpus, NETWORKS[network]
    times = []
    for (algorithm, protocol), (base, inside, between, share) in PROTOCOLS.items():
        bandwidth = share * (NVLINK if nodes == 1 else min(NVLINK, node_bandwidth))
        if algorithm == "ring":
            steps, outside = 2 * (number - 1), 2 * nodes if nodes > 1 else 0
            inside = max(inside, OVERHEAD[protocol]) if nodes > 1 else inside
            latency, bandwidth = (steps - outside) * inside + outside * (between + extra), bandwidth * number / steps
        else:
            levels = (nodes - 1).bit_length()
            latency, bandwidth = 2 * ((gpus - 1) * inside + levels * (between + extra)), bandwidth / 2
        times.append(base + latency + size / bandwidth)
    return min(times)


def overlapped(compute: float, size: float, nodes: int, gpus: int, network: str) -> float:
    """Seconds of a step, two thirds of it the backward pass, during which each complete bucket is sent."""
    sent, end = 0.0, 0.0
    while sent < size:
        bucket = min(FIRST_BUCKET if sent == 0 else BUCKET, size - sent)
        sent += bucket
        end = max(end, compute * (1 / 3 + 2 / 3 * sent / size)) + all_reduce(bucket, nodes, gpus, network)
    return max(compute, end)


def build(name: str) -> torch.nn.Module:
    """The network of a name such as "rcan x4"."""
    model, scale = name.split()
    network = compose("data=t91", f"model={model}", f"scale={scale}").model.network
    return instantiate(network, _convert_="all")


def gradient_bytes(name: str) -> int:
    """Bytes of the gradients of a network, in float32."""
    with torch.device("meta"):
        return sum(4 * parameter.numel() for parameter in build(name).parameters())


def operations(name: str) -> int:
    """Torch operations of a step."""
    model, scale = name.split()
    with torch.device("meta"):
        module = module_without_downloads(compose("data=t91", f"model={model}", f"scale={scale}"))
        module.configure_optimizers()
    return metered(lambda: one_step(module, BATCH, SIDE, "32-true")).operations


def tables() -> None:
    sizes = {name: gradient_bytes(name) for name in STEPS}
    calls = {name: operations(name) for name in STEPS}
    of_rcan = [milliseconds / calls["rcan x4"] for milliseconds in STEPS["rcan x4"]]
    steps = {name: known or tuple(calls[name] * each for each in of_rcan) for name, known in STEPS.items()}
    print(f"One GPU, {BATCH} patches:\n\n| | gradients | operations | eager | captured |\n|---|---|---|---|---|")
    for name, (eager, captured) in steps.items():
        print(f"| {name} | {sizes[name] / 1e6:.1f} MB | {calls[name]:,} | {eager:.1f} ms | {captured:.1f} ms |")

    for network in NETWORKS:
        print(
            f"\n{BATCH} patches on each GPU, {network}: milliseconds, and patches in a second over those of one GPU\n"
        )
        print("| | GPUs | batch | all-reduce | eager, overlapped | eager | captured | gain | gain / GPUs |")
        print("|---|---|---|---|---|---|---|---|---|")
        for (name, (eager, captured)), (nodes, gpus) in itertools.product(steps.items(), CLUSTERS):
            size, place = sizes[name], (nodes, gpus, network)
            reduce, number = all_reduce(size, *place), nodes * gpus
            hidden = 1e3 * overlapped(eager / 1e3, size, *place)
            gain = number * captured / (captured + 1e3 * reduce)
            cells = [f"{1e3 * reduce:.2f}", f"{hidden:.1f}", f"{eager + 1e3 * reduce:.1f}"]
            cells += [f"{captured + 1e3 * reduce:.2f}", f"{gain:.0f}", f"{gain / number:.0%}"]
            print(f"| {name} | {number} | {BATCH * number:,} | {' | '.join(cells)} |")

    print(f"\n{BATCH} patches over all GPUs, captured: gain over one GPU, at best\n")
    print("| GPUs | 2 | 4 | 8 | 16 (2 nodes) |\n|---|---|---|---|---|")
    for name, (_, captured) in steps.items():
        gains = []
        for nodes, gpus in ((1, 2), (1, 4), (1, 8), (2, 8)):
            compute = max(captured / (nodes * gpus), 1e3 * calls[name] * SHORTEST)
            gains.append(captured / (compute + 1e3 * all_reduce(sizes[name], nodes, gpus, "InfiniBand, 8 x 400 Gb/s")))
        print(f"| {name} | {' | '.join(f'{gain:.1f}' for gain in gains)} |")

    print("\nMinutes for 16 million patches (a million steps of 16), captured, InfiniBand\n")
    print("| GPUs | 1 | 8 | 32 | 256 |\n|---|---|---|---|---|")
    for name, (_, captured) in steps.items():
        minutes = []
        for nodes, gpus in ((1, 1), *CLUSTERS):
            reduce = 0 if gpus == 1 else 1e3 * all_reduce(sizes[name], nodes, gpus, "InfiniBand, 8 x 400 Gb/s")
            minutes.append((captured + reduce) * 1e6 / (nodes * gpus) / 6e4)
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in minutes)} |")


CHECKED = {"edsr_baseline x2": 4, "swinir_light x2": 4, "rcan x4": 1}  # patches of 8 x 8 in each process
FITTED = [2**power for power in range(14, 25, 2)]  # bytes


def times_of(function, rounds: int) -> list[float]:
    """Seconds from a barrier until the slowest process has returned from a call, `rounds` times."""
    times = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    slowest = torch.tensor(times)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.tolist()


def process(rank: int, number: int, gradients: dict[str, int], queue) -> None:
    """Measure, in one of `number` processes; the first one puts what it has measured into the queue."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29_600 + number), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=number)
    found: dict = {"all-reduce": {}, "steps": {}}
    for size in [*FITTED, *gradients.values()]:
        tensor = torch.ones(size // 4)
        dist.all_reduce(tensor)
        times = times_of(lambda tensor=tensor: dist.all_reduce(tensor), 21 if size < 2**24 else 5)
        found["all-reduce"][size] = statistics.median(times)
    for name, patches in CHECKED.items() if number == 2 else ():
        network = DistributedDataParallel(build(name))
        optimizer = torch.optim.Adam(network.parameters())
        lr = torch.rand(patches, 3, 8, 8)

        def step(network=network, optimizer=optimizer, lr=lr, together=True):
            optimizer.zero_grad()
            if together:
                network(lr).abs().mean().backward()
            else:
                with network.no_sync():
                    network(lr).abs().mean().backward()
            optimizer.step()

        step()
        alone, both = [], []
        for _ in range(9):  # in turn, since the machine may be busy with something else
            alone += times_of(lambda step=step: step(together=False), 1)
            both += times_of(step, 1)
        found["steps"][name] = (gradients[name], statistics.median(alone), statistics.median(both))
    if rank == 0:
        queue.put(found)
    dist.destroy_process_group()


def check() -> None:
    import numpy as np

    context = torch.multiprocessing.get_context("spawn")
    gradients = {name: gradient_bytes(name) for name in CHECKED}
    for number in (2, 4):
        queue = context.SimpleQueue()
        processes = torch.multiprocessing.spawn(process, (number, gradients, queue), nprocs=number, join=False)
        found = queue.get()
        processes.join()
        measured = found["all-reduce"]
        x, y = np.array(FITTED, float), np.array([measured[size] for size in FITTED])
        (latency, per_byte), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(y)), rcond=None)
        print(
            f"\n{number} processes, gloo: all-reduce in {1e6 * latency:.0f} us + bytes / {1e-9 / per_byte:.2f} GB/s\n"
        )
        print("| bytes | predicted, ms | measured, ms |\n|---|---|---|")
        for size, seconds in measured.items():
            print(f"| {size:,} | {1e3 * (latency + per_byte * size):.2f} | {1e3 * seconds:.2f} |")
        if found["steps"]:
            print(
                "\n| step of two processes | without all-reduce, ms | predicted, ms | measured, ms |\n|---|---|---|---|"
            )
        for name, (size, alone, both) in found["steps"].items():
            print(
                f"| {name} | {1e3 * alone:.0f} | {1e3 * (alone + latency + per_byte * size):.0f} | {1e3 * both:.0f} |"
            )


if __name__ == "__main__":
    check() if sys.argv[1:] == ["check"] else tables()
