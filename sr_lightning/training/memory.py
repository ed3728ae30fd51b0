"""Message of a run whose memory does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from sr_lightning.errors import InputError
from sr_lightning.modules import SRModule
from sr_lightning.training.choices import device_of, processes_of
from sr_lightning.upscale.tiles import out_of_memory

USABLE = 0.9  # of a GPU's memory: the estimate is without the workspace of libraries


@contextmanager
def named_shortage(cfg: DictConfig, module: SRModule) -> Iterator[None]:
    """Replace torch's error about memory that has run out.

    Raises:
        InputError: Names what the memory was for, and what would fit.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    # Not in the except block: while an exception is handled, its traceback keeps tensors alive.
    raise InputError(
        shortage(cfg) if module.training else "not enough memory to validate whole images: use smaller ones"
    )


def shortage(cfg: DictConfig) -> str:
    """Describe the steps of a run for which the memory does not suffice, and what would fit."""
    device, processes = device_of(cfg), processes_of(cfg)
    count, side = cfg.data.batch_size // processes, cfg.data.patch_size
    needed = bytes_of_step(cfg, count)
    text = f"not enough memory on {device} for steps of {count} patches of {side}x{side} LR pixels"
    text += f", about {needed / 1e9:.2g} GB"
    if device.type != "cuda":
        return f"{text}: choose a smaller data.batch_size or data.patch_size"
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # reserved by this process
    fitting = count // 2
    if needed > USABLE * free and count > 1:
        of_patch = (needed - bytes_of_step(cfg, 1)) / (count - 1)
        fitting = int(count - (needed - USABLE * free) / of_patch)
    fits = f"data.batch_size={fitting * processes} should fit, or choose" if fitting > 0 else "choose"
    return f"{text} of {free / 1e9:.2g} GB: {fits} a smaller data.patch_size"


def bytes_of_step(cfg: DictConfig, batch_size: int) -> int:
    """Estimate the memory of a training step, on tensors that have shapes but no data."""
    from sr_lightning.training.dry_run import metered, module_without_downloads, one_step

    precision = (cfg.get("chosen") or cfg.trainer)["precision"]  # not chosen yet if choosing needed too much
    with torch.device("meta"):
        module = module_without_downloads(cfg)
    return metered(lambda: one_step(module, batch_size, cfg.data.patch_size, str(precision))).peak
