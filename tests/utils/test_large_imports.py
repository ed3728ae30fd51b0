import gc
import sys
from collections.abc import Iterator

import pytest

from sr_lightning.utils.large_imports import large_imports


@pytest.fixture
def without_torch(monkeypatch) -> Iterator[None]:
    """As if torch were not imported; what is exempted from collection is collectable again at the end."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.enable()
    gc.unfreeze()


def is_examined(thing: object) -> bool:
    return any(each is thing for each in gc.get_objects())


def test_collector_pauses_and_never_examines_the_objects_so_far(without_torch):
    earlier: list = []
    assert is_examined(earlier)
    with pytest.raises(ImportError), large_imports():
        assert not gc.isenabled()
        raise ImportError
    later: list = []
    assert gc.isenabled() and is_examined(later) and not is_examined(earlier)


def test_nothing_changes_in_a_program_that_has_torch_or_no_collector(without_torch, monkeypatch):
    gc.disable()
    with large_imports():
        pass
    assert not gc.isenabled() and gc.get_freeze_count() == 0
    gc.enable()
    monkeypatch.setitem(sys.modules, "torch", sys)
    with large_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
