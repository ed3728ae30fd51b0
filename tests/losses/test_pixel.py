import numpy as np
import pytest
import torch

from sr_lightning.losses import Charbonnier, TotalVariation


def images(seed=0, size=(2, 3, 5, 7)):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def test_charbonnier_matches_the_papers_formula():
    sr, hr = images(0), images(1)
    expected = np.mean([np.hypot(a - b, 0.1) for a, b in zip(sr.numpy().flat, hr.numpy().flat, strict=True)])
    assert Charbonnier(0.1)(sr, hr).item() == pytest.approx(expected, rel=1e-6)


def test_charbonnier_approaches_l1_for_large_differences_and_is_smooth_at_zero():
    sr = images(0).requires_grad_()
    assert Charbonnier()(sr, sr.detach() + 0.5).item() == pytest.approx(0.5, rel=1e-5)
    loss = Charbonnier(1e-3)(sr, sr.detach())
    loss.backward()
    assert loss.item() == pytest.approx(1e-3)
    assert not sr.grad.any()


@pytest.mark.parametrize("eps", [0, -1e-3, float("nan")])
def test_charbonnier_refuses_an_eps_that_is_not_positive(eps):
    with pytest.raises(ValueError, match=f"eps={eps}: .* torch.nn.L1Loss"):
        Charbonnier(eps)


def test_total_variation_is_the_mean_gradient_length():
    sr = images(0)
    total = 0.0
    for image in sr.double().numpy():
        for plane in image:
            down, right = np.zeros_like(plane), np.zeros_like(plane)
            down[:-1], right[:, :-1] = plane[1:] - plane[:-1], plane[:, 1:] - plane[:, :-1]
            total += np.sqrt(down**2 + right**2).sum()
    assert TotalVariation()(sr, images(1)).item() == pytest.approx(total / sr.numel(), rel=1e-6)


def test_total_variation_is_the_slope_of_a_ramp_and_zero_with_a_finite_gradient_for_a_flat_image():
    ramp = 0.01 * torch.arange(100.0).expand(1, 1, 100, 100)
    assert TotalVariation()(ramp, ramp).item() == pytest.approx(0.01 * 99 / 100, rel=1e-5)
    flat = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    loss = TotalVariation()(flat, flat)
    loss.backward()
    assert loss.item() == 0
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("loss", [Charbonnier(), TotalVariation()])
def test_pixel_losses_give_sr_a_gradient(loss):
    sr, hr = images(0).requires_grad_(), images(1)
    loss(sr, hr).backward()
    assert (sr.grad != 0).float().mean() > 0.95
    assert not list(loss.parameters())
    assert not loss.state_dict()
