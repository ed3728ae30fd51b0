"""A run whose memory does not suffice names its batch, and one that fits."""

import re

import pytest
import torch

from sr_lightning.errors import InputError
from sr_lightning.modules import SRModule
from sr_lightning.training import dry_run, memory, train
from sr_lightning.training.memory import bytes_of_step, named_shortage, shortage
from tests.helpers import compose


@pytest.fixture
def cfg():
    return compose("model=espcn", "data.batch_size=64", "data.patch_size=48", "trainer=cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with a number of free bytes, a fifth of which this process has reserved."""

    def gpu(free: float) -> None:
        monkeypatch.setattr(memory, "device_of", lambda cfg: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(0.8 * free), int(2 * free)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(0.2 * free))

    return gpu


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_largest_batch_within_nine_tenths_of_the_memory_is_named(cfg, gpu, share):
    free = share * bytes_of_step(cfg, 64)
    gpu(free)
    fitting = int(re.search(r"data\.batch_size=(\d+) should fit", shortage(cfg))[1])
    assert bytes_of_step(cfg, fitting) <= 0.9 * free < bytes_of_step(cfg, fitting + 2)


def test_where_the_estimate_fits_but_the_step_does_not_half_the_batch_is_named(cfg, gpu):
    gpu(1e12)
    assert "64 patches of 48x48 LR pixels" in shortage(cfg) and "data.batch_size=32 should fit" in shortage(cfg)


def test_where_no_patch_fits_only_smaller_ones_are_named(cfg, gpu):
    gpu(1000)
    assert shortage(cfg).endswith(": choose a smaller data.patch_size")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_shortage_in_training_and_in_validation_is_named(cfg, error):
    module = SRModule(torch.nn.Identity())
    for training, message in [(True, "not enough memory on cpu for steps of 64"), (False, "validate whole images")]:
        with pytest.raises(InputError, match=message), named_shortage(cfg, module.train(training)):
            raise error


def test_shortage_in_a_dry_run_and_before_the_first_step_is_named(cfg, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError

    module = SRModule(torch.nn.Identity(), optimizer=torch.optim.SGD)
    monkeypatch.setattr(dry_run, "build_on_meta", lambda cfg: (module, None))
    monkeypatch.setattr(dry_run, "Trial", exhausted)
    monkeypatch.setattr(train, "instantiate", lambda *_, **__: module)
    monkeypatch.setattr(train, "preflight", exhausted)
    monkeypatch.setattr(train.pl, "seed_everything", lambda *_, **__: None)
    for command in (dry_run.estimate, train.train):
        with pytest.raises(InputError, match="not enough memory on cpu for steps of 64 patches"):
            command(cfg)


def test_other_errors_stay(cfg):
    with pytest.raises(RuntimeError, match="shape"), named_shortage(cfg, SRModule(torch.nn.Identity())):
        raise RuntimeError("wrong shape")
