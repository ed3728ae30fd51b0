"""Weights of other projects, with the names and shapes of their code; and warm starts."""

import logging
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from sr_lightning.checkpoints.interop import load_weights, save_weights, warm_start
from sr_lightning.checkpoints.key_listing import compact_ranges, format_groups
from sr_lightning.checkpoints.key_maps import KEY_MAPS, import_keys
from sr_lightning.errors import InputError
from sr_lightning.networks import EDSR, ESPCN, RCAN, SRCNN, VDSR, WDSR, Bicubic, MSRResNet, SRResNet

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def convs(**layers):
    """Make random weights and biases of 3x3 convolutions, {name: (out, in)}."""
    tensors = {}
    for name, (out, inputs) in layers.items():
        tensors[f"{name}.weight"] = 0.1 * torch.randn(out, inputs, 3, 3)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(out)
    return tensors


def edsr_pytorch_file(scale, blocks=16, f=64):
    """The module names of src/model/edsr.py."""
    eye = torch.eye(3).view(3, 3, 1, 1)
    layers = {"head.0": (f, 3)}
    for i in range(blocks):
        layers |= {f"body.{i}.body.0": (f, f), f"body.{i}.body.2": (f, f)}
    layers[f"body.{blocks}"] = (f, f)
    layers |= {2: {"tail.0.0": (4 * f, f)}, 3: {"tail.0.0": (9 * f, f)}}.get(
        scale, {"tail.0.0": (4 * f, f), "tail.0.2": (4 * f, f)}
    )
    layers["tail.1"] = (3, f)
    shifts = {"sub_mean.weight": eye, "sub_mean.bias": -255 * MEAN, "add_mean.weight": eye, "add_mean.bias": 255 * MEAN}
    return shifts | convs(**layers)


def basicsr_edsr_file(scale, blocks=16, f=64):
    """The module names of basicsr/archs/edsr_arch.py."""
    layers = {"conv_first": (f, 3)}
    for i in range(blocks):
        layers |= {f"body.{i}.conv1": (f, f), f"body.{i}.conv2": (f, f)}
    layers["conv_after_body"] = (f, f)
    layers |= {2: {"upsample.0": (4 * f, f)}, 3: {"upsample.0": (9 * f, f)}}.get(
        scale, {"upsample.0": (4 * f, f), "upsample.2": (4 * f, f)}
    )
    return convs(**layers, conv_last=(3, f))


def basicsr_msrresnet_file(scale, blocks=16, f=64):
    """The module names of basicsr/archs/srresnet_arch.py."""
    layers = {"conv_first": (f, 3)}
    for i in range(blocks):
        layers |= {f"body.{i}.conv1": (f, f), f"body.{i}.conv2": (f, f)}
    layers |= {2: {"upconv1": (4 * f, f)}, 3: {"upconv1": (9 * f, f)}}.get(
        scale, {"upconv1": (4 * f, f), "upconv2": (4 * f, f)}
    )
    return convs(**layers, conv_hr=(f, f), conv_last=(3, f))


def edsr_of(w, x, names, blocks, steps, residual_scale=1.0):
    """Apply EDSR, with the weights of a file, to images without their mean."""
    head, conv1, conv2, merge, up, tail = names

    def conv(x, key):
        return F.conv2d(x, w[f"{key}.weight"], w[f"{key}.bias"], padding=w[f"{key}.weight"].shape[-1] // 2)

    x = first = conv(x, head)
    for i in range(blocks):
        x = x + residual_scale * conv(conv(x, conv1.format(i)).clamp(min=0), conv2.format(i))
    x = first + conv(x, merge)
    for i, step in enumerate(steps):
        x = F.pixel_shuffle(conv(x, f"{up}.{2 * i}"), step)
    return conv(x, tail)


STEPS = {2: [2], 3: [3], 4: [2, 2]}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
def test_edsr_pytorch_weights_match_its_code(scale, residual_scale, tmp_path):
    w = edsr_pytorch_file(scale)
    torch.save(w, tmp_path / "edsr_baseline.pt")
    network = EDSR(scale=scale, residual_scale=residual_scale)
    assert load_weights(network, tmp_path / "edsr_baseline.pt").project == "edsr-pytorch"
    lr = torch.rand(1, 3, 6, 5)
    x = F.conv2d(255 * lr, w["sub_mean.weight"], w["sub_mean.bias"])
    names = ("head.0", "body.{}.body.0", "body.{}.body.2", "body.16", "tail.0", "tail.1")
    x = edsr_of(w, x, names, 16, STEPS[scale], residual_scale)
    expected = F.conv2d(x, w["add_mean.weight"], w["add_mean.bias"]) / 255
    torch.testing.assert_close(network(lr), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("wrapper", [None, "params", "params_ema"])
def test_basicsr_edsr_weights_match_its_code(scale, wrapper, tmp_path):
    w = basicsr_edsr_file(scale)
    torch.save(w if wrapper is None else {wrapper: w}, tmp_path / "edsr.pth")
    network = EDSR(scale=scale)
    assert load_weights(network, tmp_path / "edsr.pth").project == "basicsr"
    lr = torch.rand(1, 3, 6, 5)
    mean = MEAN.view(1, 3, 1, 1)
    names = ("conv_first", "body.{}.conv1", "body.{}.conv2", "conv_after_body", "upsample", "conv_last")
    expected = edsr_of(w, (lr - mean) * 255, names, 16, STEPS[scale]) / 255 + mean
    torch.testing.assert_close(network(lr), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_basicsr_average_is_preferred(tmp_path):
    raw, averaged = basicsr_edsr_file(2, 1, 4), basicsr_edsr_file(2, 1, 4)
    torch.save({"params": raw, "params_ema": averaged}, tmp_path / "net_g.pth")
    network = EDSR(scale=2, num_blocks=1, num_features=4)
    load_weights(network, tmp_path / "net_g.pth")
    assert torch.equal(network.head.weight, averaged["conv_first.weight"])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_basicsr_msrresnet_weights_match_its_code(scale, tmp_path):
    w = basicsr_msrresnet_file(scale)
    assert sum(v.numel() for v in w.values()) == {2: 1_369_859, 3: 1_554_499, 4: 1_517_571}[scale]
    torch.save({"params": w}, tmp_path / "msrresnet.pth")
    network = MSRResNet(scale=scale)
    assert load_weights(network, tmp_path / "msrresnet.pth").network is MSRResNet

    def conv(x, key):
        return F.conv2d(x, w[f"{key}.weight"], w[f"{key}.bias"], padding=1)

    lr = torch.rand(1, 3, 6, 5)
    x = F.leaky_relu(conv(lr, "conv_first"), 0.1)
    for i in range(16):
        x = x + conv(F.relu(conv(x, f"body.{i}.conv1")), f"body.{i}.conv2")
    for i, step in enumerate(STEPS[scale]):
        x = F.leaky_relu(F.pixel_shuffle(conv(x, f"upconv{i + 1}"), step), 0.1)
    expected = conv(F.leaky_relu(conv(x, "conv_hr"), 0.1), "conv_last") + F.interpolate(
        lr, scale_factor=scale, mode="bilinear"
    )
    torch.testing.assert_close(network(lr), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


VDSR_SOURCE = """
from torch import nn

class Conv_ReLU_Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.residual_layer = nn.Sequential(*(Conv_ReLU_Block() for _ in range(18)))
        self.input = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.output = nn.Conv2d(64, 1, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.output(self.residual_layer(self.relu(self.input(x)))) + x
"""


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_vdsr_matches_its_module(zipped, tmp_path, monkeypatch):
    (tmp_path / "vdsr.py").write_text(VDSR_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    import vdsr

    theirs = vdsr.Net()
    path = tmp_path / "model_epoch_50.pth"
    torch.save({"epoch": 50, "model": theirs}, path, _use_new_zipfile_serialization=zipped)
    sys.modules.pop("vdsr")
    (tmp_path / "vdsr.py").write_text("raise RuntimeError('imported')")
    network = VDSR(scale=3, bias=False)
    assert load_weights(network, path).project == "twtygqyy"
    lr = torch.rand(1, 1, 7, 6)
    torch.testing.assert_close(network(lr), theirs(Bicubic(scale=3)(lr)), rtol=1e-5, atol=1e-6)


FILES = {
    "edsr-pytorch EDSR": edsr_pytorch_file,
    "basicsr EDSR": basicsr_edsr_file,
    "basicsr MSRResNet": basicsr_msrresnet_file,
}


@pytest.mark.parametrize("layout", KEY_MAPS[:3], ids=str)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("blocks", "f"), [(16, 64), (32, 256)])
def test_names_map_one_to_one(layout, scale, blocks, f):
    with torch.device("meta"):
        file = FILES[f"{layout.project} {layout.network.__name__}"](scale, blocks, f)
        network = layout.network(scale=scale, num_blocks=blocks, num_features=f)
    ours = import_keys(file, layout)
    own = network.state_dict()
    assert ours.keys() == own.keys()
    assert len(ours) == len(file) - len(layout.constants)
    assert all(ours[key].shape == own[key].shape for key in own)


@pytest.mark.parametrize("layout", KEY_MAPS[:3], ids=str)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_exported_weights_have_the_documented_names(layout, scale, tmp_path):
    network = layout.network(scale=scale, num_blocks=3, num_features=8).to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "out.pth", layout.project)
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    if layout.project == "basicsr":
        assert content.keys() == {"params"}
        content = content["params"]
    expected = FILES[f"{layout.project} {layout.network.__name__}"](scale, 3, 8)
    assert {k: v.shape for k, v in content.items()} == {k: v.shape for k, v in expected.items()}
    for key in layout.constants:
        torch.testing.assert_close(content[key], expected[key])
    other = layout.network(scale=scale, num_blocks=3, num_features=8)
    load_weights(other, tmp_path / "out.pth")
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]


def test_safetensors_are_exact_and_described(tmp_path):
    network = WDSR(scale=3, num_blocks=2, num_features=8).to(memory_format=torch.channels_last)
    description = {"_target_": "sr_lightning.networks.WDSR", "scale": 3, "num_blocks": 2, "num_features": 8}
    save_weights(network, tmp_path / "wdsr.safetensors", description=description)
    with safe_open(tmp_path / "wdsr.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["class"], metadata["scale"], metadata["num_channels"]) == ("WDSR", "3", "3")
    assert '"num_blocks": 2' in metadata["network"]
    other = WDSR(scale=3, num_blocks=2, num_features=8)
    assert load_weights(other, tmp_path / "wdsr.safetensors") is None
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_network_missing_in_the_other_project_is_refused(tmp_path):
    for network, layout, message in [
        (WDSR(scale=2, num_blocks=1), "basicsr", r"has no WDSR; choose ours or one of EDSR \(edsr-pytorch\)"),
        (EDSR(scale=2, num_blocks=1), "kair", "layout='kair'"),
        (
            EDSR(scale=2, num_blocks=1, global_skip=True),
            "basicsr",
            r"layout='basicsr': EDSR \(basicsr\) does not fit: this network has global_skip=true",
        ),
        (EDSR(scale=2, num_blocks=1, num_channels=1), "edsr-pytorch", "num_channels=1"),
        (MSRResNet(scale=8, num_blocks=1), "basicsr", r"has no layer for upsampler\.6\.weight, upsampler\.6\.bias"),
    ]:
        with pytest.raises(InputError, match=message):
            save_weights(network, tmp_path / "out.pth", layout)
    assert not list(tmp_path.iterdir())


def test_every_name_and_shape_that_differs_is_named(tmp_path):
    w = edsr_pytorch_file(2, 4, 8)
    w["extra.weight"] = w.pop("head.0.weight")
    torch.save(w, tmp_path / "edsr.pt")
    with pytest.raises(InputError) as error:
        load_weights(EDSR(scale=3, num_blocks=5, num_features=8), tmp_path / "edsr.pt")
    lines = str(error.value).splitlines()
    assert (
        lines[1] == "  another shape: upsampler.0.weight 32x8x3x3, expected 72x8x3x3, upsampler.0.bias 32, expected 72"
    )
    assert lines[2].startswith("  missing in the file: head.weight 8x3x3x3, blocks.4.conv1.weight 8x8x3x3")
    assert lines[3] == "  unknown to the network: extra.weight 8x3x3x3"


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(basicsr_msrresnet_file(4, 2, 8), tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"holds MSRResNet \(basicsr\) and does not fit: this network is EDSR"):
        load_weights(EDSR(scale=4, num_blocks=2, num_features=8), tmp_path / "net.pth")
    torch.save(basicsr_edsr_file(4, 2, 8), tmp_path / "net.pth")
    with pytest.raises(InputError, match="global_skip=true"):
        load_weights(EDSR(scale=4, num_blocks=2, num_features=8, global_skip=True), tmp_path / "net.pth")


@pytest.mark.parametrize("change", [{"sub_mean.bias": -MEAN}, {"add_mean.weight": None}])
def test_other_mean_or_range_is_refused(change, tmp_path):
    w = edsr_pytorch_file(2, 2, 8) | change
    torch.save({k: v for k, v in w.items() if v is not None}, tmp_path / "edsr.pt")
    with pytest.raises(InputError, match=next(iter(change))):
        load_weights(EDSR(scale=2, num_blocks=2, num_features=8), tmp_path / "edsr.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)]])
def test_file_without_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt holds no weights"):
        load_weights(EDSR(scale=2, num_blocks=1), tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_unreadable_or_missing_file_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=f"there is no file or folder .*{name}"):
        load_weights(EDSR(scale=2, num_blocks=1), tmp_path / name)
    (tmp_path / name).write_bytes(b"no weights" * 100)
    with pytest.raises(InputError, match=f"{name} (cannot be read|is damaged|is no file of weights)"):
        load_weights(EDSR(scale=2, num_blocks=1), tmp_path / name)


def small(cls=EDSR, **options):
    return cls(**{"scale": 2, "num_features": 16, "num_blocks": 3} | options)


def test_warm_start_to_another_scale_loads_the_trunk_and_lists_the_rest(tmp_path, caplog):
    source, network = small(), small(scale=3)
    untouched = network.upsampler[0].weight.clone()
    save_weights(source, tmp_path / "x2.safetensors")
    with caplog.at_level(logging.INFO):
        warm_start(network, tmp_path / "x2.safetensors")
    for key, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[key], value) != key.startswith("upsampler")
    assert torch.equal(network.upsampler[0].weight, untouched)
    assert caplog.messages == [
        f"warm start from {tmp_path / 'x2.safetensors'}: 18 of 20 tensors\n"
        "  another shape, left out: upsampler.0.weight 64x16x3x3, here 144x16x3x3, upsampler.0.bias 64, here 144"
    ]


def test_warm_start_accepts_published_weights_of_another_class_and_depth(tmp_path, caplog):
    torch.save(edsr_pytorch_file(2, 5, 16), tmp_path / "edsr.pt")
    network = RCAN(scale=2, num_features=16, num_groups=1, num_blocks=1, reduction=4)
    with caplog.at_level(logging.INFO):
        warm_start(network, tmp_path / "edsr.pt")
    assert "edsr.pt, EDSR (edsr-pytorch): 8 of 18 tensors" in caplog.text
    assert "only in the file, left out: blocks.{0-4}.conv1.weight 16x16x3x3" in caplog.text
    assert "only in the network, as initialised: groups.0.blocks.0.conv1.weight 16x16x3x3" in caplog.text
    shallow = small(num_blocks=4)
    warm_start(shallow, tmp_path / "edsr.pt")
    lr = torch.rand(1, 3, 4, 4)
    deep = small(num_blocks=5)
    load_weights(deep, tmp_path / "edsr.pt")
    deep.blocks = deep.blocks[:4]
    assert torch.equal(shallow(lr), deep(lr))


def test_weights_independent_of_the_scale_are_all_loaded(tmp_path, caplog):
    save_weights(SRCNN(scale=2), tmp_path / "srcnn.safetensors")
    with caplog.at_level(logging.INFO):
        warm_start(SRCNN(scale=4), tmp_path / "srcnn.safetensors")
    assert caplog.messages[0].endswith(": 6 of 6 tensors")


def test_warm_start_without_a_matching_tensor_is_refused(tmp_path):
    save_weights(small(), tmp_path / "edsr.safetensors")
    with pytest.raises(InputError, match=r"nothing in it fits ESPCN:\n  only in the file"):
        warm_start(ESPCN(scale=2), tmp_path / "edsr.safetensors")
    with pytest.raises(InputError, match="nothing in it fits Bicubic"):
        warm_start(Bicubic(scale=2), tmp_path / "edsr.safetensors")


def test_names_differing_in_a_number_share_a_line():
    assert compact_ranges([3]) == "3"
    assert compact_ranges([5, 0, 1, 2]) == "{0-2,5}"
    texts = {f"blocks.{i}.conv.2.weight": "8x8" for i in (0, 1, 3)} | {
        "tail.weight": "3",
        "blocks.7.conv.2.weight": "9x9",
    }
    assert format_groups({"a": texts, "b": {}}) == (
        "\n  a: blocks.{0-1,3}.conv.2.weight 8x8, tail.weight 3, blocks.7.conv.2.weight 9x9"
    )


def test_batch_norm_statistics_are_loaded(tmp_path):
    source, network = small(SRResNet), small(SRResNet, scale=4)
    source.train()(torch.rand(2, 3, 6, 6))
    save_weights(source, tmp_path / "srresnet.safetensors")
    warm_start(network, tmp_path / "srresnet.safetensors")
    assert torch.equal(network.norm.running_var, source.norm.running_var)
    assert network.norm.num_batches_tracked == 1


WRAPPED = {
    "DataParallel": lambda net: {f"module.{key}": value for key, value in net.items()},
    "torch.compile": lambda net: {"state_dict": {f"_orig_mod.{key}": value for key, value in net.items()}},
    "average, DataParallel": lambda net: {"params_ema": {f"module.{key}": value for key, value in net.items()}},
    "generator beside a discriminator": lambda net: {
        "state_dict": {f"generator.{key}": value for key, value in net.items()} | {"discriminator.x": torch.zeros(1)}
    },
    "compiled, DataParallel": lambda net: {"model": {f"_orig_mod.module.{key}": value for key, value in net.items()}},
    "training program": lambda net: {"epoch": 3, "model_state_dict": net, "optimizer": {"lr": 0.1}},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_weights_are_read(wrapper, tmp_path):
    network, other = (ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3]) for _ in range(2))
    torch.save(WRAPPED[wrapper](network.state_dict()), tmp_path / "net.pth")
    load_weights(other, tmp_path / "net.pth")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def test_state_dict_inside_itself_is_refused(tmp_path):
    content = {}
    content["params"] = content
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"net\.pth holds no weights: it has params"):
        load_weights(EDSR(scale=2, num_blocks=1), tmp_path / "net.pth")


@pytest.mark.parametrize("bias", [True, False])
def test_message_names_the_setting_of_biases_if_they_are_the_whole_difference(bias, tmp_path):
    network = VDSR(scale=2, num_layers=4, num_features=8, bias=bias)
    torch.save(network.state_dict(), tmp_path / "vdsr.pth")
    with pytest.raises(InputError, match=rf"set model\.network\.bias={str(bias).lower()}$"):
        load_weights(VDSR(scale=2, num_layers=4, num_features=8, bias=not bias), tmp_path / "vdsr.pth")


def test_setting_of_biases_is_not_named_for_a_network_without_it(tmp_path):
    network = ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3])
    weights = network.state_dict()
    weights.pop("convs.0.bias")
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"with the scale and sizes of the file$"):
        load_weights(network, tmp_path / "net.pth")


@pytest.mark.parametrize("place", [-1, -300])
def test_damaged_safetensors_are_refused_and_the_tensor_named(place, tmp_path):
    network = ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3])
    save_weights(network, tmp_path / "net.safetensors")
    data = bytearray((tmp_path / "net.safetensors").read_bytes())
    data[place] ^= 1
    (tmp_path / "net.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"net\.safetensors is damaged: wrong digest of convs\."):
        load_weights(network, tmp_path / "net.safetensors")


def test_safetensors_without_digests_are_read(tmp_path):
    network, other = (ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3]) for _ in range(2))
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    load_weights(other, tmp_path / "net.safetensors")
    assert torch.equal(other.convs[0].weight, network.convs[0].weight)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\x10" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"])
def test_false_safetensors_are_refused(damage, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match=r"net\.safetensors (cannot be read as|holds no) weights"):
        load_weights(EDSR(scale=2, num_blocks=1), tmp_path / "net.safetensors")


def test_module_of_one_value_expanded_takes_no_memory(tmp_path):
    module = torch.nn.Module()
    module.register_buffer("x", torch.zeros(1).expand(10**5, 10**5))
    for zipped in (True, False):
        torch.save(module, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"\(100000, 100000\) values of 1"):
            load_weights(EDSR(scale=2, num_blocks=1), tmp_path / "net.pth")
