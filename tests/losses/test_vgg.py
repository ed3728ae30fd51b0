"""VGGLoss with random weights and with files made here: torchvision's file is too large to download in a test."""

import copy
import hashlib
import io
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.losses import VGGLoss
from sr_lightning.losses import vgg as vgg_module

# Configuration E of torchvision's vgg19: numbers are channels, M is a pooling
LAYOUT = "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M"
CONVOLUTIONS = {
    "1_1": 0, "1_2": 2,
    "2_1": 5, "2_2": 7,
    "3_1": 10, "3_2": 12, "3_3": 14, "3_4": 16,
    "4_1": 19, "4_2": 21, "4_3": 23, "4_4": 25,
    "5_1": 28, "5_2": 30, "5_3": 32, "5_4": 34,
}  # fmt: skip
SR, HR = torch.rand(2, 2, 3, 32, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def deep():
    """SRGAN's loss with a random VGG19."""
    return VGGLoss({"5_4": 1.0}, weights="random")


def plain_features(weights, image, stop):
    """Compute torchvision's vgg19().features[: stop + 1] from a state dict."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = (image - mean) / std
    layers = []
    for word in LAYOUT.split():
        layers += ["pool"] if word == "M" else ["conv", "relu"]
    for index, layer in enumerate(layers[: stop + 1]):
        if layer == "conv":
            x = F.conv2d(x, weights[f"{index}.weight"], weights[f"{index}.bias"], padding=1)
        else:
            x = x.clamp(min=0) if layer == "relu" else F.max_pool2d(x, 2)
    return x


def official_file(path, depth=3, legacy=True, **changes):
    """Write weights with torchvision's names and a classifier, by default in the real file's legacy format."""
    torch.manual_seed(1)
    weights = {f"features.{k}": v for k, v in vgg_module.vgg19_features(depth).state_dict().items()}
    weights |= {"classifier.0.weight": torch.zeros(2, 2)} | changes
    torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    return weights


def test_convolutions_have_torchvisions_indices():
    assert vgg_module.vgg19_convolutions() == CONVOLUTIONS
    layers = vgg_module.vgg19_features(37)
    assert len(layers) == 37
    for name, index in CONVOLUTIONS.items():
        assert isinstance(layers[index], nn.Conv2d), name
        assert isinstance(layers[index + 1], nn.ReLU), name
    assert [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)] == [4, 9, 18, 27, 36]
    assert (
        sum(p.numel() for p in layers.parameters()) == 20_024_384
    )  # number of parameters of torchvision's vgg19().features


@pytest.mark.parametrize(("before_relu", "stop"), [(False, 35), (True, 34)])
def test_5_4_is_srgans_content_loss_after_or_before_the_relu(deep, before_relu, stop):
    loss = VGGLoss({"5_4": 1.0}, weights="random", before_relu=True) if before_relu else deep
    assert len(loss.vgg) == stop + 1
    one, other = (plain_features(loss.vgg.state_dict(), image, stop) for image in (SR, HR))
    assert (one.min() < 0) == before_relu
    expected = ((one / 12.75 - other / 12.75) ** 2).mean().item()
    assert loss(SR, HR).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-5


@pytest.mark.parametrize("before_relu", [False, True])
def test_layers_are_summed_by_weight_in_any_order(before_relu):
    layers = {"3_1": 0.5, "1_2": 2.0, "2_2": 1.0}
    loss = VGGLoss(layers, weights="random", before_relu=before_relu, feature_scale=0.5, criterion=nn.L1Loss())
    weights = loss.vgg.state_dict()
    expected = 0.0
    for name, weight in layers.items():
        stop = CONVOLUTIONS[name] + (not before_relu)
        one, other = (plain_features(weights, image, stop) for image in (SR, HR))
        expected += weight * 0.5 * (one - other).abs().mean().item()
    assert loss(SR, HR).item() == pytest.approx(expected, rel=1e-4)
    assert len(loss.vgg) == CONVOLUTIONS["3_1"] + (1 if before_relu else 2)


def test_the_gradient_reaches_sr_and_neither_hr_nor_vgg(deep):
    sr, hr = SR.clone().requires_grad_(), HR.clone().requires_grad_()
    deep(sr, hr).backward()
    assert (sr.grad != 0).float().mean() > 0.99
    assert hr.grad is None
    assert all(p.grad is None and not p.requires_grad for p in deep.vgg.parameters())


def test_the_gradient_is_correct():
    loss = VGGLoss({"1_1": 1.0}, weights="random", before_relu=True, feature_scale=1).double()
    sr, hr = SR[:1, :, :3, :3].double().requires_grad_(), HR[:1, :, :3, :3].double()
    loss(sr, hr).backward()
    step = torch.zeros_like(sr)
    step[0, 1, 2, 0] = 1e-3
    with torch.no_grad():
        slope = (loss(sr + step, hr) - loss(sr - step, hr)) / 2e-3
    assert sr.grad[0, 1, 2, 0].item() == pytest.approx(slope.item(), rel=1e-2)


def test_vgg_is_not_registered_but_moves_with_the_loss_and_stays_in_evaluation_mode(deep):
    module = nn.Sequential(copy.deepcopy(deep))
    assert not module.state_dict()
    assert not list(module.parameters())
    module.load_state_dict({}, strict=True)
    module.train().requires_grad_(True)
    assert not module[0].vgg.training
    assert not any(p.requires_grad for p in module[0].vgg.parameters())
    module.to("meta")
    assert {t.device.type for t in [*module[0].vgg.parameters(), module[0].mean]} == {"meta"}
    assert deep.vgg[0].weight.device.type == "cpu"


def test_one_channel_is_repeated_to_three():
    loss = VGGLoss({"1_2": 1.0}, weights="random")
    gray = SR[:, :1], HR[:, :1]
    assert torch.equal(loss(*gray), loss(*(image.repeat(1, 3, 1, 1) for image in gray)))


def test_features_use_autocast_and_the_criterion_gets_float32():
    seen = []

    class Spy(nn.L1Loss):
        def forward(self, one, other):
            seen.extend([one.dtype, other.dtype])
            return super().forward(one, other)

    loss = VGGLoss({"2_2": 1.0}, weights="random", criterion=Spy())
    exact = loss(SR, HR)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(SR, HR)
        assert loss.vgg[:1](SR).dtype == torch.bfloat16
    assert seen == [torch.float32] * 4
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert rounded != exact


def test_random_weights_are_reproducible_leave_the_global_generator_alone_and_cause_a_warning(caplog):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with caplog.at_level(logging.WARNING):
        one, other = (VGGLoss({"2_1": 1.0}, weights="random") for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.vgg.parameters(), other.vgg.parameters(), strict=True))
    assert caplog.text.count("uses an untrained VGG19: for smoke tests only") == 2


def test_random_weights_keep_the_scale_of_features_in_all_layers(deep):
    size = deep.features(HR)[0].square().mean().sqrt().item() * 12.75
    assert 0.2 < size < 5


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_with_torchvisions_names_is_read_without_its_classifier(tmp_path, legacy):
    weights = official_file(tmp_path / "vgg19.pth", legacy=legacy)
    loss = VGGLoss({"1_2": 1.0}, weights=str(tmp_path / "vgg19.pth"), before_relu=True)
    assert loss.vgg.state_dict().keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for key, value in loss.vgg.state_dict().items():
        assert torch.equal(value, weights[f"features.{key}"])
    expected = (plain_features(loss.vgg.state_dict(), SR, 2) - plain_features(loss.vgg.state_dict(), HR, 2)) / 12.75
    assert loss(SR, HR).item() == pytest.approx(expected.square().mean().item(), rel=1e-4)


def test_half_precision_weights_are_converted_to_float32(tmp_path):
    half = {k: v.half() for k, v in official_file(tmp_path / "vgg19.pth").items()}
    torch.save(half, tmp_path / "vgg19.pth")
    assert VGGLoss({"1_1": 1.0}, weights=str(tmp_path / "vgg19.pth")).vgg[0].weight.dtype == torch.float32


def test_all_missing_keys_and_wrong_shapes_are_named(tmp_path):
    official_file(tmp_path / "vgg19.pth", **{"features.0.bias": torch.zeros(7), "features.2.bias": None})
    with pytest.raises(InputError) as caught:
        VGGLoss({"2_1": 1.0}, weights=str(tmp_path / "vgg19.pth"))
    message = str(caught.value)
    assert "features.0.bias is (7,), expected (64,)" in message
    for key in ("features.2.bias", "features.5.weight", "features.5.bias"):
        assert f"{key} is missing" in message
    assert "features.0.weight" not in message
    assert "vgg19-dcbb9e9d.pth" in message


@pytest.mark.parametrize(
    "content", [b"no weights", b"", b"PK\x03\x04", bytes(100)], ids=["text", "empty", "zip", "zeros"]
)
def test_a_file_without_weights_is_refused(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"a.pth (cannot be read|is empty|is no file of weights).*weights=download"):
        VGGLoss({"1_1": 1.0}, weights=str(tmp_path / "a.pth"))


def test_a_pickled_network_and_a_list_are_refused(tmp_path):
    torch.save(vgg_module.vgg19_features(2), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth is damaged, or holds more than tensors.*weights=download"):
        VGGLoss({"1_1": 1.0}, weights=str(tmp_path / "a.pth"))
    torch.save([torch.zeros(2)], tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b.pth holds a list instead of weights by name"):
        VGGLoss({"1_1": 1.0}, weights=str(tmp_path / "b.pth"))


@pytest.mark.parametrize("weights", ["nowhere.pth", "imagenet", "."])
def test_a_missing_file_is_refused_with_the_alternatives(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"weights={weights}: file not found.*weights=download, or weights=random"):
        VGGLoss({"1_1": 1.0}, weights=weights)


@pytest.fixture
def published(server, monkeypatch):
    """Serve a small file instead of the official one; return its content."""
    buffer = io.BytesIO()
    official_file(buffer)
    content = buffer.getvalue()
    server.files["/vgg19-dcbb9e9d.pth"] = content
    monkeypatch.setattr(vgg_module, "URL", f"{server.url}/vgg19-dcbb9e9d.pth")
    monkeypatch.setattr(vgg_module, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(vgg_module, "SIZE", len(content))
    return content


def files_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_official_file_is_downloaded_once(server, published, tmp_path):
    losses = [VGGLoss({"1_2": 1.0}, weights="download", cache_dir=tmp_path / "new" / "cache") for _ in range(2)]
    assert len(server.asked) == 1
    assert files_in(tmp_path / "new" / "cache") == ["vgg19-dcbb9e9d.pth"]
    assert losses[0](SR, HR) == losses[1](SR, HR) > 0
    key = "features.2.weight"
    assert torch.equal(losses[0].vgg[2].weight, torch.load(io.BytesIO(published), weights_only=True)[key])


def test_an_interrupted_download_is_resumed(server, published, tmp_path):
    server.drop_after = [1000] + [0] * 100
    with pytest.raises(InputError, match="The 1000 bytes received are kept for the next run"):
        VGGLoss({"1_2": 1.0}, weights="download", cache_dir=tmp_path)
    assert files_in(tmp_path) == ["vgg19-dcbb9e9d.pth.part"]
    server.drop_after, server.asked = [], []
    VGGLoss({"1_2": 1.0}, weights="download", cache_dir=str(tmp_path))
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-"]
    assert (tmp_path / "vgg19-dcbb9e9d.pth").read_bytes() == published


def test_a_file_with_a_wrong_digest_is_refused_and_deleted(server, published, tmp_path, monkeypatch):
    monkeypatch.setattr(vgg_module, "SHA256", "dcbb9e9d" + "0" * 56)
    with pytest.raises(InputError, match=r"expected sha256 dcbb9e9d0.*by hand to .*vgg19-dcbb9e9d.pth"):
        VGGLoss({"1_2": 1.0}, weights="download", cache_dir=tmp_path)
    assert files_in(tmp_path) == []


def test_a_download_needs_a_cache_dir():
    with pytest.raises(InputError, match="weights=download needs cache_dir"):
        VGGLoss({"1_2": 1.0}, weights="download")


def test_the_digest_matches_the_file_name():
    assert vgg_module.URL.endswith(f"/vgg19-{vgg_module.SHA256[:8]}.pth")
    assert len(vgg_module.SHA256) == 64


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"5_5": 1, "2_2": 1, "6_1": 1}, "VGG19 has no convolution 5_5, 6_1; choose from 1_1, 1_2, 2_1.*5_4"),
        ({"conv5_4": 1, 0: 1}, "no convolution conv5_4, 0; choose from"),
        ({"5_4": -1, "1_1": "a"}, "VGGLoss.layers: weights must be numbers >= 0, got 5_4: -1, 1_1: a"),
        ({"5_4": 0}, "VGGLoss.layers: all weights are 0"),
        ({}, "VGGLoss.layers: all weights are 0"),
    ],
)
def test_all_unknown_layers_and_invalid_weights_are_named(layers, message):
    with pytest.raises(InputError, match=message):
        VGGLoss(layers, weights="random")


def test_54_is_read_as_5_4_and_layers_with_weight_0_are_dropped():
    loss = VGGLoss({22: 1, "54": 0}, weights="random")
    assert len(loss.vgg) == 9
    assert torch.equal(loss(SR, HR), VGGLoss({"2_2": 1}, weights="random")(SR, HR))


def test_an_image_too_small_for_the_poolings_is_refused(deep):
    assert deep(SR[..., :16, :16], HR[..., :16, :16]) > 0
    with pytest.raises(InputError, match="VGGLoss was given images of 15x40, its layers need 16x16"):
        deep(SR[..., :15, :], HR[..., :15, :])
