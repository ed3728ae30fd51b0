import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from sr_lightning.losses import Charbonnier, TotalVariation, WeightedSum
from sr_lightning.modules import SRModule
from sr_lightning.networks import ESPCN

SR, HR = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = """
_target_: sr_lightning.losses.WeightedSum
terms:
  pixel:
    _target_: torch.nn.L1Loss
  perceptual:
    _target_: sr_lightning.losses.VGGLoss
    layers: {2_2: 0.5, "1_1": 2}
    weights: random
    criterion:
      _target_: torch.nn.L1Loss
weights: {pixel: 1e-2, perceptual: 1}
"""


class Forbidden(nn.Module):
    def forward(self, sr, hr):
        raise AssertionError("this term is not to be computed")


def test_the_loss_is_the_sum_of_the_named_weighted_terms():
    loss = WeightedSum({"l1": nn.L1Loss(), "tv": TotalVariation()}, {"tv": 0.25, "l1": 2})
    terms = loss.terms(SR, HR)
    assert terms.keys() == {"l1", "tv"}
    assert terms["l1"].item() == pytest.approx(2 * (SR - HR).abs().mean().item(), rel=1e-6)
    assert terms["tv"].item() == pytest.approx(0.25 * TotalVariation()(SR, HR).item(), rel=1e-6)
    assert loss(SR, HR).item() == pytest.approx(sum(terms.values()).item(), rel=1e-6)


@pytest.mark.parametrize("term", [Forbidden(), None])
def test_a_term_with_weight_0_is_not_computed(term):
    loss = WeightedSum({"l1": nn.L1Loss(), "other": term}, {"l1": 1, "other": 0})
    assert loss.terms(SR, HR).keys() == {"l1"}
    assert torch.equal(loss(SR, HR), nn.L1Loss()(SR, HR))


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({"a": nn.L1Loss(), "b": nn.L1Loss()}, {"b": 1, "c": 1}, "same names: a only in terms, c only in weights"),
        (
            {"a": nn.L1Loss(), "b": nn.L1Loss()},
            {"a": -1, "b": "much"},
            "weights must be numbers >= 0, got a: -1, b: much",
        ),
        (
            {"a": nn.L1Loss(), "b": nn.L1Loss()},
            {"a": float("nan"), "b": True},
            "weights must be numbers >= 0, got a: nan, b: True",
        ),
        ({"a": nn.L1Loss()}, {"a": 0}, "all weights are 0, got {'a': 0}"),
        ({}, {}, "all weights are 0"),
        ({"a": None, "b": nn.L1Loss()}, {"a": 1, "b": 1}, "a is null but has a weight"),
    ],
)
def test_terms_and_weights_that_do_not_match_are_refused_with_all_names(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedSum(terms, weights)


def test_it_can_be_built_from_yaml_with_a_perceptual_term_and_has_no_state():
    loss = instantiate(OmegaConf.create(CONFIG), _convert_="all")
    sr = SR.clone().requires_grad_()
    terms = loss.terms(sr, HR)
    assert list(terms) == ["pixel", "perceptual"]
    loss(sr, HR).backward()
    assert (sr.grad != 0).all()
    assert not loss.state_dict()
    assert not list(loss.parameters())


def test_the_names_of_terms_are_free():
    names = ["type", "half.1", "terms", "weights", "0"]
    loss = WeightedSum(dict.fromkeys(names, Charbonnier()), dict.fromkeys(names, 1))
    assert list(loss.terms(SR, HR)) == names


def test_it_works_in_srmodule_and_the_checkpoint_holds_only_the_network():
    loss = instantiate(OmegaConf.create(CONFIG), _convert_="all")
    network = ESPCN(scale=2, num_features=[8], kernel_sizes=[3, 3])
    module = SRModule(network, loss)
    batch = {"lr": torch.rand(2, 3, 16, 16), "hr": torch.rand(2, 3, 32, 32)}
    module.loss_of(batch).backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert module.state_dict().keys() == {f"network.{key}" for key in network.state_dict()}
    assert len(list(module.parameters())) == len(list(network.parameters()))
