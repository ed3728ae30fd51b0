"""Training steps with one and all threads and with ways of waiting, on an idle and on a busy machine.

  python tests/benchmarks/bench_threads.py                  ESPCN and EDSR-baseline, idle and beside two busy processes
  python tests/benchmarks/bench_threads.py --steps 100      more steps

OpenMP's threads spin while they wait for one that has no core; GOMP_SPINCOUNT bounds how long. Each figure is the least
of several rounds, in milliseconds a step.
"""

import argparse
import os
import subprocess
import sys
import time

BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
VARIANTS = {
    "default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (1000, 10_000, 20_000, 100_000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def child(network: str, steps: int) -> None:
    """Print milliseconds per training step."""
    import torch

    from sr_lightning.networks import EDSR, ESPCN
    from sr_lightning.utils.malloc import keep_freed_memory

    keep_freed_memory()
    net = {"espcn": lambda: ESPCN(scale=2), "edsr": lambda: EDSR(scale=2, num_blocks=4)}[network]()
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    lr = torch.rand(16, net.num_channels, 24, 24).contiguous(memory_format=torch.channels_last)
    for step in range(steps + 3):
        if step == 3:
            start = time.perf_counter()
        optimizer.zero_grad()
        net(lr).abs().mean().backward()
        optimizer.step()
    print(1000 * (time.perf_counter() - start) / steps)


def measure(network: str, steps: int, environment: dict[str, str]) -> float:
    words = [sys.executable, __file__, "--child", network, "--steps", str(steps)]
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    return float(subprocess.run(words, env=plain | environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.steps)
        return
    for busy in (0, 2):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            for network in ("espcn", "edsr"):
                print(f"\n{network}, {busy} busy processes beside it, {os.cpu_count()} cores")
                rounds = [
                    {name: measure(network, options.steps, variables) for name, variables in VARIANTS.items()}
                    for _ in range(options.rounds)
                ]
                for name in VARIANTS:
                    print(f"  {name:24} {min(times[name] for times in rounds):8.1f} ms", flush=True)
        finally:
            for other in others:
                other.kill()


if __name__ == "__main__":
    main()
