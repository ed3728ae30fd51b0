"""load() and Upscaler: the result has the type of the input."""

import copy
import logging
import pickle
import subprocess
import sys
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sr_lightning import load
from sr_lightning.degradations.bicubic import resize
from sr_lightning.errors import InputError
from sr_lightning.inference import super_resolve
from sr_lightning.networks import EDSR, ESPCN, RCAN, WDSR, Bicubic
from sr_lightning.upscale import tiles, upscaler
from sr_lightning.upscale.upscaler import Upscaler, _strips
from sr_lightning.utils.cuda_graphs import Replays
from sr_lightning.utils.devices import select_device
from tests.fake_graph import FakeGraph
from tests.helpers import ROOT, use_times

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)).resize((41, 33), Image.Resampling.BICUBIC)
)
INNER = (slice(6, -6), slice(6, -6))  # Pillow renormalises at the border, where MATLAB and this project replicate


@pytest.fixture(scope="module")
def bicubic():
    """An upscaler with small tiles, so that every result is assembled from several."""
    return Upscaler(Bicubic(scale=2), "bicubic", tile=16, device="cpu")


def pillows(array):
    """Enlarge (H, W) or (H, W, C) with Pillow, in float."""
    planes = array[..., None] if array.ndim == 2 else array
    height, width = (2 * side for side in array.shape[:2])
    enlarged = [
        np.asarray(Image.fromarray(planes[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(planes.shape[2])
    ]
    return np.stack(enlarged, axis=-1).reshape(height, width, *array.shape[2:])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pil_image_is_enlarged_as_by_pillow(mode, bicubic):
    image = Image.fromarray(SMOOTH).convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(SMOOTH[..., 3].copy()))
    result = bicubic.upscale(image)
    assert (result.mode, result.size) == (mode, (82, 66))
    expected = pillows(np.asarray(image)).clip(0, 255)
    assert np.abs(np.asarray(result)[INNER] - expected[INNER]).max() < 0.52


def test_16_bit_image_keeps_its_precision(bicubic):
    gray = (SMOOTH[..., 0] * 257.0 + RNG.integers(-100, 100, SMOOTH.shape[:2])).clip(0, 65535).astype(np.uint16)
    result = bicubic.upscale(Image.fromarray(gray))
    assert result.mode == "I;16"
    expected = pillows(gray).clip(0, 65535)
    assert np.abs(np.asarray(result).astype(float)[INNER] - expected[INNER]).max() < 1
    assert (bicubic.upscale(gray) == np.asarray(result)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(82, 66), (60, 50), (41, 60), (123, 99), (164, 132)])
def test_size_is_reached_by_passes_and_matlabs_bicubic(size, dtype, bicubic):
    array = (SMOOTH / 255 * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    large = bicubic.upscale(array)
    if size[0] > 82:
        large = bicubic.upscale(large)
    expected = resize(torch.from_numpy(large).permute(2, 0, 1), size[1], size[0]).permute(1, 2, 0).numpy()
    shares = []
    result = bicubic.upscale(array, shares.append, size)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected.clip(0, 1) if dtype == np.float32 else expected, rtol=0, atol=1e-6)
    assert sum(shares) == pytest.approx(1)


def test_tiles_that_end_at_different_rows_are_joined_to_strips():
    image = torch.arange(6 * 5).view(1, 6, 5)
    boxes = [(0, 4, 0, 2), (0, 2, 2, 5), (2, 4, 2, 5), (4, 6, 0, 5)]  # the second tile was split
    parts = [(slice(a, b), slice(c, d), image[:, a:b, c:d]) for a, b, c, d in boxes]
    strips = list(_strips(parts, 5))
    assert [strip.shape[1] for strip in strips] == [2, 2, 2]
    assert torch.equal(torch.cat(strips, dim=1), image)


def test_images_and_tensors_have_the_size_too(bicubic):
    photo = Image.fromarray(SMOOTH)
    photo.info["dpi"] = (300, 300)
    result = bicubic.upscale(photo, size=(60, 50))
    assert (result.mode, result.size, result.info["dpi"]) == ("RGBA", (60, 50), (300, 300))
    assert (np.asarray(result) == bicubic.upscale(SMOOTH, size=(60, 50))).all()
    batch = torch.from_numpy(SMOOTH.copy()).permute(2, 0, 1)[None]
    assert torch.equal(bicubic.upscale(batch, size=(60, 50))[0].permute(1, 2, 0), torch.from_numpy(np.array(result)))
    with pytest.raises(InputError, match=r"size=\(40, 60\): smaller than the image of 41x33"):
        bicubic.upscale(photo, size=(40, 60))


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
def test_array_keeps_its_type(channels, dtype, bicubic):
    levels = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    array = (SMOOTH[..., 0] if channels is None else SMOOTH[..., :channels]) / 255 * levels
    array = array.round().astype(dtype) if levels > 1 else array.astype(dtype)
    result = bicubic.upscale(array)
    assert type(result) is np.ndarray
    assert result.dtype == dtype
    assert result.shape == (66, 82, *array.shape[2:])
    expected = pillows(array).clip(0, levels)
    difference = np.abs(result.astype(float)[INNER] - expected[INNER]).max()
    assert difference < {1: 1e-3 if dtype == np.float16 else 1e-5, 255: 0.52, 65535: 0.6}[levels]


@pytest.mark.parametrize("shape", [(3, 33, 41), (1, 33, 41), (2, 3, 33, 41), (2, 4, 33, 41)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64, torch.bfloat16])
def test_tensor_keeps_its_type(shape, dtype, bicubic):
    levels = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(levels).to(dtype)
    result = bicubic.upscale(image)
    assert result.dtype == dtype
    assert result.shape == (*shape[:-2], 66, 82)
    for one, enlarged in zip(image.reshape(-1, *shape[-3:]), result.reshape(-1, shape[-3], 66, 82), strict=True):
        expected = Bicubic(scale=2)(one[:, None].float() / levels).clamp(0, 1)[:, 0] * levels
        # 0.5 for rounding; colour goes to YCbCr and back, in float32
        tolerance = {255: 0.51, 65535: 0.6, 1: 4e-3 if dtype == torch.bfloat16 else 1e-5}[levels]
        assert (enlarged.double() - expected).abs().max() <= tolerance


def test_result_is_usable_in_training(bicubic):
    image = torch.rand(3, 20, 20, requires_grad=True)
    result = bicubic.upscale(image)
    weight = torch.ones(1, requires_grad=True)
    (result * weight).sum().backward()
    assert weight.grad is not None
    assert image.grad is None


@pytest.mark.parametrize("view", [lambda a: a[::-1, ::2], lambda a: a.astype(">u2"), lambda a: np.asfortranarray(a)])
def test_views_of_arrays_are_accepted(view, bicubic):
    array = view(SMOOTH[..., :3].astype(np.uint16) * 257)
    array.setflags(write=False)
    plain = np.ascontiguousarray(array.astype(np.uint16))
    assert (bicubic.upscale(array) == bicubic.upscale(plain)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_smallest_images_are_enlarged(size, bicubic):
    result = bicubic.upscale(np.full((*size, 3), 100, np.uint8))
    assert result.shape == (2 * size[0], 2 * size[1], 3)
    assert (result == 100).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "build", [lambda: ESPCN(scale=3, kernel_sizes=[1, 1, 1, 1]), lambda: EDSR(scale=3, num_blocks=1)]
)
def test_tiles_with_chroma_and_alpha_equal_the_whole_image(build, channels):
    torch.manual_seed(0)
    network = build()  # the network sees no neighbours, chroma two pixels
    image = torch.rand(channels, 47, 61)
    whole = Upscaler(network, "", tile=0, device="cpu").upscale(image)
    tiled = Upscaler(network, "", tile=16, device="cpu").upscale(image)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4)
    if channels in (1, 3):
        with torch.inference_mode():
            torch.testing.assert_close(whole, super_resolve(network, image[None])[0].clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(150, 211), (301, 75), (75, 301), (1, 20000)])
def test_automatic_tiles_equal_the_whole_image(size, monkeypatch):
    monkeypatch.setattr(tiles, "PIXELS_CPU", 1)  # the smallest automatic tiles
    torch.manual_seed(0)
    network = EDSR(scale=2, num_features=4, num_blocks=1)
    image = torch.rand(3, *size)
    shares = []
    tiled = Upscaler(network, "", device="cpu").upscale(image, shares.append)
    assert len(shares) > 1
    torch.testing.assert_close(tiled, Upscaler(network, "", tile=0, device="cpu").upscale(image), rtol=0, atol=1e-4)


def test_transparent_colour_does_not_bleed(bicubic):
    rows, columns = np.mgrid[:40, :40]
    disc = np.zeros((40, 40, 4), np.uint8)  # black where transparent
    disc[(rows - 20) ** 2 + (columns - 20) ** 2 < 150] = (250, 40, 10, 255)
    result = np.asarray(bicubic.upscale(Image.fromarray(disc)))
    visible = result[..., 3] > 0
    assert visible.sum() > 4 * 150 * 3.1
    assert np.abs(result[visible][:, :3].astype(int) - (250, 40, 10)).max() <= 1
    assert (np.asarray(disc)[0, 0] == 0).all()


def test_colour_under_transparency_is_enlarged_unchanged(bicubic):
    image = SMOOTH.copy()
    image[10:20, 10:20, 3] = 0
    opaque = image.copy()
    opaque[..., 3] = 255
    assert (bicubic.upscale(image)[..., :3] == bicubic.upscale(opaque)[..., :3]).all()


def test_overshoot_is_clamped(bicubic):
    edge = np.zeros((20, 20), np.uint8)
    edge[:, 10:] = 255
    values = bicubic.upscale(edge)[10]
    assert values[17] == values[18] == 0  # undershoots black
    assert values[21] == values[22] == 255
    values = bicubic.upscale(edge / 255)
    assert (values.min(), values.max()) == (0, 1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("photo.jpg", r"not a str: open it first, Image.open\(path\)"),
        ([[0, 1]], "not a list"),
        (np.zeros((3, 20, 30), np.uint8), r"not \(3, 20, 30\): move its channels last, np.moveaxis"),
        (np.zeros((2, 20, 30, 3), np.uint8), r"\(H, W\) or \(H, W, C\).* not \(2, 20, 30, 3\)$"),
        (np.zeros((0, 5, 3), np.uint8), r"not \(0, 5, 3\)"),
        (np.zeros((5, 5), bool), "uint8, uint16 or floating point, not bool"),
        (np.zeros((5, 5), np.int64), "not int64"),
        (np.full((5, 5), 200.0), "from 200 to 200: an image must be in .0, 1.; divide 8-bit values by 255"),
        (np.full((5, 5), np.nan), "from nan to nan"),
        (torch.zeros(20, 30, 3), r"not \(20, 30, 3\): move its channels first, image.movedim"),
        (torch.zeros(20, 30), r"\(C, H, W\) or \(N, C, H, W\)"),
        (torch.zeros(3, 20, 30, dtype=torch.int32), "not torch.int32"),
        (torch.full((1, 4, 4), -0.5), "from -0.5 to -0.5"),
    ],
)
def test_unsupported_input_is_refused(image, message, bicubic):
    with pytest.raises(InputError, match=message):
        bicubic.upscale(image)


def test_progress_adds_up_to_one(bicubic):
    for image, steps in ((np.zeros((33, 41), np.uint8), 9), (torch.zeros(2, 3, 33, 41), 18)):
        shares = []
        bicubic.upscale(image, shares.append)
        assert len(shares) == steps
        assert sum(shares) == pytest.approx(1)


def test_network_with_global_context_is_not_tiled(caplog):
    torch.manual_seed(0)
    network = RCAN(scale=2, num_features=8, num_groups=1, num_blocks=2, reduction=2)
    image = torch.rand(3, 40, 50)
    net = Upscaler(network, "rcan", device="cpu")
    shares = []
    with torch.inference_mode():
        torch.testing.assert_close(
            net.upscale(image, shares.append), network(image[None])[0].clamp(0, 1), rtol=0, atol=1e-5
        )
    assert len(shares) == 1
    assert "the whole image" in repr(net)
    assert not caplog.records
    tiled = Upscaler(network, "rcan", tile=20, device="cpu").upscale(image)
    assert tiled.shape == (3, 80, 100)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "RCAN depends on the whole image, but is applied to tiles: the result changes" in caplog.text


class Counting(nn.Module):
    """Repeat pixels and record the sizes of the inputs."""

    scale, num_channels, receptive_radius = 2, 1, 3
    sizes: ClassVar = []  # of all copies

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, lr):
        self.sizes.append(tuple(lr.shape[-2:]))
        return lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_only_large_images_are_tiled_automatically():
    network = Counting()
    net = Upscaler(network, "", device="cpu")
    net.upscale(np.zeros((360, 360), np.uint8))
    assert network.sizes[-1] == (360, 360)
    network.sizes.clear()
    net.upscale(np.zeros((361, 360), np.uint8))
    assert network.sizes == [(183, 360), (184, 360)]
    network.sizes.clear()
    net.upscale(np.zeros((700, 100), np.uint8))
    assert network.sizes == [(700, 100)]


def test_bfloat16_differs_by_two_grey_levels_at_most():
    torch.manual_seed(0)
    network = ESPCN(scale=2, global_skip=True)
    nn.init.normal_(network.convs[-1].weight, std=0.02)
    image = SMOOTH[..., :3]
    exact, rounded = (
        Upscaler(network, "", precision=precision, device="cpu").upscale(image).astype(int)
        for precision in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rounded).max() <= 2


def test_inference_form_is_used():
    torch.manual_seed(0)
    network = WDSR(scale=2, num_features=4, num_blocks=1)
    image = torch.rand(3, 9, 9)
    net = Upscaler(network, "wdsr", device="cpu")
    assert not [name for name, _ in net.network.named_parameters() if "original" in name]
    with torch.inference_mode():
        torch.testing.assert_close(net.upscale(image), network.eval()(image[None])[0].clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device='tpu': choose auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:one"}, "device='cuda:one': choose auto"),
        ({"device": "cuda:"}, "device='cuda:': choose auto"),
        ({"precision": "half"}, "precision='half': choose auto, float32, bfloat16 or float16"),
        (
            {"precision": "float16", "device": "cpu"},
            "precision='float16' needs a GPU: choose auto, float32 or bfloat16",
        ),
        ({"tile": 8}, "tile=8: choose auto, 0 .* or at least 16"),
        ({"tile": "big"}, "tile='big'"),
        ({"tile": -1, "precision": "double"}, "precision='double'.*; tile=-1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Upscaler(Bicubic(scale=2), "bicubic", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_an_error():
    with pytest.raises(InputError, match="no GPU; choose auto or cpu"):
        Upscaler(Bicubic(scale=2), "bicubic", device="cuda")


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", "device='cuda': torch finds no GPU; choose auto or cpu"),
        (2, "cuda:2", "device='cuda:2': torch finds GPUs up to cuda:1; choose one of them"),
        (2, "cuda:1", None),
    ],
)
def test_number_of_a_gpu_must_exist(count, name, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if message is None:
        assert select_device(name) == torch.device(name)
    else:
        with pytest.raises(InputError, match=message):
            select_device(name)


def replaying(net):
    """Let an upscaler compute as on a GPU: replay tiles, and begin the next one before the result of one is used."""
    net._replays, net._transfers.at_once = Replays(net.device, FakeGraph), 2
    return net


@pytest.fixture
def quickly(monkeypatch):
    use_times(monkeypatch, {"float32": 1.0, "float32 by NNPACK": 2.0})


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("build", "ensemble"),
    [
        (lambda: ESPCN(scale=2), False),
        (lambda: ESPCN(scale=2), True),
        (lambda: EDSR(scale=3, num_features=8, num_blocks=1), False),
    ],
)
def test_replayed_tiles_have_the_bits_of_others_also_of_copies(build, ensemble, monkeypatch):
    torch.manual_seed(0)
    network = build()
    options = {"tile": 16, "device": "cpu", "self_ensemble": ensemble}
    net, other = Upscaler(network, "", **options), replaying(Upscaler(network, "", **options))
    wide = np.tile(SMOOTH[:16], (1, 2, 1))  # 16x82: five tiles, of which the inner ones have one shape
    tensor = torch.from_numpy(wide).permute(2, 0, 1) / 255
    for image in (wide, wide[..., :3].astype(np.uint16) * 257, wide[..., 0] / 255, tensor, Image.fromarray(wide)):
        assert (np.asarray(other.upscale(image)) == np.asarray(net.upscale(image))).all()
    assert any(other._replays.graphs.values()) and not other._replays.is_refused
    monkeypatch.setattr(upscaler, "Replays", partial(Replays, record=FakeGraph))
    for another in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert (another.upscale(wide) == net.upscale(wide)).all()
        assert any(another._replays.graphs.values()) and another._replays is not other._replays


@pytest.mark.usefixtures("quickly")
def test_replayed_tiles_that_are_not_finite_are_refused():
    network = EDSR(scale=2, num_features=4, num_blocks=1)
    net = replaying(Upscaler(network, "edsr", tile=16, device="cpu"))
    image = torch.zeros(3, 40, 40)
    net.upscale(image)
    net.network.form.network.tail.conv.bias.data.fill_(torch.inf)  # as a sum that overflows; it is used by the graph
    with pytest.raises(InputError, match="edsr: the output in float32 is not finite"):
        net.upscale(image)


@pytest.mark.usefixtures("quickly")
def test_replayed_tiles_become_smaller_when_memory_runs_out(monkeypatch, caplog):
    network = Counting()
    net = replaying(Upscaler(network, "", device="cpu"))
    image = np.tile(SMOOTH[..., 0], (3, 3))
    expected = net.upscale(image)
    enlarge = net._enlarge_tile

    def limited(lr):
        if lr[0].numel() > 1500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enlarge(lr)

    net = replaying(net)
    monkeypatch.setattr(net, "_enlarge_tile", limited)
    assert (net.upscale(image) == expected).all()
    assert "out of memory: continuing with tiles of 24" in caplog.text


def test_load_and_upscale_equal_the_network(trained):
    net = load(trained, device="cpu")
    assert (net.scale, net.name) == (2, "tiny")
    assert repr(net) == (
        "Upscaler(tiny x2: ESPCN on luma, 188 parameters, 30 steps, sees 2 pixels around; float32 on cpu, tile=auto)"
    )
    image = Image.fromarray(SMOOTH[..., :3])
    result = net.upscale(image)
    assert result.size == (82, 66)
    # The same network by hand, straight from the file
    state = torch.load(trained, weights_only=True)["state_dict"]
    network = ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3]).eval()
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    lr = torch.from_numpy(SMOOTH[..., :3].copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = super_resolve(network, lr)[0].clamp(0, 1).permute(1, 2, 0) * 255
    assert np.abs(np.asarray(result) - expected.numpy()).max() < 0.51


def test_run_directory_means_its_best_checkpoint(trained, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(trained.read_bytes())
    assert load(tmp_path / "run").name == "tiny"
    with pytest.raises(InputError, match=f"without a checkpoint; name a run in it, such as {tmp_path}/run$"):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is a folder without a checkpoint"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match=r"there is no file or folder .*none\.ckpt"):
        load(tmp_path / "none.ckpt")


def test_package_imports_without_torch():
    code = "import sys; from sr_lightning import load; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
