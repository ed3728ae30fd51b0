import copy

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from sr_lightning.losses import Adversarial, Hinge, LeastSquares, RelativisticAverage, Vanilla
from sr_lightning.networks import ESPCN, PatchDiscriminator

EVERY = pytest.mark.parametrize("loss", [Vanilla(), LeastSquares(), RelativisticAverage(), Hinge()], ids=type)

# (sr, hr) -> loss of the generator and of the discriminator; D = sigmoid(C) where the paper has a probability
PAPERS = {
    Vanilla: (
        lambda s, h: -np.log(expit(s)).mean(),
        lambda s, h: -(np.log(expit(h)).mean() + np.log(1 - expit(s)).mean()),
    ),
    LeastSquares: (
        lambda s, h: ((s - 1) ** 2).mean() / 2,
        lambda s, h: ((h - 1) ** 2).mean() / 2 + (s**2).mean() / 2,
    ),
    RelativisticAverage: (
        lambda s, h: -np.log(1 - expit(h - s.mean())).mean() - np.log(expit(s - h.mean())).mean(),
        lambda s, h: -np.log(expit(h - s.mean())).mean() - np.log(1 - expit(s - h.mean())).mean(),
    ),
    Hinge: (
        lambda s, h: -s.mean(),
        lambda s, h: np.maximum(0, 1 - h).mean() + np.maximum(0, 1 + s).mean(),
    ),
}


def logits(shape=(6, 1)):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(shape, generator=generator) - 0.5, 2 * torch.randn(shape, generator=generator) + 0.5


@EVERY
@pytest.mark.parametrize("shape", [(6, 1), (2, 1, 5, 4)])
def test_both_losses_match_the_papers_equations(loss, shape):
    sr, hr = logits(shape)
    for function, paper in zip((loss.generator, loss.discriminator), PAPERS[type(loss)], strict=True):
        value = function(sr, hr)
        assert value.shape == ()
        assert value.item() == pytest.approx(paper(sr.double().numpy(), hr.double().numpy()), rel=1e-5)


def test_the_losses_match_manual_calculations():
    sr, hr = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [1.0]])
    assert LeastSquares().discriminator(sr, hr).item() == 0.5 * ((4 + 0) / 2 + (0 + 4) / 2)
    assert LeastSquares().generator(sr).item() == 0.5 * (1 + 1) / 2
    assert Hinge().discriminator(sr, hr).item() == 0 + (1 + 3) / 2
    assert Hinge().generator(sr).item() == -1
    undecided = torch.zeros(4, 1)
    for loss in (Vanilla(), RelativisticAverage()):
        assert loss.discriminator(undecided, undecided).item() == pytest.approx(2 * np.log(2))
    assert Vanilla().generator(undecided).item() == pytest.approx(np.log(2))
    assert RelativisticAverage().generator(undecided, undecided).item() == pytest.approx(2 * np.log(2))


@EVERY
def test_realness_rises_from_0_to_1_with_the_logits(loss):
    values = [loss.realness(torch.full((2, 1, 3, 3), float(x))).item() for x in (-50, -0.5, 0, 0.5, 50)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[-1] == pytest.approx(1)
    assert values == sorted(values)
    sr = logits()[0].numpy()
    expected = {
        Vanilla: expit(sr),
        RelativisticAverage: expit(sr),
        LeastSquares: np.clip(sr, 0, 1),
        Hinge: np.clip((sr + 1) / 2, 0, 1),
    }
    assert loss.realness(torch.from_numpy(sr)).item() == pytest.approx(expected[type(loss)].mean(), rel=1e-6)


@EVERY
def test_only_the_relativistic_generator_needs_hr(loss):
    sr, hr = logits()
    assert loss.generator_needs_hr == isinstance(loss, RelativisticAverage)
    if loss.generator_needs_hr:
        with pytest.raises(ValueError, match="generator needs hr_logits"):
            loss.generator(sr)
    else:
        assert torch.equal(loss.generator(sr, None), loss.generator(sr, hr))
        assert torch.equal(loss.generator(sr), loss.generator(sr, hr))


@EVERY
def test_the_losses_pull_the_logits_in_opposite_directions_without_a_gradient_from_generator_to_hr(loss):
    sr, hr = (x.clamp(-0.9, 0.9).requires_grad_() for x in logits())
    loss.generator(sr, hr).backward()
    assert (sr.grad < 0).all()  # gradient descent makes sr more real
    assert hr.grad is None
    sr.grad = None
    loss.discriminator(sr, hr).backward()
    if isinstance(loss, LeastSquares):
        assert torch.equal(sr.grad.sign(), sr.sign())  # towards 0 from either side
    else:
        assert (sr.grad > 0).all()
    assert (hr.grad < 0).all()


@EVERY
def test_extreme_logits_give_finite_losses_and_gradients(loss):
    sr, hr = torch.tensor([[-1e4], [1e4]]).requires_grad_(), torch.tensor([[1e4], [-1e4]]).requires_grad_()
    (loss.generator(sr, hr) + loss.discriminator(sr, hr)).backward()
    assert sr.grad.isfinite().all()
    assert hr.grad.isfinite().all()


def test_the_vanilla_generator_loss_does_not_saturate_for_a_confident_discriminator():
    sr = torch.tensor([[-30.0]]).requires_grad_()
    loss = Vanilla().generator(sr)
    loss.backward()
    assert loss.item() == pytest.approx(-log_expit(-30.0))
    assert sr.grad.item() == pytest.approx(-1)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_for_half_precision_logits(loss, dtype):
    sr, hr = (x.to(dtype) for x in logits())
    with torch.autocast("cpu", torch.bfloat16):
        values = [loss.generator(sr, hr), loss.discriminator(sr, hr), loss.realness(sr)]
    exact = [
        loss.generator(sr.float(), hr.float()),
        loss.discriminator(sr.float(), hr.float()),
        loss.realness(sr.float()),
    ]
    assert all(value.dtype == torch.float32 for value in values)
    assert torch.equal(torch.stack(values), torch.stack(exact))


@EVERY
def test_the_adversarial_loss_trains_a_generator_through_a_frozen_discriminator(loss):
    torch.manual_seed(0)
    network = ESPCN(scale=2, num_features=[8], kernel_sizes=[3, 3])
    discriminator = PatchDiscriminator(num_features=4, num_layers=1, num_channels=1).requires_grad_(False).eval()
    kept = copy.deepcopy(discriminator.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    lr, hr = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 16, 16)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(
            loss.generator(discriminator(network(lr)), discriminator(hr) if loss.generator_needs_hr else None)
        )
        losses[-1].backward()
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(kept[key], value) for key, value in discriminator.state_dict().items())
    assert all(p.grad is None for p in discriminator.parameters())


def test_the_abstract_class_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        Adversarial()
