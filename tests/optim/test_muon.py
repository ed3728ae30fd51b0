"""Muon compared with an SVD, torch.optim.Muon, torch.optim.Adam and a resumed run."""

import copy
from math import sqrt

import pytest
import torch
from torch import nn

from sr_lightning.errors import InputError
from sr_lightning.optim import Muon, muon, warmup_cosine
from sr_lightning.optim.muon import is_matrix, orthogonalise

SHAPES = [(64, 25), (64, 576), (9, 288), (16, 16), (96, 16)]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.PReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
    )


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, schedule=None) -> None:
    """Train on batches first ... last-1, each of which depends only on its number."""
    for batch in range(first, last):
        lr = torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(batch))
        optimizer.zero_grad()
        (net(lr) - lr.flip(-1)).abs().mean().backward()
        optimizer.step()
        if schedule:
            schedule.step()


def one_update(weight: torch.Tensor, gradient: torch.Tensor, **settings) -> torch.Tensor:
    """Return the update of one step with learning rate 1."""
    parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    parameter.grad = gradient
    Muon([parameter], lr=1.0, **settings).step()
    return weight - parameter.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_keeps_singular_vectors_and_maps_singular_values_near_1(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, *shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(1.0, 0.05, min(shape), dtype=torch.float64) ** 2 + 0.02
    result = orthogonalise((u * values @ v * 1e-3).float()).double()
    core = u.mT @ result @ v.mT  # diagonal if the singular vectors are unchanged
    diagonal = core.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(result, u * diagonal[:, None] @ v, atol=2e-4, rtol=0)
    large = values / values.norm() > 0.01
    assert large.sum() >= 5
    assert diagonal[:, large].min() > 0.65 and diagonal[:, large].max() < 1.25

    scalar = values / values.norm()
    for _ in range(5):
        scalar = 3.4445 * scalar - 4.7750 * scalar**3 + 2.0315 * scalar**5
    torch.testing.assert_close(diagonal, scalar.expand_as(diagonal), atol=2e-4, rtol=0)


def test_more_steps_than_one_gram_matrix_allows_still_converge():
    torch.manual_seed(0)
    rank_deficient = torch.randn(1, 32, 4) @ torch.randn(1, 4, 288)
    values = torch.linalg.svdvals(orthogonalise(rank_deficient, steps=20))[0]
    assert values[:4].min() > 0.65 and values.max() < 1.25


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_the_iteration_of_other_devices_gives_the_same_matrix(dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 144)
    x = x / x.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(muon._iterate(x.to(dtype), 5).float(), orthogonalise(x), atol=tolerance, rtol=0)


def test_a_zero_gradient_does_not_change_the_weight():
    assert one_update(torch.ones(4, 2, 3, 3), torch.zeros(4, 2, 3, 3)).abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_match_torch_muon_up_to_bfloat16(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    rows, columns = shape
    factor = sqrt(max(1, rows / columns))  # torch has either this factor or 0.2 sqrt(max), ours has both
    optimizer = Muon([ours], lr=0.01)
    torch_muon = torch.optim.Muon([theirs], lr=0.01 * factor, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        torch_muon.step()
    distance, difference = (ours - weight).norm(), (ours - theirs).norm()
    assert difference < 0.02 * distance


def test_a_convolution_is_updated_as_its_flattened_matrix():
    torch.manual_seed(0)
    weight, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    update = one_update(weight, gradient)
    torch.testing.assert_close(update.flatten(1), one_update(weight.flatten(1), gradient.flatten(1)))
    torch.testing.assert_close(update.flatten(1) @ gradient.flatten(1).T, gradient.flatten(1) @ update.flatten(1).T)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_weights_of_one_shape_are_updated_independently(at_once, monkeypatch):
    monkeypatch.setattr(muon, "CPU_ELEMENTS", at_once * 8 * 4 * 9)
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(8, 4, 3, 3)) for _ in range(3)]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    Muon(weights, lr=1.0).step()
    for weight, old in zip(weights, before, strict=True):
        torch.testing.assert_close(old - weight, one_update(old, weight.grad), atol=1e-5, rtol=1e-5)


def test_channels_last_weights_get_the_same_updates():
    nets = small_net(), small_net().to(memory_format=torch.channels_last)
    for net in nets:
        train(net, Muon(net.parameters()), 0, 5)
    assert nets[1][2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(nets[1][2].weight, small_net()[2].weight)
    for contiguous, channels_last in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(contiguous, channels_last, atol=1e-5, rtol=1e-4)


def test_non_matrix_parameters_match_adam():
    torch.manual_seed(0)
    shapes = [(8,), (1, 8, 3, 3), (8, 1, 1, 1), (), (1, 5)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    assert not any(map(is_matrix, ours))
    theirs = copy.deepcopy(ours)
    optimizer = Muon(ours, lr=0.02, adam_lr_ratio=0.5, weight_decay=0.1)
    adam = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, foreach=False, fused=False)
    for batch in range(6):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one) if batch != 2 or one.ndim == 1 else None  # step counts differ
            other.grad = None if one.grad is None else one.grad.clone()
        optimizer.step()
        adam.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-7)


def test_adam_updates_weight_norm_gains_and_muon_directions():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3))
    assert not is_matrix(conv.parametrizations.weight.original0)
    assert is_matrix(conv.parametrizations.weight.original1)


def test_bits_are_those_of_torch_with_numbers_of_the_host():
    """`alpha=` and `value=` are one multiply-add each, so the tensors that replace them must be, too."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 4, 3, 3), (8,)))
    optimizer = Muon([weight, bias], lr=0.0, weight_decay=0.1)
    expected, (momentum, average, square) = [weight.detach().clone(), bias.detach().clone()], torch.zeros(3, 8, 4, 3, 3)
    average, square = average[:, 0, 0, 0].clone(), square[:, 0, 0, 0].clone()
    for step in range(1, 5):
        rate = optimizer.param_groups[0]["lr"] = 1e-2 / step
        weight.grad, bias.grad = (torch.randn(p.shape, generator=generator) for p in (weight, bias))
        optimizer.step()
        momentum.lerp_(weight.grad, 1 - 0.95)
        direction = orthogonalise(weight.grad.lerp(momentum, 0.95).flatten(1)[None]).view_as(weight)
        expected[0].mul_(1 - rate * 0.1).add_(direction, alpha=-rate * muon.update_scale(weight.shape))
        average.lerp_(bias.grad, 1 - 0.9)
        square.mul_(0.99).addcmul_(bias.grad, bias.grad, value=1 - 0.99)
        denominator = square.sqrt().div_(sqrt(1 - 0.99**step)).add_(1e-8)
        expected[1].mul_(1 - 0.1 * rate * 0.1).addcdiv_(average, denominator, value=-(rate * 0.1) / (1 - 0.9**step))
        assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])


def test_weight_decay_is_proportional_to_the_learning_rate():
    torch.manual_seed(0)
    weight, gradient = torch.randn(4, 6), torch.randn(4, 6)
    difference = one_update(weight, gradient, weight_decay=0.25) - one_update(weight, gradient)
    torch.testing.assert_close(difference, 0.25 * weight)


def test_resuming_is_bit_exact(tmp_path):
    whole = small_net()
    optimizer = Muon(whole.parameters())
    train(whole, optimizer, 0, 9, warmup_cosine(optimizer, 9))

    net = small_net()
    optimizer = Muon(net.parameters())
    schedule = warmup_cosine(optimizer, 9)
    train(net, optimizer, 0, 4, schedule)
    torch.save([net.state_dict(), optimizer.state_dict(), schedule.state_dict()], tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    net = small_net()
    optimizer = Muon(net.parameters(), lr=1.0, momentum=0.5)
    schedule = warmup_cosine(optimizer, 9)
    for part, state in zip((net, optimizer, schedule), saved, strict=True):
        part.load_state_dict(state)
    train(net, optimizer, 4, 9, schedule)
    for resumed, straight in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.equal(resumed, straight)


def test_groups_have_their_own_learning_rates_and_work_with_schedulers():
    frozen, moving = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([{"params": [frozen], "lr": 0.0}, {"params": [moving], "lr": 0.5}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    frozen.grad, moving.grad = torch.eye(4), torch.eye(4)
    optimizer.step()
    schedule.step()
    assert torch.equal(frozen.detach(), torch.ones(4, 4))
    assert not torch.equal(moving.detach(), torch.ones(4, 4))
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05)


def test_a_parameter_without_a_gradient_is_skipped():
    used, unused = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([used, unused])
    used.grad = torch.eye(4)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(4, 4))
    assert unused not in optimizer.state


def test_the_gradient_is_not_changed():
    weight = nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.arange(24.0).view(4, 6)
    Muon([weight]).step()
    assert torch.equal(weight.grad, torch.arange(24.0).view(4, 6))


def test_a_closure_computes_loss_and_gradients():
    weight = nn.Parameter(torch.eye(3))
    optimizer = Muon([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] == 3.0
    assert losses[2] < losses[1] < losses[0]


def test_it_solves_a_linear_system():
    torch.manual_seed(0)
    net, target = nn.Linear(12, 6), nn.Linear(12, 6)
    optimizer = Muon(net.parameters(), lr=0.05, adam_lr_ratio=1.0)
    schedule = warmup_cosine(optimizer, 300)
    inputs = torch.randn(256, 12)
    for _ in range(300):
        optimizer.zero_grad()
        (net(inputs) - target(inputs)).square().mean().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(net.weight, target.weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(net.bias, target.bias, atol=1e-3, rtol=0)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match=r"\(5, 3\) parameter is torch.sparse_coo.*only dense"):
        Muon(table.parameters()).step()


def test_complex_parameters_are_refused():
    with pytest.raises(InputError, match=r"\(2, 2\) torch.complex64"):
        Muon([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])


def test_all_settings_out_of_range_are_named_at_once():
    with pytest.raises(InputError, match=r"lr=-1.*weight_decay=nan.*momentum=1.0.*adam_betas=2.*ns_steps=0"):
        Muon(
            [nn.Parameter(torch.ones(2, 2))],
            lr=-1,
            momentum=1.0,
            adam_betas=(0.9, 2),
            ns_steps=0,
            weight_decay=float("nan"),
        )
