"""On a GPU: replayed tiles have the bits of others, and results are those of the CPU to a grey level."""

import gc
import threading
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image

from sr_lightning.inference import FastInference
from sr_lightning.inference.forms import Form, gpu_forms, with_weights_in
from sr_lightning.networks import EDSR, ESPCN, Bicubic
from sr_lightning.upscale.upscaler import Upscaler
from sr_lightning.utils.cuda_graphs import Replays
from tests.helpers import use_times
from tests.networks.test_every_network import CHOICES, small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
RNG = np.random.default_rng(0)
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (12, 16, 4), dtype=np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
)


@pytest.fixture
def chosen(monkeypatch):
    """Return a function that sets the form that is fastest."""

    return lambda fast: use_times(monkeypatch, defaultdict(lambda: 1.0, {fast: 0.5}))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CHOICES)
def test_replayed_tiles_of_every_network_have_the_bits_of_others(name, precision, chosen):
    network = small(name, 2)
    nets = []
    for suffix in ("", " as a graph"):
        chosen(f"{precision}{suffix}")
        nets.append(Upscaler(network, name, device="cuda", precision=precision, tile=0))
    launched, replayed = nets
    assert launched._replays is None
    assert replayed._replays is not None
    for _ in range(4):
        image = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        assert (replayed.upscale(image) == launched.upscale(image)).all()
    assert not replayed._replays.is_refused
    assert all(replayed._replays.graphs.values())


IMAGES = {
    "colour": PHOTO[..., :3],
    "alpha": PHOTO,
    "gray": PHOTO[..., 0],
    "16 bits": PHOTO[..., :3].astype(np.uint16) * 257,
    "floating point": PHOTO[..., :3].astype(np.float32) / 255,
    "columns": PHOTO[:, ::2, :3],
    "PIL": Image.fromarray(PHOTO),
    "tensor": torch.from_numpy(PHOTO.copy()).permute(2, 0, 1).contiguous(),
    "batch": torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)[None, :3].repeat(2, 1, 1, 1),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("build", [lambda: ESPCN(scale=2, global_skip=True), lambda: EDSR(scale=3, num_blocks=1)])
def test_images_are_those_of_the_cpu_to_a_grey_level(build, ensemble, kind, chosen):
    torch.manual_seed(0)
    network, image = build(), IMAGES[kind]
    here = Upscaler(network, "", device="cpu", tile=24, self_ensemble=ensemble).upscale(image)
    chosen("float32 as a graph")
    net = Upscaler(network, "", device="cuda", precision="float32", tile=24, self_ensemble=ensemble)
    for _ in range(2):
        there = net.upscale(image)
        assert type(there) is type(here)
        first, second = (np.asarray(one) for one in (here, there))
        assert first.dtype == second.dtype and first.shape == second.shape
        difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
        assert difference.max() <= {"floating point": 1e-4, "16 bits": 7}.get(kind, 1)
        if first.dtype == np.uint8:
            assert (difference > 0).mean() < 0.01  # ties of rounding
    if isinstance(image, torch.Tensor):
        on_gpu = net.upscale(image.cuda())
        assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), there)


def test_tiles_equal_the_whole_image(chosen):
    chosen("float32 as a graph")
    torch.manual_seed(0)
    network, image = EDSR(scale=2, num_features=16, num_blocks=2), torch.rand(3, 200, 300)
    whole, tiled = (Upscaler(network, "", device="cuda", precision="float32", tile=tile) for tile in (0, 32))
    torch.testing.assert_close(tiled.upscale(image), whole.upscale(image), rtol=0, atol=1e-4)


def test_beginning_a_tile_does_not_wait_for_the_gpu(chosen):
    chosen("float32 as a graph")
    net = Upscaler(ESPCN(scale=2), "", device="cuda", precision="float32", tile=0)
    planes = torch.from_numpy(PHOTO[..., :3].copy()).permute(2, 0, 1)
    for _ in range(3):
        expected = torch.cat([part for _, _, part in net._parts(planes, lambda share: None)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole = slice(0, 240), slice(0, 320)
        result = net._transfers.download(*net._compute(net._transfers.upload(planes), whole), planes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    sr, finite = result()
    assert finite and torch.equal(sr, expected)
    assert sr.is_pinned() and sr.stride(0) == 1  # channels of a pixel side by side, as in the image


def test_several_threads_and_streams_share_an_upscaler(chosen):
    chosen("float32 as a graph")
    net = Upscaler(ESPCN(scale=2), "", device="cuda", precision="float32", tile=40)
    images = [RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(4)]
    expected = [net.upscale(image) for image in images]
    wrong = []

    def enlarge(image, result):
        with torch.cuda.stream(torch.cuda.Stream()):
            wrong.extend(() for _ in range(20) if (net.upscale(image) != result).any())

    threads = [threading.Thread(target=enlarge, args=pair) for pair in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_network_without_weights_is_enlarged():
    net = Upscaler(Bicubic(scale=2), "bicubic", device="cuda", precision="auto")
    here = Upscaler(Bicubic(scale=2), "bicubic", device="cpu").upscale(PHOTO)
    for _ in range(3):
        assert np.abs(net.upscale(PHOTO).astype(int) - here).max() <= 1


def test_diverged_networks_are_refused(chosen):
    chosen("float16 as a graph")
    network = EDSR(scale=2, num_features=4, num_blocks=1)
    network.tail.bias.data.fill_(torch.inf)
    net = Upscaler(network, "edsr", device="cuda", precision="float16")
    for _ in range(3):
        with pytest.raises(ValueError, match="edsr: the output in float16 is not finite"):
            net.upscale(PHOTO)


def test_converted_weights_compute_the_bits_of_autocast():
    network = EDSR(scale=2, num_blocks=2).cuda().eval().to(memory_format=torch.channels_last).requires_grad_(False)
    lr = torch.rand(1, 3, 40, 40, device="cuda")
    with torch.inference_mode():
        expected = Form(network, "float16", "float16")(lr)
        (form,) = gpu_forms(network, lr.device, "float16", 3, 2)
        assert not form.autocast and torch.equal(form(lr), expected)
        assert torch.equal(Form(with_weights_in(network, torch.float16), "", "float16", autocast=False)(lr), expected)


def test_float16_is_fastest_and_recorded_for_a_small_network():
    fast = FastInference(ESPCN(scale=2, global_skip=True), "cuda")
    assert (fast.precision, fast.as_graph) == ("float16", True)


def test_recording_fails_where_the_host_waits_and_the_gpu_goes_on(caplog):
    replays = Replays(torch.device("cuda"))
    x = torch.ones(3, device="cuda")
    for _ in range(3):
        (y,) = replays(lambda x: (x * x.sum().item(),), x)
        assert y.tolist() == [3, 3, 3]
    assert replays.is_refused


def test_memory_of_an_upscaler_is_released(chosen):
    chosen("float32 as a graph")
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    net = Upscaler(EDSR(scale=2), "", device="cuda", precision="float32", tile=0)
    for _ in range(3):
        net.upscale(np.zeros((500, 500, 3), np.uint8))
    del net
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**26
