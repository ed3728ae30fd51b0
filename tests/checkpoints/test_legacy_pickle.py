"""Files with a pickled module: of torch today, of torch in 2017, and malicious ones."""

import pickle
import sys
import types
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sr_lightning.checkpoints.legacy_pickle import read_module
from sr_lightning.errors import InputError

SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(), Block(), nn.BatchNorm2d(4))
        self.nothing = None
        self.register_parameter("none", None)
"""


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A module whose class, with its source in a file, exists only while the test writes it."""
    (tmp_path / "a_users_module.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    import a_users_module

    yield a_users_module.Net()
    sys.modules.pop("a_users_module", None)


def forget_the_class(tmp_path):
    sys.modules.pop("a_users_module")
    (tmp_path / "a_users_module.py").write_text("raise RuntimeError('imported')")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"epoch": 50, "model": net}])
def test_module_of_an_unknown_class_gives_its_state_dict(network, tmp_path, zipped, wrap):
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(wrap(network), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    forget_the_class(tmp_path)
    tensors = read_module(tmp_path / "net.pth")
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(tensors[key], value)
        assert not tensors[key].requires_grad
    assert "a_users_module" not in sys.modules


class Parameter:
    """Stand-in for torch.nn.parameter.Parameter of 2017 in the pickle below."""

    def __init__(self, data):
        self.data = data


def write_as_in_2017(path, module, storages, keep_data_in_state=False):
    """Write the stream of torch 0.1 to 0.3: tensors by _rebuild_tensor, parameters of these tensors, then storages.

    Args:
        path: The file to write.
        module: An object of plain dictionaries and of Parameter, whose data are (key, size) of a storage.
        storages: Key -> list of numbers.
        keep_data_in_state: The oldest of several forms of a parameter.
    """

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if isinstance(value, tuple) and value[:1] == ("the storage",):
                return ("storage", torch.FloatStorage, value[1], "cuda:0", len(storages[value[1]]), None)
            return None

        def reducer_override(self, value):
            if isinstance(value, Parameter):
                key, size = value.data
                strides = [1]
                for side in reversed(size[1:]):
                    strides.insert(0, strides[0] * side)
                tensor = Rebuilt((("the storage", key), 0, tuple(size), tuple(strides)))
                if keep_data_in_state:
                    return nn.Parameter, (), (tensor, None, OrderedDict(), True, False)
                return nn.Parameter, (tensor,), (True, False, OrderedDict())
            if isinstance(value, Rebuilt):
                return torch._utils._rebuild_tensor, value.arguments
            return NotImplemented

        def save(self, value, save_persistent_id=True):
            reduced = self.reducer_override(value)
            if reduced is NotImplemented:
                return super().save(value, save_persistent_id)
            return self.save_reduce(*reduced, obj=value)

    with open(path, "wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(head, file, protocol=2)
        Pickler(file, protocol=2).dump(module)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            file.write(len(storages[key]).to_bytes(8, "little"))
            file.write(torch.tensor(storages[key]).numpy().tobytes())


class Rebuilt:
    def __init__(self, arguments):
        self.arguments = arguments


class OldModule:
    """Stand-in for an nn.Module of 2017 in the pickle: plain attributes."""


def old_module(parameters=(), modules=()):
    module = OldModule()
    module._backend, module.training = types.SimpleNamespace(), True
    module._parameters = OrderedDict(parameters)
    module._buffers, module._modules = OrderedDict(), OrderedDict(modules)
    return module


@pytest.mark.parametrize("keep_data_in_state", [False, True])
def test_module_written_in_2017_gives_its_tensors(tmp_path, keep_data_in_state):
    conv = old_module([("weight", Parameter(("17", (2, 3)))), ("bias", None)])
    net = old_module(modules=[("input", conv), ("relu", old_module())])
    write_as_in_2017(
        tmp_path / "net.pth", {"epoch": 50, "model": net}, {"17": [1.0, 2, 3, 4, 5, 6]}, keep_data_in_state
    )
    tensors = read_module(tmp_path / "net.pth")
    assert tensors.keys() == {"input.weight"}
    assert tensors["input.weight"].tolist() == [[1, 2, 3], [4, 5, 6]]


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_named_in_the_pickle_is_executed(network, tmp_path, zipped):
    network.harm = Harm(tmp_path / "harm")
    torch.save(network, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    assert len(read_module(tmp_path / "net.pth")) == len(network.state_dict())
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "net.pth", weights_only=False)
    assert (tmp_path / "harm").exists()  # a full unpickling executes it


def test_truncated_file_is_refused(network, tmp_path):
    torch.save(network, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "net.pth").read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / "part.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=r"part\.pth is damaged"):
            read_module(tmp_path / "part.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"a": nn.ReLU(), "b": nn.ReLU()}])
def test_zero_or_several_modules_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"it holds [02] modules"):
        read_module(tmp_path / "net.pth")
