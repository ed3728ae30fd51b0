"""What the C library does with memory that is freed."""

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back; True where it did.

    Each training step, and each image or tile, frees and takes the same megabytes. Given back, they are new to the
    process each time, and the page faults cost a CPU a fifth of SRCNN's training step and up to half of the time for an
    image (tests/benchmarks: bench_training.py memory, bench_inference.py). The process keeps the most it ever needed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # a C library other than glibc
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))
