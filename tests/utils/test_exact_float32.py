"""Settings of a GPU, which exist without one as well."""

import contextlib

import pytest
import torch

from sr_lightning.utils.exact_float32 import exact_float32


def settings():
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.fixture(params=["default", "older", "newer", "exact"])
def setting(request):
    """A setting of the user's program."""
    torch.set_float32_matmul_precision("high" if request.param == "older" else "highest")
    if request.param in ("newer", "exact"):
        torch.backends.fp32_precision = "tf32" if request.param == "newer" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee" if request.param == "exact" else "tf32"
    yield request.param
    torch.backends.fp32_precision = "none"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")


def test_blocks_of_several_threads_end_in_any_order():
    first, second, third = exact_float32(), exact_float32(), exact_float32()
    before = settings()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert "tf32" not in settings()
    third.__enter__()
    second.__exit__(None, None, None)
    assert "tf32" not in settings()
    third.__exit__(None, None, None)
    assert settings() == before


@pytest.mark.parametrize("error", [None, ValueError])
def test_tf32_is_off_in_the_block_and_the_setting_is_restored(setting, error):
    before = settings()
    assert ("tf32" in before) == (setting != "exact")
    with contextlib.suppress(ValueError), exact_float32():
        assert not {"tf32"} & set(settings())
        with exact_float32():
            pass
        assert not {"tf32"} & set(settings())
        if error is not None:
            raise error
    assert settings() == before
    if setting in ("default", "older"):  # torch refuses to read the older settings beside newer ones
        assert torch.get_float32_matmul_precision() == ("high" if setting == "older" else "highest")
        assert torch.backends.cudnn.allow_tf32
