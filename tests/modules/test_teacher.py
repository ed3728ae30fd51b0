"""Distillation: the loss to a frozen network's SR beside the loss to HR."""

import copy
import importlib
from functools import partial

import pytest
import torch
from torch import nn

from sr_lightning.errors import InputError
from sr_lightning.losses import Vanilla
from sr_lightning.modules import GANModule, SRModule
from sr_lightning.networks import ESPCN, SRCNN, Compact, PatchDiscriminator
from sr_lightning.optim import Muon
from tests.fake_graph import FakeGraph
from tests.helpers import differences

SGD = partial(torch.optim.SGD, lr=1e-2)
BATCH = {"lr": torch.rand(2, 3, 8, 8), "hr": torch.rand(2, 3, 16, 16)}


def compact(num_features=4, scale=2):
    return Compact(scale=scale, num_features=num_features, num_blocks=1, num_channels=3, global_skip=False)


@pytest.fixture
def file(tmp_path):
    """Return a file of another project with the weights of a teacher."""
    torch.manual_seed(0)
    torch.save(compact(8).state_dict(), tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


def taught(file, **options):
    return SRModule(compact(), nn.MSELoss(), SGD, teacher=file, **options)


def test_the_weighted_loss_to_the_sr_of_the_teacher_is_added(file):
    module = taught(file, teacher_weight=0.5)
    sr, teacher_sr = module(BATCH["lr"]), compact(8)
    teacher_sr.load_state_dict(torch.load(file))
    target = teacher_sr(BATCH["lr"])
    expected = nn.functional.mse_loss(sr, BATCH["hr"]) + 0.5 * nn.functional.mse_loss(sr, target)
    torch.testing.assert_close(module.loss_of(BATCH), expected)
    assert set(module.running_means.sums) == {"train/loss", "train/teacher"}


def test_the_weight_falls_linearly_to_zero(file):
    module = taught(file, teacher_weight=2, teacher_steps=100)
    assert [module.teacher.weight_at(step) for step in (0, 25, 100, 200)] == [2, 1.5, 0, 0]
    alone = nn.functional.mse_loss(module(BATCH["lr"]), BATCH["hr"])
    torch.testing.assert_close(module.loss_of(BATCH, 100), alone)
    assert alone < module.loss_of(BATCH, 99) < module.loss_of(BATCH, 0)


def test_a_teacher_is_no_part_of_weights_optimizer_and_training_mode(file, fit):
    module, plain = taught(file), SRModule(compact(), nn.MSELoss(), SGD)
    before = {name: value.clone() for name, value in module.teacher.network.state_dict().items()}
    fit(module, 3)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert len(list(module.parameters())) == len(list(plain.parameters()))
    assert not module.teacher.network.training and module.training
    for name, value in module.teacher.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert next(module.double().teacher.network.parameters()).dtype == torch.float64  # it follows the module


def test_steps_of_a_run_advance_the_weight(file, fit, monkeypatch):
    module, seen = taught(file, teacher_steps=3), []
    monkeypatch.setattr(module.teacher, "weight_at", lambda step: seen.append(step) or 1.0)
    fit(module, 3)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("discriminator", [None, PatchDiscriminator(num_features=4, num_layers=1, num_channels=3)])
def test_recorded_steps_have_the_weight_of_their_batch(file, fit, discriminator):
    adversarial = {"discriminator": discriminator, "adversarial": Vanilla(), "adversarial_weight": 1e-3}
    adversarial |= {"discriminator_optimizer": partial(Muon, lr=1e-3)}
    runs = []
    for record in (None, FakeGraph):
        torch.manual_seed(1)
        taught_with = {"teacher": file, "teacher_weight": 0.7, "teacher_steps": 3}
        options = copy.deepcopy(taught_with if discriminator is None else taught_with | adversarial)
        module_class = SRModule if discriminator is None else GANModule
        module = module_class(compact(), nn.MSELoss(), partial(Muon, lr=1e-3), **options)
        module.record = record
        fit(module, 5)
        runs.append((module.state_dict(), module.running_means.sums))
    assert not list(differences(*runs, "run"))


def test_an_unpadded_network_is_compared_with_the_centre(tmp_path, monkeypatch):
    module = SRModule(SRCNN(scale=2), nn.MSELoss(), SGD)
    options = partial(SRCNN, scale=2)
    monkeypatch.setattr("sr_lightning.modules.teacher.load_any", lambda *_: type("", (), {"network": options()}))
    module = SRModule(SRCNN(scale=2), nn.MSELoss(), SGD, teacher="srcnn.pth").train()
    batch = {"lr": torch.rand(2, 3, 12, 12), "hr": torch.rand(2, 3, 24, 24)}
    assert module.loss_of(batch).isfinite() and module.running_means.sums["train/teacher"] > 0


def test_a_generator_is_taught_too(file, fit):
    options = {"discriminator": PatchDiscriminator(num_features=4, num_layers=1, num_channels=3)}
    options |= {"adversarial": Vanilla(), "adversarial_weight": 1e-3, "discriminator_optimizer": SGD}
    seen = []
    for accumulate in (1, 2):
        torch.manual_seed(1)
        module = GANModule(compact(), nn.MSELoss(), SGD, **options, teacher=file, accumulate=accumulate, log_every=9)
        fit(module, 1)
        seen.append(float(module.running_means.sums["train/teacher"]))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5) and seen[0] > 0


def test_a_network_that_spandrel_reads_teaches(spandrel, tmp_path, caplog):
    torch.manual_seed(0)
    network = importlib.import_module("spandrel.architectures.OmniSR").OmniSR(num_feat=16, res_num=1, up_scale=2)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "omnisr.pth")
    module, batch = taught(tmp_path / "omnisr.pth"), {"lr": torch.rand(1, 3, 16, 16), "hr": torch.rand(1, 3, 32, 32)}
    assert "OmniSR x2, which spandrel reads: look up its licence" in caplog.text
    with torch.no_grad():
        term = nn.functional.mse_loss(module(batch["lr"]), network.eval()(batch["lr"]))
    module.loss_of(batch).backward()
    torch.testing.assert_close(module.running_means.sums["train/teacher"].float(), term)
    with torch.device("meta"):  # as in a dry run
        assert next(taught(tmp_path / "omnisr.pth").teacher.network.parameters()).is_meta


class Own(ESPCN):
    """A network that is not one of this project's."""


def test_a_teacher_of_another_package_must_be_allowed(tmp_path, trained):
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["model"]["network"]["_target_"] = f"{__name__}.Own"
    torch.save(content, tmp_path / "own.ckpt")
    given = (ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3]), nn.MSELoss(), SGD)
    with pytest.raises(InputError, match=r"^model.teacher=.*own.ckpt names a network that is not one of this"):
        SRModule(*given, teacher=str(tmp_path / "own.ckpt"))
    module = SRModule(*given, teacher=str(tmp_path / "own.ckpt"), teacher_allow=__name__)
    assert type(module.teacher.network).__name__ == "Own"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weight": 0}, "model.teacher_weight=0: give a number above 0"),
        ({"teacher_weight": True}, "model.teacher_weight=True"),
        ({"teacher_weight": float("inf")}, "model.teacher_weight=inf"),
        ({"teacher_steps": 0}, "model.teacher_steps=0: give a number of steps"),
        ({"teacher_steps": 0.5}, "model.teacher_steps=0.5"),
        ({"teacher": None, "teacher_steps": 5}, "need model.teacher"),
        ({"teacher": "absent.pth"}, "model.teacher=absent.pth: there is no file"),
        ({"network": compact(scale=4)}, "enlarges x2 on RGB, the network to train x4 on RGB"),
        ({"network": SRCNN(scale=2)}, "enlarges x2 on RGB, the network to train x2 on luma"),
    ],
)
def test_what_does_not_fit_is_refused(file, options, message):
    with pytest.raises(InputError, match=message):
        SRModule(**{"network": compact(), "loss": nn.MSELoss(), "optimizer": SGD, "teacher": file} | options)
