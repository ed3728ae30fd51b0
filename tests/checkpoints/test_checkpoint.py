"""Checkpoints of this project: checksums, odd content, and the networks that they may name."""

import logging
import shutil
import sys
import zipfile

import pytest
import torch
from torch.serialization import set_crc32_options

from sr_lightning import load
from sr_lightning.checkpoints.checkpoint import load_best, load_network, read_checkpoint
from sr_lightning.checkpoints.interop import load_weights, read_weights
from sr_lightning.errors import InputError
from sr_lightning.export.command import main as export_command
from sr_lightning.networks import EDSR, ESPCN
from sr_lightning.upscale.command import main as upscale_command
from tests.checkpoints.fuzz import RUN, zipped

BEST = RUN / "checkpoints" / "best.ckpt"


def flip_bit_of(path, record):
    """Flip one bit in the middle of a record of a zip file."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(record))
    lengths = (data[info.header_offset + at : info.header_offset + at + 2] for at in (26, 28))
    start = info.header_offset + 30 + sum(int.from_bytes(length, "little") for length in lengths)
    data[start + info.file_size // 2] ^= 16
    path.write_bytes(data)


@pytest.fixture
def changed(tmp_path):
    """Write best.ckpt with other content: changed(lambda checkpoint: …) -> its path."""

    def write(change):
        checkpoint = torch.load(BEST, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def with_network(changed, **arguments):
    """Write best.ckpt with other arguments of its network, whose `_target_` is called target."""
    arguments = {{"target": "_target_"}.get(key, key): value for key, value in arguments.items()}
    return changed(lambda checkpoint: checkpoint["hyper_parameters"]["model"]["network"].update(arguments))


# Checksums


@pytest.mark.parametrize(
    ("record", "tensor"),
    [("data/0", "network.conv1.weight"), ("data/3", "network.conv2.bias"), ("data/8", r"optimizer_states\.0\.state\.")],
)
def test_one_flipped_bit_is_noticed_and_its_tensor_named(record, tensor, tmp_path):
    path = shutil.copy(BEST, tmp_path / "best.ckpt")
    flip_bit_of(path, record)
    for read in (load_best, read_checkpoint, read_weights):
        with pytest.raises(InputError, match=rf"best\.ckpt is damaged: wrong checksum of {tensor}"):
            read(path)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    """In any byte of a record; the directory and the padding between records are not all in use."""
    path = tmp_path / "best.ckpt"
    with zipfile.ZipFile(BEST) as archive:
        records = [info.filename.partition("/")[2] for info in archive.infolist() if info.file_size]
    for record in records:
        shutil.copy(BEST, path)
        flip_bit_of(path, record)
        with pytest.raises(InputError, match="checksum"):
            load_best(path)


def foreign_file(tmp_path):
    torch.manual_seed(0)
    network = ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3])
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    return network, tmp_path / "net.pth"


def test_damaged_file_of_another_project_gets_a_warning(tmp_path, caplog):
    network, path = foreign_file(tmp_path)
    flip_bit_of(path, "data/0")
    load_weights(network, path)
    assert caplog.messages == [
        f"{path} may be damaged, its numbers may be wrong. Wrong checksum of:\n  params.convs.0.weight"
    ]


def test_file_without_checksums_gets_a_warning(tmp_path, caplog):
    set_crc32_options(False)
    try:
        network, path = foreign_file(tmp_path)
    finally:
        set_crc32_options(True)
    load_weights(network, path)
    assert caplog.messages == [f"{path} was written without checksums: damage cannot be noticed"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e30, -2e7])
def test_implausible_number_in_a_file_of_another_project_is_refused(value, tmp_path):
    network, path = foreign_file(tmp_path)
    weights = network.state_dict()
    weights["convs.0.bias"][0] = value
    torch.save(weights, path)
    with pytest.raises(InputError, match=r"beyond 1e\+07, in 1 of 4 tensors, such as convs\.0\.bias"):
        read_weights(path)


def test_whole_file_is_read_without_a_message(tmp_path, caplog):
    network, path = foreign_file(tmp_path)
    with caplog.at_level(logging.INFO):
        load_weights(network, path)
        load_best(BEST)
    assert not caplog.messages


# Odd content


ODD_FIELDS = {
    "no state_dict": lambda c: c.pop("state_dict"),
    "list for state_dict": lambda c: c.update(state_dict=[1, 2]),
    "key of state_dict is a number": lambda c: c["state_dict"].update({3: torch.zeros(1)}),
    "weight is a number": lambda c: c["state_dict"].update({"network.conv1.bias": 3}),
    "weight is sparse": lambda c: c["state_dict"].update({"network.conv1.bias": torch.zeros(16).to_sparse()}),
    "weight has no values": lambda c: c["state_dict"].update({"network.conv1.bias": torch.zeros(16, device="meta")}),
    "weight of one value, expanded": lambda c: c["state_dict"].update(
        {"network.conv1.bias": torch.zeros(1).expand(10**6, 10**6)}
    ),
    "weight is complex": lambda c: c["state_dict"].update({"network.conv1.bias": torch.zeros(16) * 1j}),
    "weight is whole": lambda c: c["state_dict"].update({"network.conv1.bias": torch.zeros(16, dtype=torch.int8)}),
    "weight is missing": lambda c: c["state_dict"].pop("network.conv1.bias"),
    "weight is NaN": lambda c: c["state_dict"]["network.conv1.bias"].fill_(torch.nan),
    "unknown weight": lambda c: c["state_dict"].update({"network.x": torch.zeros(1)}),
    "no weights of a network": lambda c: c.update(state_dict={}),
    "no name": lambda c: c["hyper_parameters"].pop("name"),
    "name is a list": lambda c: c["hyper_parameters"].update(name=[]),
    "config is a list": lambda c: c.update(hyper_parameters=[]),
    "network is text": lambda c: c["hyper_parameters"]["model"].update(network="x"),
    "no loops": lambda c: c.pop("loops"),
    "steps are text": lambda c: c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"].update(processed="x"),
    "steps are in a list": lambda c: c["loops"]["fit_loop"]["epoch_loop.batch_progress"].update(total=[1]),
}


@pytest.mark.parametrize("odd", ODD_FIELDS)
def test_odd_field_is_one_clear_error(odd, changed):
    path = changed(ODD_FIELDS[odd])
    with pytest.raises(InputError, match=r"changed\.ckpt"):
        load_best(path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_features": [-1, 8]},
        {"num_features": None},
        {"num_features": [[16], 8]},
        {"num_features": [16] * 2000},
        {"kernel_sizes": [9, 1]},
        {"kernel_sizes": {"_target_": "os.system"}},
        {"scale": 0},
        {"scale": 10**9},
        {"scale": "2"},
        {"scale": float("nan")},
        {"unknown": 1},
        {"target": "sr_lightning.networks.VDSR"},
        {"target": "sr_lightning.networks.SRGANDiscriminator"},
    ],
    ids=lambda arguments: str(arguments)[:40],
)
def test_odd_argument_of_the_network_is_one_clear_error(arguments, changed):
    with pytest.raises(InputError, match=r"changed\.ckpt"):
        load_best(with_network(changed, **arguments))


def test_unknown_activation_is_one_clear_error(trained, tmp_path):
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["hyper_parameters"]["model"]["network"]["activation"] = "Greeting"
    torch.save(checkpoint, tmp_path / "net.ckpt")
    with pytest.raises(InputError, match=r"net\.ckpt holds a sr_lightning\.networks\.ESPCN that"):
        load_best(tmp_path / "net.ckpt")


@pytest.mark.parametrize("sizes", [{"num_features": 10**6}, {"num_features": 2, "num_blocks": 10**9}], ids=str)
def test_network_far_larger_than_its_weights_is_refused_before_it_takes_memory(sizes, changed, monkeypatch):
    filled = []
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda conv: filled.append(conv.weight.numel()))

    def describe(checkpoint):
        network = {"_target_": "sr_lightning.networks.EDSR", "scale": 2, **sizes}
        checkpoint["hyper_parameters"]["model"]["network"] = network

    with pytest.raises(InputError, match="far larger than the weights in the file"):
        load_best(changed(describe))
    assert sum(filled) < 10**6


def test_network_of_the_size_of_its_weights_is_built_whatever_was_refused_before(changed):
    with pytest.raises(InputError):
        load_best(with_network(changed, num_features=[10**6, 10**6]))
    EDSR(scale=2)
    assert load_best(BEST).step == 40


def with_records(tmp_path, change):
    """Write best.ckpt with other records, and right checksums."""
    with zipfile.ZipFile(BEST) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    (tmp_path / "best.ckpt").write_bytes(zipped(change(records)))
    return tmp_path / "best.ckpt"


def with_pickle(records, change):
    return [(name, change(data) if name.endswith("data.pkl") else data) for name, data in records]


def renamed(records, old, new):
    return with_pickle(records, lambda data: data.replace(old, new))


ODD_RECORDS = {
    "a record twice": (lambda r: [*r, r[-1]], "two records of one name"),
    "a record twice, in another case": (lambda r: [*r, (r[-1][0].upper(), b"")], "two records of one name"),
    "no pickle": (lambda r: [one for one in r if not one[0].endswith("data.pkl")], "data.pkl"),
    "no tensor": (lambda r: [one for one in r if not one[0].endswith("data/0")], "data/0"),
    "cut tensor": (lambda r: [(n, d[:-4] if n.endswith("data/0") else d) for n, d in r], "bytes in record data/0"),
    "empty pickle": (lambda r: with_pickle(r, lambda data: b""), "EOFError"),
    "memo of 34 GB": (lambda r: with_pickle(r, lambda data: b"\x80\x02Nr\xff\xff\xff\x7f."), "does not describe"),
    "odd opcodes": (lambda r: with_pickle(r, lambda data: b"\x80\x02a0ubR."), "cannot be read"),
    "storage of another kind": (
        lambda r: with_pickle(r, lambda d: d.replace(b"FloatStorage", b"OddStorage")),
        "OddStorage",
    ),
    "larger storage": (
        lambda r: with_pickle(r, lambda d: d.replace(b"FloatStorage", b"DoubleStorage")),
        "8 bytes in rec",
    ),
}


@pytest.mark.parametrize("odd", ODD_RECORDS)
def test_odd_records_are_one_clear_error(odd, tmp_path):
    change, message = ODD_RECORDS[odd]
    path = with_records(tmp_path, change)
    with pytest.raises(InputError, match=message) as error:
        load_best(path)
    assert str(path) in str(error.value)


def test_compressed_records_are_refused(tmp_path):
    (tmp_path / "bomb.pth").write_bytes(zipped([("a/data.pkl", b"N."), ("a/data/0", bytes(10**7))], compress=True))
    with pytest.raises(InputError, match="compressed or encrypted"):
        read_weights(tmp_path / "bomb.pth")


@pytest.mark.parametrize("length", [0, 3, 4, 30, 1000, 20_000])
def test_cut_checkpoint_is_refused(length, tmp_path):
    (tmp_path / "best.ckpt").write_bytes(BEST.read_bytes()[:length])
    with pytest.raises(InputError, match=r"best\.ckpt"):
        load_best(tmp_path / "best.ckpt")


# The networks that a checkpoint may name


NETWORK = """
open({marker!r}, "w").close()
import torch
from torch import nn
class Net(nn.Module):
    scale, num_channels, receptive_radius = 2, 1, 0
    def __init__(self, **_):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
    def forward(self, lr):
        return nn.functional.pixel_shuffle(self.conv(lr), 2)
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A package with a network, which leaves a file when it is imported: the folder of that file."""
    (tmp_path / "planted_networks").mkdir()
    (tmp_path / "planted_networks" / "net.py").write_text(NETWORK.format(marker=str(tmp_path / "EXECUTED")))
    (tmp_path / "planted_networks" / "__init__.py").write_text("from .net import Net\nfrom torch.nn import Conv2d\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("planted_networks")]:
        del sys.modules[name]


def checkpoint_of(target):
    """Return a change of best.ckpt to the network of `planted`, under a name."""

    def change(checkpoint):
        checkpoint["hyper_parameters"]["model"]["network"] = {"_target_": target}
        checkpoint["state_dict"] = {"network.conv.weight": torch.ones(4, 1, 1, 1), "network.conv.bias": torch.ones(4)}

    return change


@pytest.mark.parametrize(
    "target",
    [
        "antigravity.Net",
        "planted_networks.Net",
        "planted_networks.net.Net",
        "planted_networks.Conv2d",
        "sr_lightning.networks.edsr.torch.nn.Sequential",
        "sr_lightning.networks.layers.FoldedUpsampler",
        "torch.nn.Identity",
        "os.system",
        "builtins.eval",
        "Net",
        "",
        "__main__.Net",
        "..Net",
    ],
)
def test_network_of_another_package_is_refused_and_not_imported(target, changed, planted):
    before = set(sys.modules)
    with pytest.raises(InputError, match="names a network that is not one of this project's"):
        load(changed(checkpoint_of(target)))
    assert not (planted / "EXECUTED").exists()
    assert not {"antigravity", "planted_networks"} & (set(sys.modules) - before)


@pytest.mark.parametrize("target", ["planted_networks.Net", "planted_networks.net.Net"])
@pytest.mark.parametrize("allow", ["planted_networks", ["x", "planted_networks.net"], "planted_networks.net.Net"])
def test_allowed_network_is_used(target, allow, changed, planted):
    assert load(changed(checkpoint_of(target)), allow=allow).scale == 2
    assert (planted / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("target", "allow"),
    [
        ("planted_networks.Net", "planted"),
        ("planted_networks.Net", "planted_networks.other"),
        ("planted_networks.Conv2d", "planted_networks"),
        ("planted_networks.net.torch.nn.Identity", "planted_networks"),
        ("planted_networks.net.nn.Identity", "planted_networks"),
    ],
)
def test_allowed_package_allows_what_it_defines_and_no_more(target, allow, changed, planted):
    with pytest.raises(InputError, match="not one of this project's"):
        load(changed(checkpoint_of(target)), allow=allow)
    assert not (planted / "EXECUTED").exists()


def test_own_network_is_found_under_every_path_of_its_class(changed):
    for target in ("sr_lightning.networks.SRCNN", "sr_lightning.networks.srcnn.SRCNN"):
        assert load_network(with_network(changed, target=target)).step == 40


def test_commands_name_the_option_and_accept_it(changed, planted, capsys, caplog):
    path = changed(checkpoint_of("planted_networks.Net"))
    words = ["-c", str(path), "--to", "safetensors", "-o", "net.safetensors"]
    assert export_command(words) == 1
    assert "--allow planted_networks" in capsys.readouterr().err
    assert export_command([*words, "--allow", "planted_networks"]) == 0
    shutil.copy(RUN.parents[2] / "data" / "pictures" / "0.png", "photo.png")
    assert upscale_command(["photo.png", "-c", str(path), "-o", "big"]) == 1
    assert upscale_command(["photo.png", "-c", str(path), "-o", "big", "--allow", "planted_networks"]) == 0
