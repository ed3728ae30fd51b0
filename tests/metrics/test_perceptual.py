"""DISTS and FID with made weights, compared with their formulas and with numbers of torch-fidelity's network."""

import hashlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sr_lightning.color import quantize, rgb_to_y
from sr_lightning.degradations import downscale, upscale
from sr_lightning.errors import InputError
from sr_lightning.inference import with_chroma
from sr_lightning.metrics import perceptual
from sr_lightning.metrics.dists import DISTS
from sr_lightning.metrics.extra import dists, select_measures
from sr_lightning.metrics.inception import InceptionV3
from sr_lightning.metrics.perceptual import FID, PublishedWeights, dists_network, inception
from sr_lightning.metrics.protocol import Protocol

VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
VGG16 |= {17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


def photo(seed, channels=3):
    coarse = torch.rand(1, channels, 8, 10, generator=torch.Generator().manual_seed(seed))
    return quantize(F.interpolate(coarse, (48, 60), mode="bicubic"))


@pytest.fixture(scope="module")
def vgg16():
    """Weights by the names of torchvision's vgg16, with a part of its classifier."""
    generator = torch.Generator().manual_seed(0)
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for index, (out, into) in VGG16.items():
        weights[f"features.{index}.weight"] = torch.randn(out, into, 3, 3, generator=generator) / (3 * into**0.5)
        weights[f"features.{index}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return weights


@pytest.fixture
def dists_of_made_weights(monkeypatch, vgg16):
    network = DISTS(vgg16)
    monkeypatch.setattr(perceptual, "dists_network", lambda: network)


def dists_by_its_formula(x, y, vgg16, alpha, beta):
    """Equations 5 to 8 of the paper (2004.07728), one channel of one layer at a time."""
    blur = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]) / 4  # a Hann window of five without its zeros

    def layers(image):
        found = [image]
        image = (image - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(1, 3, 1, 1)
        for index in VGG16:
            if index in (5, 10, 17, 24):
                found.append(image)
                kernel = torch.tensor(blur, dtype=torch.float32).expand(image.shape[1], 1, 3, 3)
                image = F.conv2d(image**2, kernel, stride=2, padding=1, groups=image.shape[1]).add(1e-12).sqrt()
            weight, bias = (vgg16[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
            image = F.relu(F.conv2d(image, weight, bias, padding=1))
        return [*found, image]

    pairs = [
        (a.double().flatten(1)[channel], b.double().flatten(1)[channel])
        for a, b in ((a[0], b[0]) for a, b in zip(layers(x), layers(y), strict=True))
        for channel in range(len(a))
    ]
    total = alpha.sum() + beta.sum()
    similarity = 0.0
    for (a, b), structure, texture in zip(pairs, beta.flatten(), alpha.flatten(), strict=True):
        means, covariance = (a.mean(), b.mean()), ((a - a.mean()) * (b - b.mean())).mean()
        luminance = (2 * means[0] * means[1] + 1e-6) / (means[0] ** 2 + means[1] ** 2 + 1e-6)
        contrast = (2 * covariance + 1e-6) / (a.var(correction=0) + b.var(correction=0) + 1e-6)
        similarity += (texture * luminance + structure * contrast) / total
    return 1 - similarity.item()


def test_dists_is_that_of_the_paper_on_8_bit_rgb_without_the_border(dists_of_made_weights, vgg16):
    sr, hr = photo(0) + 0.02, photo(1)
    network = perceptual.dists_network()
    inner = [quantize(image)[..., 2:-2, 2:-2] for image in (sr, hr)]
    expected = dists_by_its_formula(*inner, vgg16, network.alpha, network.beta)
    value = dists(sr, downscale(hr, 2), hr, 2, Protocol())
    assert value.tolist() == pytest.approx([expected], abs=1e-5)
    assert 0.05 < expected < 1
    assert (network.alpha.sum() + network.beta.sum()).item() == pytest.approx(1, abs=0.01)  # the published ones


def test_dists_of_a_batch_is_that_of_its_images_and_0_for_copies(dists_of_made_weights):
    sr, hr = torch.cat([photo(0), photo(1)]), torch.cat([photo(0), photo(2)])
    values = dists(sr, downscale(hr, 2), hr, 2, Protocol())
    assert values.dtype == torch.float64 and values[0].item() == pytest.approx(0, abs=1e-6)
    alone = dists(sr[1:], downscale(hr[1:], 2), hr[1:], 2, Protocol())
    assert values[1].item() == pytest.approx(alone.item(), abs=1e-5)


def test_dists_gets_bicubic_chroma_for_luma_and_three_channels_of_gray(dists_of_made_weights):
    hr = photo(0)
    lr = downscale(hr, 2)
    luma = rgb_to_y(upscale(lr, 2))
    values = [dists(sr, lr, hr, 2, Protocol()).item() for sr in (luma, with_chroma(luma, lr, 2))]
    assert values[0] == values[1] > 0
    gray = photo(1, channels=1)
    colour = gray.expand(1, 3, -1, -1)
    lr = downscale(gray, 2)
    assert dists(upscale(lr, 2), lr, gray, 2, Protocol()).item() == pytest.approx(
        dists(upscale(lr, 2).expand(1, 3, -1, -1), lr.expand(1, 3, -1, -1), colour, 2, Protocol()).item()
    )


def made_inception():
    """Weights by name, which do not depend on the order of the layers."""
    generator = torch.Generator().manual_seed(0)

    def value(name, shape):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(0)
        x = torch.rand(shape, generator=generator)
        if name.endswith("conv.weight"):
            return (x - 0.5) * (24 / x[0].numel()) ** 0.5
        return x + 0.5 if name.endswith(("running_var", "bn.weight")) else 0.2 * (x - 0.5)

    with torch.device("meta"):
        shapes = {name: each.shape for name, each in InceptionV3().state_dict().items()}
    return {name: value(name, shape) for name, shape in sorted(shapes.items())}


def test_features_are_those_of_torch_fidelity_resized_as_torchmetrics_does():
    with torch.device("meta"):
        network = InceptionV3()
    weights = made_inception()
    network.load_state_dict(weights, assign=True)
    images = torch.rand(2, 3, 120, 150, generator=torch.Generator().manual_seed(1)).mul(255).byte()
    with torch.inference_mode():
        features = network.eval()(images)
    assert features.shape == (2, 2048)
    # `NoTrainInceptionV3` of torchmetrics 1.9 with torch-fidelity 0.4 and these weights
    expected = [
        [5.7665910720825195, 0.3846847712993622, 16.244606018066406, 0.17567984759807587, 0.0],
        [5.753632545471191, 0.2685064375400543, 16.154827117919922, 0.16645558178424835, 0.0],
    ]
    torch.testing.assert_close(features[:, [0, 500, 1000, 1500, 2047]], torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_inception_has_the_tensors_of_the_published_file():
    weights = made_inception()
    assert len(weights) == 564  # the file has two more, of the classifier
    learned = sum(value.numel() for name, value in weights.items() if name.endswith(("weight", "bias")))
    assert learned == 21_785_568  # torchvision's inception_v3 without its classifiers
    assert weights["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert weights["Mixed_6c.branch7x7dbl_2.bn.running_var"].shape == (160,)


def test_fid_is_the_distance_of_two_normal_distributions(small_fid):
    measure, features = FID(), {"sr": [], "hr": []}
    for seed in range(5):
        hr = photo(seed)
        lr = downscale(hr, 2)
        sr = upscale(lr, 2) * 0.9 + 0.02
        measure.update(sr, lr, hr, 2, Protocol())
        for name, image in (("sr", sr), ("hr", hr)):
            features[name].append(small_fid(quantize(image)[..., 2:-2, 2:-2] * 255)[0].double())
    a, b = (torch.stack(each) for each in features.values())
    difference = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((each - each.mean(0)) / 2 for each in (a, b))  # divided by the root of n - 1
    overlap = torch.linalg.matrix_norm(a @ b.T, "nuc")  # the trace of the root of the product of the covariances
    expected = (difference + a.square().sum() + b.square().sum() - 2 * overlap).item()
    assert measure.compute() == pytest.approx(expected, abs=1e-6)
    assert expected > 1e-3


def test_fid_of_equal_sets_is_0(small_fid):
    measure = FID()
    for seed in range(3):
        measure.update(photo(seed), downscale(photo(seed), 2), photo(seed), 2, Protocol())
    assert measure.compute() == pytest.approx(0, abs=1e-6)


# --- weights


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Let measures look for weights in an empty folder."""
    monkeypatch.setenv("SR_CACHE_DIR", str(tmp_path / "cache"))
    for network in (dists_network, inception):
        network.cache_clear()
    yield tmp_path / "cache"
    for network in (dists_network, inception):
        network.cache_clear()


def serve(server, monkeypatch, name, weights, path):
    torch.save(weights, path)
    content = path.read_bytes()
    of = getattr(perceptual, name)
    file = of.url.rpartition("/")[2]
    server.files[f"/{file}"] = content
    served = PublishedWeights(of.measure, f"{server.url}/{file}", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(perceptual, name, served)
    return file


def test_weights_are_downloaded_once_when_a_measure_is_selected(empty_cache, server, monkeypatch, vgg16, tmp_path):
    file = serve(server, monkeypatch, "VGG16", vgg16, tmp_path / "vgg16.pth")
    for _ in range(2):
        dists_network.cache_clear()
        assert list(select_measures(["dists"])) == ["dists"]
    assert len(server.asked) == 1 and (empty_cache / file).is_file()
    assert torch.equal(dists_network().stage5[5].weight, vgg16["features.28.weight"])
    other = {"fc.bias": torch.zeros(1008)} | made_inception()
    serve(server, monkeypatch, "INCEPTION", other, tmp_path / "inception.pth")
    assert select_measures(["fid"]) == {"fid": FID}
    assert torch.equal(inception().Mixed_5b.branch1x1.conv.weight, other["Mixed_5b.branch1x1.conv.weight"])


@pytest.mark.parametrize("measure", ["dists", "fid"])
def test_missing_weights_are_one_line_with_the_ways_out(empty_cache, server, monkeypatch, measure):
    name = {"dists": "VGG16", "fid": "INCEPTION"}[measure]
    of = getattr(perceptual, name)
    file = of.url.rpartition("/")[2]
    monkeypatch.setattr(perceptual, name, PublishedWeights(measure, f"{server.url}/{file}", of.sha256, of.size))
    with pytest.raises(InputError) as caught:
        select_measures([measure])
    message = str(caught.value)
    assert message.startswith(f"{measure} needs weights, or leave it out of measures: {server.url}/{file}: ")
    assert f"by hand to {empty_cache / file} and run again" in message and "\n" not in message


def test_published_files_are_the_expected_ones():
    """The names of both files have the first digits of their SHA-256."""
    for weights in (perceptual.VGG16, perceptual.INCEPTION):
        assert weights.url.removesuffix(".pth").endswith(weights.sha256[:8])
