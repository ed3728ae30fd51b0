"""On a GPU: scores are those of the CPU, also in a program that allows TF32."""

import pytest
import torch

from sr_lightning.data.sources import Pair
from sr_lightning.degradations import Bicubic as Degradation
from sr_lightning.evaluation import scoring
from sr_lightning.evaluation.scoring import ScoredModel, Scorer
from sr_lightning.metrics.protocol import Protocol, differs_from_bicubic, score
from sr_lightning.networks import EDSR, SwinIR
from sr_lightning.utils.exact_float32 import exact_float32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(autouse=True)
def tf32():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(channel="rgb"), Protocol(channel="y709", ssim="daala")])
def test_scores_of_an_image_have_the_digits_of_the_cpu(protocol):
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 64, 48, generator=generator)
    sr = hr + 0.05 * torch.randn(hr.shape, generator=generator)
    here = score(sr, hr, 2, protocol)
    for name, there in score(sr.cuda(), hr.cuda(), 2, protocol).items():
        torch.testing.assert_close(there.cpu(), here[name], rtol=0, atol=1e-6)
    with exact_float32():
        assert torch.equal(differs_from_bicubic(hr.cuda(), 2, protocol).cpu(), differs_from_bicubic(hr, 2, protocol))


@pytest.mark.parametrize(
    "network",
    [EDSR(scale=2, num_features=16, num_blocks=4), SwinIR(scale=2, num_features=12, num_groups=1, num_blocks=2)],
    ids=["convolutions", "matrix products"],
)
def test_scores_of_a_network_are_those_of_the_cpu_within_a_thousandth(network, pictures, monkeypatch):
    pairs = [Pair(path.stem, path, None) for path in sorted(pictures.glob("*.png"))[:2]]
    rows = {}
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(scoring, "best_device", lambda device=device: torch.device(device))
        models = [ScoredModel("network", network.eval())]
        rows[device] = Scorer(Protocol(), Degradation(), {}).score_sets(models, {"set": pairs})
    for there, here in zip(rows["cuda"], rows["cpu"], strict=True):
        assert there["psnr_y"] == pytest.approx(here["psnr_y"], abs=1e-3)
        assert there["ssim_y"] == pytest.approx(here["ssim_y"], abs=1e-5)
