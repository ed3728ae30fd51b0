"""Exported files compute the same as the checkpoint's network; a file that would not is never written."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from sr_lightning import export as export_module
from sr_lightning.checkpoints import identify
from sr_lightning.checkpoints.checkpoint import Trained
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.checkpoints.interop import load_weights
from sr_lightning.errors import InputError
from sr_lightning.export import (
    GRAPHS,
    HALF_TOLERANCE,
    ONNX_PACKAGES,
    PACKAGES,
    SUFFIXES,
    compare,
    export,
    writers,
)
from sr_lightning.export.command import main
from sr_lightning.export.converted import Converted
from sr_lightning.export.writers import write_ncnn, write_onnx, write_torch_export, write_weights
from sr_lightning.inference import super_resolve
from sr_lightning.networks import EDSR, ESPCN, FSRCNN, SAFMN, SPAN, SRCNN, Compact, RRDBNet, SwinIR
from tests.helpers import CONF, ROOT, slow_except
from tests.networks.test_every_network import CHOICES, FORMS, NAMES, small
from tests.networks.test_published_networks import SMALL as PUBLISHED
from tests.networks.test_published_networks import perturbed

SCALE = 3
MISSING = [package for package in ONNX_PACKAGES if find_spec(package) is None]
with_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
with_ncnn = pytest.mark.skipif(
    any(find_spec(package) is None for package in PACKAGES["ncnn"]),
    reason="not installed: ncnn, pnnx (pip install --no-deps ncnn pnnx)",
)
TINY = {"scale": 2, "num_features": [4], "kernel_sizes": [3, 3]}


def network_class(name: str) -> str:
    """Class of the network of conf/model/NAME.yaml, its own or that of its first default."""
    cfg = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    return OmegaConf.select(cfg, "network._target_") or network_class(cfg.defaults[0])


OF_SIZES = {"safmn", "swinir_light"}  # depend on the size of the image, and are refused
# The first file of conf/model for each class: what is exported of the others differs in sizes alone
CLASSES = sorted(set({network_class(name): name for name in reversed(NAMES)}.values()) - OF_SIZES)
ONE_BLOCK = {"num_blocks": 1, "num_groups": 1}  # tracing takes time for each operation, and blocks have the same ones


@pytest.fixture
def write(tmp_path):
    """A function that writes a checkpoint in the format of train.py; returns the network and the file."""

    def write(cls, name="mine", averaged=False, **description):
        networks = {"network": untrained(cls, **description)}
        if averaged:
            networks["averaged"] = untrained(cls, **description)
        model = {"network": description | {"_target_": f"sr_lightning.networks.{cls.__name__}"}}
        protocol = {"_target_": "sr_lightning.metrics.Protocol", "border": 4}
        checkpoint = {
            "state_dict": {f"{of}.{key}": v for of, net in networks.items() for key, v in net.state_dict().items()},
            "hyper_parameters": {"name": name, "model": model, "protocol": protocol},
            "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": {"processed": 70}}}},
        }
        path = tmp_path / "run" / "checkpoints" / "best.ckpt"
        path.parent.mkdir(parents=True)
        torch.save(checkpoint, path)
        return networks["averaged" if averaged else "network"], path

    return write


def untrained(cls, **description):
    network = cls(**description)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network.eval()


def trained(name):
    config = {"model": {"network": {}}, "protocol": {}}
    return Trained(small(name, SCALE, **ONE_BLOCK), name, 0, config)


def write_graph(source, to, folder, **options):
    folder.mkdir()
    return writers.write(source, to, folder / f"a{SUFFIXES[to][0]}", "ours", **{"rgb": False, "half": False} | options)


def assert_same_on_any_shape(network, run):
    assert compare(network, run, "file") < 1e-5
    pixel = torch.rand(1, network.num_channels, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(run(pixel), network(pixel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", slow_except(sorted(set(CHOICES) - OF_SIZES)))
def test_every_network_is_exported_by_torch_export(name, tmp_path):
    source = trained(name)
    assert_same_on_any_shape(source.network, write_torch_export(source, tmp_path / "a.pt2"))
    targets = {node.target for node in torch.export.load(tmp_path / "a.pt2").graph.nodes}
    slow = {
        torch.ops.aten.conv_transpose2d.input,
        torch.ops.aten.batch_norm.default,
        torch.ops.aten._weight_norm.default,
    }
    assert not targets & slow


@with_onnx
@pytest.mark.parametrize("name", slow_except([*CLASSES, *FORMS], "espcn"))
def test_every_network_is_exported_to_onnx(name, tmp_path):
    import onnx

    source = trained(name)
    assert_same_on_any_shape(source.network, write_onnx(source, tmp_path / "a.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"ConvTranspose", "BatchNormalization", "ReduceL2"}
    assert "DepthToSpace" in operators or name == "rrdbnet"  # which repeats pixels


@with_ncnn
@pytest.mark.parametrize(
    "name", slow_except(["bicubic", "espcn", "fsrcnn", "plksr", "rcan", "span", "wdsr_b"], "espcn")
)
def test_networks_are_exported_to_ncnn(name, tmp_path):
    source = trained(name)
    assert compare(source.network, write_ncnn(source, tmp_path / "a.param"), "file") < 3e-5


@with_ncnn
@pytest.mark.parametrize("cls", [Compact, RRDBNet])
def test_ncnn_files_appear_alone_and_are_read_back(write, tmp_path, cls):
    network, ckpt = write(cls, scale=2, num_features=8, num_blocks=1)
    path, _ = export(ckpt, "ncnn", tmp_path / "out" / "a.param")
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.bin", "a.param"]
    found = load_any(path).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    lines = path.read_text().splitlines()  # with the names that Real-ESRGAN's programs look for
    assert lines[2].split()[-1] == "data" and any("output" in line.split() for line in lines)


@with_ncnn
def test_network_that_pnnx_or_ncnn_cannot_compute_is_refused_by_name(tmp_path, monkeypatch):
    class Odd(Compact):
        def forward(self, lr):
            return super().forward(torch.addcmul(lr, lr, lr))

    source = Trained(Odd(scale=2, num_features=4, num_blocks=1).eval(), "odd", 0, {"model": {}, "protocol": {}})
    monkeypatch.setattr(identify, "load_any", lambda *given: source)
    (tmp_path / "x.ckpt").touch()
    with pytest.raises(
        InputError, match=r"--to ncnn: Odd cannot be converted \(ncnn lacks a layer of it\)\. Try another"
    ):
        export(tmp_path / "x.ckpt", "ncnn", tmp_path / "a.param")
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


@with_onnx
@with_ncnn
@pytest.mark.parametrize("to", slow_except(["ncnn", "onnx"], "ncnn"))
def test_real_esrgans_x2_is_exported_for_odd_sides(write, tmp_path, to):
    _, ckpt = write(RRDBNet, scale=2, num_features=8, num_blocks=1, unshuffle=2)
    path, difference = export(ckpt, to, tmp_path / f"a{SUFFIXES[to][0]}")
    assert difference < 1e-5
    assert to == "onnx" or load_any(path).network.alignment == 2


@with_ncnn
@pytest.mark.parametrize(("cls", "to"), slow_except([(ESPCN, "ncnn"), (SRCNN, "torch_export")], (ESPCN, "ncnn")))
def test_luma_network_becomes_one_of_rgb_images_in_float16(write, tmp_path, cls, to):
    scale = {ESPCN: 5, SRCNN: 7}[cls]  # whose bicubic no test has computed before the network is traced
    settings = {"num_features": [4]} if cls is ESPCN else {"num_features": [4, 4]}
    sides = [3] * (len(settings["num_features"]) + 1)
    network, ckpt = write(cls, scale=scale, **settings, kernel_sizes=sides, global_skip=True)
    source = load_any(ckpt)
    exact = compare(Converted(network, rgb=True), write_graph(source, to, tmp_path / "a", rgb=True), "file")
    half = write_graph(source, to, tmp_path / "b", rgb=True, half=True)
    rounded = compare(Converted(network, rgb=True), half, "file", half=True)
    assert exact < 1e-5 < rounded
    lr = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        expected = super_resolve(network, lr)
        torch.testing.assert_close(Converted(network, rgb=True)(lr), expected, rtol=0, atol=0)
        torch.testing.assert_close(half(lr), expected, rtol=0, atol=HALF_TOLERANCE)


@with_onnx
@pytest.mark.slow
def test_command_writes_onnx_with_rgb_images_in_float16(write, tmp_path):
    import onnxruntime

    _, ckpt = write(ESPCN, **TINY)
    assert main(["-c", str(ckpt), "--to", "onnx", "-o", str(tmp_path / "a.onnx"), "--rgb", "--half"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (lr,), (sr,) = session.get_inputs(), session.get_outputs()
    assert (lr.type, lr.shape) == ("tensor(float16)", ["batch", 3, "height", "width"])
    assert (sr.type, sr.shape) == ("tensor(float16)", ["batch", 3, "2*height", "2*width"])
    assert "float16 in [0, 1], sr not clamped; RGB" in session.get_modelmeta().custom_metadata_map["images"]


@with_onnx
@pytest.mark.slow
def test_onnx_file_has_metadata_and_no_paths(write, tmp_path, capfd):
    import onnxruntime

    write(FSRCNN, scale=2, num_features=8, num_shrunk=4, num_mappings=1)
    assert main(["-c", str(tmp_path / "run"), "--to", "onnx", "-o", str(tmp_path / "new" / "a.onnx")]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"{tmp_path / 'new' / 'a.onnx'}, 0.0 MB: differs by at most ")
    assert out.count("\n") == 1 and not err
    session = onnxruntime.InferenceSession(tmp_path / "new" / "a.onnx", providers=["CPUExecutionProvider"])
    (lr,), (sr,) = session.get_inputs(), session.get_outputs()
    assert (lr.name, lr.shape) == ("lr", ["batch", 1, "height", "width"])
    assert (sr.name, sr.shape) == ("sr", ["batch", 1, "2*height", "2*width"])
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["name"], facts["step"], facts["scale"], facts["num_channels"]) == ("mine", "70", "2", "1")
    assert json.loads(facts["network"])["num_shrunk"] == 4
    assert facts["protocol"] == "y_shave-4_8bit_ssim-wang_lr-files"
    assert "65.481 R + 128.553 G + 24.966 B + 16" in facts["images"]
    assert str(ROOT).encode() not in (tmp_path / "new" / "a.onnx").read_bytes()
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.slow
def test_torch_export_file_runs_without_this_project(write, tmp_path):
    network, ckpt = write(ESPCN, **TINY, global_skip=True)
    export(ckpt, "torch_export", tmp_path / "a.pt2")
    lr = torch.rand(2, 1, 7, 5)
    torch.save(lr, tmp_path / "lr.pt")
    code = """
import json, sys, torch
files = {"sr_lightning.json": ""}
network = torch.export.load("a.pt2", extra_files=files).module()
torch.save(network(torch.load("lr.pt")), "sr.pt")
assert json.loads(files["sr_lightning.json"])["name"] == "mine"
assert "sr_lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "sr.pt"), network(lr), rtol=0, atol=1e-6)
    assert str(ROOT).encode() not in (tmp_path / "a.pt2").read_bytes()


@pytest.mark.parametrize(
    ("to", "layout", "suffix", "key"),
    [
        ("safetensors", "ours", ".safetensors", "blocks.0.conv1.weight"),
        ("safetensors", "basicsr", ".safetensors", "body.0.conv1.weight"),
        ("safetensors", "edsr-pytorch", ".safetensors", "body.0.body.0.weight"),
        ("torch", "basicsr", ".pth", "body.0.conv1.weight"),
        ("torch", "edsr-pytorch", ".pt", "body.0.body.0.weight"),
    ],
)
def test_weights_round_trip_in_the_names_of_each_project(write, tmp_path, to, layout, suffix, key):
    network, ckpt = write(EDSR, scale=2, num_features=8, num_blocks=1, residual_scale=0.5)
    path, difference = export(ckpt, to, tmp_path / f"a{suffix}", layout)
    assert difference == 0
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names, facts = file.keys(), file.metadata()
        assert (facts["name"], facts["layout"], facts["class"]) == ("mine", layout, "EDSR")
        assert json.loads(facts["network"])["residual_scale"] == 0.5
    else:
        content = torch.load(path, weights_only=True)
        names = content.get("params", content)
    assert key in names
    other = EDSR(scale=2, num_features=8, num_blocks=1)
    load_weights(other, path)
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layout_is_read_by_spandrel_and_here(spandrel, name, suffix, tmp_path):
    source = Trained(perturbed(name, 2), name, 0, {"model": {"network": {}}, "protocol": {}})
    path = tmp_path / f"a{suffix}"
    write_weights(source, path, "published")
    assert suffix == ".safetensors" or list(torch.load(path, weights_only=True)) == ["params_ema"]
    lr = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        expected = source.network(lr)
        theirs = spandrel.ModelLoader().load_from_file(path).model.eval()(lr.clone())
        assert torch.equal(load_any(path).network(lr), expected)
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-5 * expected.abs().max().clamp(min=1).item())


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Compact, {"global_skip": True}, "no published Compact has global_skip=true"),
        (RRDBNet, {"scale": 3, "growth": 4}, "no published RRDBNet has scale=3, growth=4"),
        (SPAN, {"num_blocks": 3, "num_channels": 1}, "no published SPAN has num_channels=1, num_blocks=3"),
        (EDSR, {"num_blocks": 1}, r"layout='published' has no EDSR; choose ours or one of .*Compact \(published\)"),
    ],
)
def test_network_without_a_published_form_is_refused_by_its_settings(write, tmp_path, cls, settings, message):
    _, ckpt = write(cls, **{"scale": 2, "num_features": 8} | settings)
    with pytest.raises(InputError, match=message):
        export(ckpt, "torch", tmp_path / "a.pth", "published")
    assert not (tmp_path / "a.pth").exists()


def test_averaged_weights_are_exported(write, tmp_path):
    averaged, ckpt = write(ESPCN, averaged=True, **TINY)
    path, _ = export(ckpt, "safetensors", tmp_path / "a.safetensors")
    other = ESPCN(**TINY)
    load_weights(other, path)
    assert torch.equal(other.convs[0].weight, averaged.convs[0].weight)


def test_default_file_name_is_that_of_the_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, ckpt = write(ESPCN, name="a b/c", **TINY)
    assert export(ckpt, "safetensors").path.name == "a_b_c_x2.safetensors"
    assert (tmp_path / "a_b_c_x2.safetensors").is_file()


@pytest.mark.parametrize("network", [SAFMN, SwinIR])
def test_network_that_depends_on_the_size_of_the_image_is_refused_by_name(write, tmp_path, network):
    _, ckpt = write(network, scale=2, num_features=12)
    for to in GRAPHS:
        with pytest.raises(
            InputError, match=f"--to {to}: {network.__name__} cannot be converted for images of any size"
        ):
            export(ckpt, to)
    assert export(ckpt, "safetensors", tmp_path / "x.safetensors").difference == 0


def test_command_says_what_it_does_while_it_works(write, tmp_path, caplog, capsys):
    _, ckpt = write(ESPCN, **TINY)
    assert main(["-c", str(ckpt), "--to", "safetensors", "-o", str(tmp_path / "x.safetensors")]) == 0
    assert caplog.messages[0].startswith("exporting mine x2, ") and caplog.messages[0].endswith(f"from {ckpt}")
    assert caplog.messages[1:] == ["comparing its output with the network's on 3 shapes"]
    assert len(capsys.readouterr().out.splitlines()) == 1  # the file, for a pipe


@pytest.mark.parametrize("spoil", [lambda sr: sr + 3e-4, lambda sr: sr * torch.nan, lambda sr: sr[..., 1:]])
def test_differing_output_is_an_error_and_keeps_the_old_file(write, tmp_path, monkeypatch, spoil):
    def write_spoilt(trained, path, layout, half):
        path.write_text("draft")
        return lambda lr: spoil(trained.network(lr))

    monkeypatch.setattr(writers, "write_weights", write_spoilt)
    _, ckpt = write(ESPCN, **TINY)
    target = tmp_path / "out" / "a.safetensors"
    with pytest.raises(InputError, match=r"a\.safetensors was not written: for an image \(1, 1, 17, 23\) its output"):
        export(ckpt, "safetensors", target)
    assert not target.parent.exists()
    target.parent.mkdir()
    target.write_text("old")
    with pytest.raises(InputError):
        export(ckpt, "safetensors", target)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--to", "onnx", "-o", "a.pt", "--layout", "basicsr"],
            ["the name must end in .onnx", "--layout basicsr renames"],
        ),
        (["--to", "torch"], ["add --layout published, basicsr or edsr-pytorch"]),
        (["--to", "torch", "--layout", "basicsr"], ["there is no file or folder none.ckpt"]),
        (["--to", "safetensors", "-o", "."], ["-o . is a directory"]),
        (["--to", "torch_export", "-o", f"{__file__}/a.pt2"], [f"/a.pt2: {__file__} is a file; give a folder"]),
        (["--to", "safetensors", "--rgb", "--half"], ["--rgb: only with --to onnx, ncnn, torch_export"]),
    ],
)
def test_wrong_options_are_all_named(words, messages, capsys):
    assert main(["-c", "none.ckpt", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(message in error for message in messages)


def test_missing_packages_are_named_with_the_pip_command(monkeypatch, capsys):
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name != "onnx" else True)
    assert main(["-c", "none.ckpt", "--to", "onnx"]) == 1
    assert "pip install onnxscript onnxruntime\n" in capsys.readouterr().err


def test_network_missing_in_the_other_project_is_refused(write, tmp_path):
    _, ckpt = write(ESPCN, **TINY)
    with pytest.raises(InputError, match="layout='basicsr' has no ESPCN"):
        export(ckpt, "torch", tmp_path / "a.pth", "basicsr")
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(("error", "is_accepted"), [(0.003, True), (0.02, False), (torch.nan, False)])
def test_float16_may_differ_by_a_grey_level_in_the_root_mean_square(error, is_accepted):
    network = ESPCN(**TINY).eval()

    def run(lr):
        sr = network(lr)
        sr[..., 0, 0] += 0.01  # a single pixel with more
        return sr + error

    if is_accepted:
        assert compare(network, run, "file", half=True) > 0.012
    else:
        with pytest.raises(InputError, match="its output differs"):
            compare(network, run, "file", half=True)


def test_unwritable_file_is_named(write, tmp_path):
    _, ckpt = write(ESPCN, **TINY)
    loop = tmp_path / "a.safetensors"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="cannot be written"):
        export(ckpt, "safetensors", loop)


def test_help_has_an_example_and_imports_no_torch():
    code = """
import runpy, sys
sys.argv = ["export", "--help"]
try:
    runpy.run_module("sr_lightning.export", run_name="__main__")
except SystemExit:
    assert not {"torch", "hydra", "onnx"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sr-export -c outputs/RUN --to onnx" in done.stdout
