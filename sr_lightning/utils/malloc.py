"""Settings of glibc's malloc."""

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system; return True if that worked.

    Each training step, and each image or tile, frees and allocates the same megabytes. If they are returned, page
    faults cost a CPU a fifth of SRCNN's training step and up to half of the time for an image (tests/benchmarks:
    bench_training.py memory, bench_inference.py). The process keeps its peak memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # a C library other than glibc
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))
