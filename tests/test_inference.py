import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from sr_lightning import inference
from sr_lightning.color import rgb_to_y, rgb_to_ycbcr
from sr_lightning.errors import InputError
from sr_lightning.inference import (
    FastInference,
    SelfEnsemble,
    forms,
    fuse_for_inference,
    super_resolve,
    to_channels,
)
from sr_lightning.inference.forms import mse_budget
from sr_lightning.networks import EDSR, EDSRBN, ESPCN, FSRCNN, RCAN, VDSR, WDSR, Bicubic, SRResNet
from sr_lightning.networks.layers import ChannelNorm, FoldedUpsampler
from sr_lightning.utils.cuda_graphs import Replays
from tests.fake_graph import FakeGraph
from tests.helpers import use_times
from tests.networks.test_every_network import CHOICES, small

CPU = torch.device("cpu")
NNPACK = {"float32 by NNPACK": 1.0, "float32 by NNPACK as a graph": 1.0}


class Colour(nn.Module):
    """A three-channel network that repeats each pixel and keeps its channels apart."""

    scale, num_channels = 2, 3

    def forward(self, lr):
        return lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_luma_network_gives_luma_and_bicubic_chroma():
    network = ESPCN(scale=3)
    lr = torch.rand(2, 3, 7, 9)
    sr = super_resolve(network, lr)
    ycbcr = rgb_to_ycbcr(lr)
    torch.testing.assert_close(rgb_to_ycbcr(sr)[:, :1], network(rgb_to_y(lr)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgb_to_ycbcr(sr)[:, 1:], Bicubic(scale=3)(ycbcr[:, 1:]), atol=1e-5, rtol=0)


def test_bicubic_in_colour_is_bicubic_on_each_channel():
    lr = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(super_resolve(Bicubic(scale=2), lr), Bicubic(scale=2)(lr), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", [Colour(), ESPCN(scale=2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_kept(network, channels):
    assert super_resolve(network, torch.rand(1, channels, 5, 6)).shape == (1, channels, 10, 12)


def test_gray_image_is_used_as_luma():
    gray = torch.rand(1, 1, 4, 4)
    assert to_channels(gray, 1) is gray
    torch.testing.assert_close(super_resolve(Colour(), gray), Colour()(gray))


# The eight flips and rotations, said by other operations than the ensemble's
SYMMETRIES = {
    "same": lambda x: x,
    "left-right": lambda x: x.flip(-1),
    "up-down": lambda x: x.flip(-2),
    "half turn": lambda x: x.flip(-1, -2),
    "transposed": lambda x: x.mT,
    "quarter turn": lambda x: x.mT.flip(-1),
    "three quarters": lambda x: x.mT.flip(-2),
    "other diagonal": lambda x: x.mT.flip(-1, -2),
}


def untrained(cls, **options):
    torch.manual_seed(0)
    network = cls(scale=3, **options).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("shape", [(1, 3, 6, 11), (2, 3, 7, 7), (1, 3, 1, 4)])
def test_self_ensemble_commutes_with_flips_and_rotations(symmetry, shape):
    network = untrained(EDSR, num_features=8, num_blocks=1)
    turn, lr = SYMMETRIES[symmetry], torch.rand(shape)
    with torch.inference_mode():
        ensemble = SelfEnsemble(network)
        torch.testing.assert_close(ensemble(turn(lr)), turn(ensemble(lr)), rtol=0, atol=1e-5)
        if symmetry != "same":
            assert (network(turn(lr)) - turn(network(lr))).abs().max() > 1e-3  # the network alone does not


class Ramp(nn.Module):
    """Repeats pixels and adds the column's number, so that each of the eight kinds leaves its own trace."""

    scale, num_channels, receptive_radius = 2, 1, 0

    def forward(self, lr):
        sr = lr.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return sr + torch.arange(sr.shape[-1])


def test_self_ensemble_is_the_mean_of_eight_turned_back():
    lr = torch.rand(1, 1, 3, 5)
    columns, rows = torch.arange(10).float(), torch.arange(6).float()[:, None]
    # Four kinds keep the axes and four exchange them; half of each count from the other end: 9 - column, 5 - row.
    added = (2 * columns + 2 * (9 - columns) + 2 * rows + 2 * (5 - rows)) / 8
    expected = lr.repeat_interleave(2, -1).repeat_interleave(2, -2) + added
    torch.testing.assert_close(SelfEnsemble(Ramp())(lr), expected)


def test_self_ensemble_of_bicubic_is_bicubic():
    lr = torch.rand(2, 1, 5, 8)
    ensemble = SelfEnsemble(Bicubic(scale=3))
    assert (ensemble.scale, ensemble.num_channels, ensemble.receptive_radius) == (3, 1, 2)
    torch.testing.assert_close(ensemble(lr), Bicubic(scale=3)(lr), rtol=0, atol=1e-6)


def is_slow(module):
    """Whether an inference form replaces this layer."""
    return is_parametrized(module) or isinstance(module, nn.ConvTranspose2d | nn.BatchNorm2d)


@pytest.mark.parametrize("wrap", [lambda network: network, SelfEnsemble])
@pytest.mark.parametrize("cls", [WDSR, FSRCNN, SRResNet, EDSRBN, EDSR, RCAN])
def test_inference_form_is_equal_without_norms_and_deconvolutions(cls, wrap):
    sizes = {"num_features": 8, "num_blocks": 2} | ({"num_groups": 2, "reduction": 2} if cls is RCAN else {})
    network = wrap(untrained(cls, **({} if cls is FSRCNN else sizes)))
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    form = fuse_for_inference(network)
    lr = torch.rand(1, network.num_channels, 6, 9)
    with torch.inference_mode():
        torch.testing.assert_close(form(lr), network(lr), rtol=1e-5, atol=1e-5)
    slow = [[m for m in net.modules() if is_slow(m)] for net in (network, form)]
    assert bool(slow[0]) == (cls not in (EDSR, RCAN)) and not slow[1]
    folded = any(isinstance(m, FoldedUpsampler) for m in form.modules())
    assert folded == (cls in (EDSRBN, EDSR, RCAN))
    with torch.inference_mode():
        assert torch.equal(fuse_for_inference(form)(lr), form(lr))


def test_network_without_an_inference_form_is_returned_unchanged():
    network = ESPCN(scale=2)
    assert fuse_for_inference(network) is network


@pytest.mark.parametrize("cls", [WDSR, FSRCNN, ESPCN])
def test_fast_form_in_float32_is_equal_and_leaves_the_network_unchanged(cls):
    network = untrained(cls).train()
    lr = torch.rand(2, network.num_channels, 6, 9)

    def facts():
        return network.training, [(name, p.stride(), p.requires_grad) for name, p in network.named_parameters()]

    before = facts()
    fast = FastInference(network, precision="float32")
    assert facts() == before
    assert network.training
    with torch.no_grad():
        torch.testing.assert_close(fast(lr), network.eval()(lr), rtol=1e-5, atol=1e-5)
        colour = torch.rand(1, 3, 5, 6)
        torch.testing.assert_close(super_resolve(fast, colour), super_resolve(network, colour), rtol=1e-5, atol=1e-5)


def level_error(network, precision):
    """Mean squared error of a fast form against float32, on an image of all levels."""
    lr = torch.rand(1, network.num_channels, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (FastInference(network, precision=precision)(lr) - network(lr)).square().mean().item()


class Repeated(nn.Module):
    """Enlarges by repeating pixels, through a convolution that carries the whole image; `skip` does it in float32."""

    scale, num_channels, receptive_radius = 2, 1, 0

    def __init__(self, skip):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.skip = skip
        nn.init.constant_(self.conv.weight, 0.01 if skip else 1.0)
        nn.init.zeros_(self.conv.bias)

    def forward(self, lr):
        sr = self.conv(lr).float()
        return (sr + 0.99 * lr if self.skip else sr).repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.fixture
def fast_bfloat16(monkeypatch):
    """A processor on which bfloat16 is measured to be twice as fast as float32."""
    monkeypatch.setattr(forms, "computes_in_bfloat16", lambda device: True)
    use_times(monkeypatch, {"float32": 1.0, "float32 by NNPACK": 1.0, "bfloat16": 0.5})


@pytest.mark.parametrize(("seconds", "expected"), [(0.85, "bfloat16"), (0.95, "float32"), (2.0, "float32")])
def test_the_fastest_precision_is_chosen_by_measurement(seconds, expected, monkeypatch):
    monkeypatch.setattr(forms, "computes_in_bfloat16", lambda device: True)
    use_times(monkeypatch, {"float32": 1.0, "float32 by NNPACK": 1.0, "bfloat16": seconds})
    assert FastInference(ESPCN(scale=3, global_skip=True).eval()).precision == expected
    assert FastInference(ESPCN(scale=3, global_skip=True).eval(), precision="float32").precision == "float32"


def test_bfloat16_is_chosen_where_supported_and_precise_enough(monkeypatch, fast_bfloat16):
    assert FastInference(Repeated(skip=True)).precision == "bfloat16"
    assert FastInference(Repeated(skip=False)).precision == "float32"
    assert FastInference(untrained(ESPCN, global_skip=False)).precision == "float32"
    assert FastInference(ESPCN(scale=3, global_skip=True).eval()).precision == "bfloat16"
    monkeypatch.setattr(forms, "computes_in_bfloat16", lambda device: False)
    assert FastInference(Repeated(skip=True)).precision == "float32"


@pytest.mark.usefixtures("fast_bfloat16")
def test_a_network_without_weights_has_a_form_too():
    lr = torch.rand(1, 1, 5, 6)
    assert torch.equal(FastInference(Bicubic(scale=2))(lr), Bicubic(scale=2)(lr))


class Averaged(nn.Module):
    """The centred image in 64 features, whose rounding errors average out except those of the last layer."""

    scale, num_channels, receptive_radius = 1, 1, 0

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(1, 64, 1, bias=False), nn.Conv2d(64, 1, 1)
        weights = torch.linspace(0.5, 1.5, 64)
        self.head.weight.data[:, 0, 0, 0] = weights
        self.tail.weight.data[0, :, 0, 0] = 1 / weights / 64
        nn.init.constant_(self.tail.bias, 0.5)

    def forward(self, lr):
        return self.tail(self.head(lr - 0.5)).float()


@pytest.mark.usefixtures("fast_bfloat16")
def test_only_an_imprecise_last_layer_is_in_float32():
    network = Averaged().eval()
    assert FastInference(network).precision == "bfloat16"
    exact, chosen, rounded = (level_error(network, precision) for precision in ("float32", "auto", "bfloat16"))
    assert exact < 1e-10 < chosen < 0.5 * rounded


class Summed(Averaged):
    """Averaged with 16 sums in between, each of which rounds features in bfloat16."""

    def forward(self, lr):
        x = self.head(lr - 0.5)
        for _ in range(16):
            x = x + 0.01 * x.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype)
        return self.tail(x).float() / 1.01**16 + 0.5


@pytest.mark.usefixtures("fast_bfloat16")
def test_imprecise_sums_put_the_first_layer_in_float32_too():
    network = Summed().eval()
    nn.init.zeros_(network.tail.bias)
    form = FastInference(network)
    assert form.precision == "bfloat16"
    assert isinstance(form.form.network.head, forms._InFloat32)
    chosen, rounded = (level_error(network, precision) for precision in ("auto", "bfloat16"))
    assert chosen < 0.1 * rounded


def test_tolerance_depends_on_the_psnr_of_a_scale():
    assert mse_budget(2) < mse_budget(3) < mse_budget(4) < mse_budget(8)
    for scale, psnr in [(2, 38.3), (4, 32.7)]:
        assert 10 * math.log10(1 + mse_budget(scale) / 10 ** (-psnr / 10)) == pytest.approx(0.01, rel=0.02)


def test_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision='fp16': choose auto, float32, bfloat16"):
        FastInference(ESPCN(scale=2), precision="fp16")
    with pytest.raises(InputError, match="precision='float16' needs a GPU: choose auto, float32 or bfloat16"):
        FastInference(ESPCN(scale=2), precision="float16")


needs_nnpack = pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="this torch has no NNPACK here")
WIDE = {
    EDSR: {"num_blocks": 1},  # of which the upsampler is a convolution of 5x5
    ESPCN: {},
    VDSR: {"num_layers": 4, "bias": False},
    RCAN: {"num_groups": 1, "num_blocks": 1},
    SRResNet: {"num_blocks": 1},
}


@needs_nnpack
@pytest.mark.parametrize("cls", WIDE)
def test_nnpack_convolutions_are_equal_on_any_shape(cls, monkeypatch):
    monkeypatch.setattr(forms, "has_nnpack", lambda: True)
    use_times(monkeypatch, {"float32": 2.0, "float32 by NNPACK": 1.0})
    network = untrained(cls, **WIDE[cls])
    fast = FastInference(network, precision="float32")
    assert any(isinstance(m, forms._Nnpack) for m in fast.modules())
    for shape in [(1, 1), (7, 2), (21, 34)]:
        lr = torch.rand(2, network.num_channels, *shape)
        with torch.inference_mode():
            sr = network(lr)
        torch.testing.assert_close(fast(lr), sr, rtol=0, atol=1e-4 * max(1, sr.std().item()))


@needs_nnpack
def test_nnpack_is_used_where_it_is_measured_to_be_faster(monkeypatch):
    for capability, expected in [("DEFAULT", False), ("AVX512", False), ("AVX2", True)]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert forms.has_nnpack() == expected
    for seconds, expected in [(0.8, True), (1.2, False)]:
        use_times(monkeypatch, {"float32": 1.0, "float32 by NNPACK": seconds})
        form = FastInference(EDSR(scale=2, num_blocks=1), precision="float32")
        assert any(isinstance(m, forms._Nnpack) for m in form.modules()) == expected
    for network, precision in [(ESPCN(scale=2), "bfloat16"), (FSRCNN(scale=2), "float32")]:
        form = FastInference(network, precision=precision)
        assert not any(isinstance(m, forms._Nnpack) for m in form.modules())


@pytest.mark.parametrize("name", CHOICES)
def test_converted_weights_compute_the_bits_of_autocast_and_can_be_recorded(name):
    network = fuse_for_inference(small(name, 2)).to(memory_format=torch.channels_last)
    if next(network.parameters(), None) is None:
        return
    lr = torch.rand(1, network.num_channels, 9, 7)
    converted = forms.converted_form(network, "bfloat16", "bfloat16", lr)
    assert not converted.autocast and {p.dtype for p in converted.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.inference_mode():
        exact, sr, expected = network(lr), converted(lr), forms.Form(network, "bfloat16", "bfloat16")(lr)
    assert sr.dtype == torch.float32
    replays = Replays(CPU, FakeGraph)
    assert all(torch.equal(replays(lambda lr: (converted(lr),), lr)[0], sr) for _ in range(3))
    assert all(replays.graphs.values())
    if {nn.LayerNorm, nn.GroupNorm, ChannelNorm} & {type(module) for module in network.modules()}:
        # autocast computes norms in float32, and so do these, but for their input and output
        assert (sr - exact).square().mean() < 1.5 * (expected - exact).square().mean()
    else:
        assert torch.equal(sr, expected)


class Mixing(Repeated):
    """Multiplies features by a table of its own, which autocast would convert."""

    def forward(self, lr):
        sr = super().forward(lr)
        return torch.matmul(sr, torch.eye(sr.shape[-1], dtype=self.conv.weight.dtype))


def test_a_network_that_needs_autocast_keeps_it():
    network, lr = Mixing(skip=True), torch.rand(1, 1, 6, 6)
    form = forms.converted_form(network, "bfloat16", "bfloat16", lr)
    assert form.autocast and form.network is network
    assert form(lr).shape == (1, 1, 12, 12)


def test_layers_in_float32_are_not_converted():
    network = Averaged().eval()
    (form,) = forms.accurate_forms(
        forms.Form(network, "float32"), CPU, "bfloat16", 1, 2, partial(forms.converted_form, lr=forms.ramp(CPU, 1))
    )
    assert (form.name, form.autocast) == ("bfloat16, tail in float32", False)
    assert [p.dtype for p in form.network.parameters()] == [torch.bfloat16, torch.float32, torch.float32]


class Loud(Repeated):
    """Exceeds the largest number of float16 on contrasts, but not on smooth images."""

    def forward(self, lr):
        contrast = (lr[..., 1:] - lr[..., :-1]).abs().amax() * 60000
        return super().forward(lr) + (self.conv(contrast.expand(1, 1, 1, 1)) * 200 * 0).float()


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Repeated(skip=True), ["float32", "float32 contiguous", "float16"]),
        (Loud(skip=True), ["float32", "float32 contiguous", "bfloat16"]),
        (Repeated(skip=False), ["float32", "float32 contiguous", "float16"]),
    ],
)
def test_a_gpu_has_float16_or_else_bfloat16(network, expected, monkeypatch):
    monkeypatch.setattr(forms, "computes_in_bfloat16", lambda device: True)
    found = forms.gpu_forms(network.eval(), CPU, "auto", 1, 2)
    assert [form.name for form in found] == expected
    assert [form.autocast for form in found] == [False] * 3
    assert [form.name for form in forms.gpu_forms(network, CPU, "float32", 1, 2)] == expected[:2]
    assert [form.name for form in forms.gpu_forms(network, CPU, "bfloat16", 1, 2)] == ["bfloat16"]


@pytest.mark.parametrize(("seconds", "as_graph"), [(0.5, True), (0.95, False)])
def test_a_graph_is_used_where_it_is_measured_to_be_faster(seconds, as_graph, monkeypatch):
    monkeypatch.setattr(inference, "records_graphs", lambda device: True)
    keys = use_times(monkeypatch, {"float32": 1.0, "float32 as a graph": seconds, **NNPACK})
    assert FastInference(ESPCN(scale=2), precision="float32").as_graph == as_graph
    assert keys


def test_graphs_are_measured_as_replays(monkeypatch, tmp_path):
    monkeypatch.setenv("SR_CACHE_DIR", str(tmp_path))
    recorded = []

    def record(program):
        recorded.append(program)
        return FakeGraph(program)

    monkeypatch.setattr(inference, "records_graphs", lambda device: True)
    monkeypatch.setattr(inference, "Replays", partial(Replays, record=record))
    FastInference(ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3]), precision="float32")
    assert len(recorded) == 1
    FastInference(ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3]), precision="float32")
    assert len(recorded) == 1  # the times are kept


def test_float16_is_a_candidate_on_gpus_only():
    assert forms.lower_precisions("cuda")[0] == "float16"
    assert "float16" not in forms.lower_precisions("cpu")
