"""Processor cores that this process may use, and torch's threads on them."""

import os
from pathlib import Path

SHARE = "SR_LIGHTNING_CORES"  # in a cell's environment: its share of the cores


def usable_cores(system: str | Path = "/") -> int:
    """Count the cores that this process may use: by affinity, by the quota of its container, as its share in a sweep.

    Args:
        system: Root of the file system, with proc/ and sys/ on Linux.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(SHARE, "")
    return max(1, min([cores, *map(int, cpu_quotas(Path(system))), *([int(share)] if share.isdecimal() else [])]))


def cpu_quotas(system: Path) -> list[float]:
    """List the quotas in cores of the control groups (version 1 and 2) around this process; empty without limits."""
    quotas = []
    listed = system / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container, the path may be that of the host
            if root not in (folder, *folder.parents):
                break
            quotas += _quota(folder)
    return quotas


def _quota(group: Path) -> list[float]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return [] if quota in ("max", "-1") else [int(quota) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def bound_spinning() -> None:
    """Bound the time that OpenMP's waiting threads spin; to be called before torch is imported.

    On a machine that other processes keep busy, threads that spin for their default time make steps ten times as long.
    With this bound, twice; on an idle machine it costs nothing, while waiting passively does
    (tests/benchmarks/bench_threads.py). A policy set in the environment is kept.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "20000"


def limit_threads() -> int:
    """Let torch use no more threads than there are usable cores, unless OMP_NUM_THREADS is set.

    Returns:
        The number of threads.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()
