"""Recorded steps change weights and state as the same steps computed directly; see also training/test_epoch_loop.py."""

import copy
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sr_lightning.errors import DivergedError
from sr_lightning.modules import SRModule
from sr_lightning.modules.recorded_step import FusedRule, RecordedStep
from sr_lightning.networks import ESPCN
from sr_lightning.optim import Muon
from tests.fake_graph import FakeGraph
from tests.helpers import differences
from tests.networks.test_every_network import CHOICES, small

OPTIMIZERS = {
    "Muon": partial(Muon, weight_decay=0.01),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
    "AdamW, amsgrad": partial(torch.optim.AdamW, lr=1e-3, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=1e-2),
    "SGD, Nesterov": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
}


def directly(program):
    return program


def batches(count, channels=3, scale=2):
    generator = torch.Generator().manual_seed(0)
    sides = {"lr": 16, "hr": 16 * scale}
    return [
        {name: torch.rand(2, channels, side, side, generator=generator) for name, side in sides.items()}
        for _ in range(count)
    ]


def built(network, optimizer=OPTIMIZERS["Muon"], **options):
    torch.manual_seed(0)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    module = SRModule(network, nn.L1Loss(), optimizer, **options).to(device).train()
    return module, module.configure_optimizers()["optimizer"]


def trained(record, network, optimizer=OPTIMIZERS["Muon"]):
    """Take steps with falling learning rates; return all state, the losses, and the norms of the last gradient."""
    module, optimizer = built(network, optimizer)
    first, *others = batches(4, scale=network.scale)
    step, losses = RecordedStep(module, [optimizer], first, record=record), []
    for batch in others:
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        step(batch)
        losses.append(float(step.losses["train/loss"]))
    return module.state_dict(), optimizer.state_dict(), losses, step.gradients


@pytest.mark.parametrize("name", CHOICES)
def test_every_network_can_be_recorded(name):
    network = small(name, 2)
    if next(network.parameters(), None) is None:
        return
    one, other = (trained(record, copy.deepcopy(network)) for record in (directly, FakeGraph))
    assert not list(differences(one, other, name))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_can_be_recorded(optimizer):
    one, other = (trained(record, ESPCN(scale=2), optimizer) for record in (directly, FakeGraph))
    assert not list(differences(one, other, "state"))
    assert len(set(one[2])) == 3


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_building_a_step_changes_nothing(optimizer):
    """Neither at the first batch nor after a resume."""
    module, optimizer = built(small("srresnet", 2), optimizer)
    random_state = torch.random.get_rng_state()
    first, *others = batches(4)
    for batch in others:
        before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
        step = RecordedStep(module, [optimizer], first, record=FakeGraph)
        after = module.state_dict(), optimizer.state_dict()
        if before[1]["state"]:
            assert not list(differences(before, after, "state"))
        assert torch.equal(torch.random.get_rng_state(), random_state)
        step(batch)


@pytest.mark.parametrize("name", ["Adam", "AdamW, amsgrad", "SGD", "SGD, Nesterov"])
def test_fused_optimizers_agree_with_those_of_torch(name):
    states = trained(directly, ESPCN(scale=2), OPTIMIZERS[name])[0]
    module, optimizer = built(ESPCN(scale=2), OPTIMIZERS[name])
    for batch in batches(4)[1:]:
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.zero_grad()
        module.loss_of(batch).backward()
        optimizer.step()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(states[key], value, rtol=1e-5, atol=1e-6)


def test_bad_batches_are_noted_up_to_the_first_that_may_not_be_skipped():
    """And are no steps in the state of the optimizer, whenever it is saved."""
    module, optimizer = built(ESPCN(scale=2), max_skipped_batches=2)
    module.skipped_batches = [3]
    good, bad = batches(2)
    bad["lr"][0] = torch.nan
    factor = torch.ones(1)  # of the norms, which it makes infinite
    step = RecordedStep(module, [optimizer], good, lambda each: factor * module.noted_norms_of(each), FakeGraph)
    assert step.bad_batches() == [3]
    noted = []
    for done, (batch, of_norms) in enumerate(((good, 1), (bad, 1), (good, 1), (good, torch.inf), (bad, 1)), 3):
        factor.fill_(of_norms)
        step(batch, done)
        state = copy.deepcopy(optimizer.state_dict()["state"])
        noted.append((step.bad_batches(), {each["step"] for each in state.values() if "step" in each}))
    assert noted == [([3], {1}), ([3, 5], {1}), ([3, 5], {2}), ([3, 5, 7], {2}), ([3, 5, 7], {2})]


def test_batches_skipped_before_a_resume_that_allows_fewer_do_not_stop_it():
    module, _ = built(ESPCN(scale=2), max_skipped_batches=1)
    module.skipped_batches, bad = [3, 5], [3, 5]
    module.recorded = SimpleNamespace(bad_batches=lambda: bad)
    module.check_gradients()
    bad.append(9)
    with pytest.raises(DivergedError, match="the gradients of batch 9 are NaN"):
        module.check_gradients()


def test_step_ends_with_its_module_not_with_its_optimizer():
    """A CUDA graph of several processes must be gone before NCCL ends."""
    module, optimizer = built(ESPCN(scale=2))
    module.recorded = RecordedStep(module, [optimizer], batches(1)[0], record=lambda program: lambda: None)
    step = weakref.ref(module.recorded)
    module.recorded = None
    assert step() is None
    optimizer.state_dict()


def test_batch_of_another_size_is_refused():
    module, optimizer = built(ESPCN(scale=2))
    step = RecordedStep(module, [optimizer], batches(1)[0], record=directly)
    with pytest.raises(ValueError, match=r"lr \(1, 3, 16, 16\): the step was recorded for \(2, 3, 16, 16\)"):
        step({name: image[:1] for name, image in batches(1)[0].items()})


def test_number_of_the_host_that_is_not_renewed_is_found(monkeypatch):
    """As a learning rate that was recorded as it was would be."""
    monkeypatch.setattr(FusedRule, "update", lambda rule, plan, numbers: rule.optimizer.step())
    optimizer = partial(torch.optim.SGD, lr=1e-2)
    one, other = (trained(record, ESPCN(scale=2), optimizer) for record in (directly, FakeGraph))
    assert list(differences(one, other, "state"))


def test_program_that_waits_for_the_device_cannot_be_recorded():
    module, optimizer = built(ESPCN(scale=2))
    with pytest.raises(RuntimeError, match="the host waits for a value"):
        RecordedStep(
            module,
            [optimizer],
            batches(1)[0],
            lambda optimizer: torch.tensor(float(module.network.convs[0].weight.sum())),
            FakeGraph,
        )
