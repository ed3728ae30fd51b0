import copy
import itertools
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from sr_lightning.checkpoints.checkpoint import network_weights
from sr_lightning.errors import DivergedError, InputError
from sr_lightning.inference import to_channels
from sr_lightning.losses import LDL, WeightedSum
from sr_lightning.metrics.per_image import Score
from sr_lightning.modules import SRModule
from sr_lightning.modules.sr import center_crop
from sr_lightning.networks import SRCNN, MSRResNet
from sr_lightning.optim import Muon

SGD = partial(torch.optim.SGD, lr=1e-2)


def module(**options):
    return SRModule(SRCNN(scale=2), nn.MSELoss(), **{"optimizer": SGD} | options)


def test_each_parameter_is_in_one_group_with_its_relative_learning_rate():
    optimizer = module(lr_factors={"conv3": 0.1, "conv1.bias": 0.5}).configure_optimizers()["optimizer"]
    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [
        (3, pytest.approx(1e-2)),
        (2, pytest.approx(1e-3)),
        (1, pytest.approx(5e-3)),
    ]


def test_a_learning_rate_factor_without_a_match_is_refused_with_the_parameter_names():
    with pytest.raises(InputError, match=r"conv4.*conv1\.weight"):
        module(lr_factors={"conv4": 0.1}).configure_optimizers()


def test_learning_rate_factors_require_a_learning_rate():
    with pytest.raises(InputError, match=r"model\.optimizer\.lr"):
        module(optimizer=partial(torch.optim.SGD), lr_factors={"conv3": 0.1}).configure_optimizers()


def test_an_optimizer_that_needs_a_closure_is_refused():
    with pytest.raises(InputError, match="LBFGS computes the loss several times in a step"):
        module(optimizer=torch.optim.LBFGS).configure_optimizers()


def test_the_scheduler_steps_per_batch():
    configured = module(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3)).configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"


def test_the_loss_of_an_unpadded_network_uses_the_centre_of_hr():
    trained = module().train()
    batch = {"lr": torch.rand(2, 3, 12, 12), "hr": torch.rand(2, 3, 24, 24)}
    before = trained.loss_of(batch)
    batch["hr"][..., :6, :] = 0.0  # the output of SRCNN 9-1-5 lacks 6 pixels on each side
    torch.testing.assert_close(trained.loss_of(batch), before)
    batch["hr"][..., :7, :] = 0.0
    assert trained.loss_of(batch) != before


def test_a_luma_network_gets_the_luma_of_colour_images():
    gray = torch.rand(1, 1, 8, 8)
    network = module().eval()
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 1, 16, 16)
    torch.testing.assert_close(network(gray), network.network(gray))


def test_validation_is_computed_without_tf32():
    seen = []
    validated = module().eval()
    validated.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    validated.score = Score(1, 2, validated.protocol)
    images = {"lr": torch.rand(1, 3, 20, 20), "hr": torch.rand(1, 3, 40, 40), "index": torch.tensor([0])}
    validated.validation_step(images, 0)
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_channels_last_changes_only_the_memory_layout():
    torch.manual_seed(0)
    first = module(channels_last=True)
    second = module(channels_last=False)
    second.load_state_dict(first.state_dict())
    batch = {"lr": torch.rand(2, 3, 12, 12), "hr": torch.rand(2, 3, 24, 24)}
    torch.testing.assert_close(first.loss_of(batch), second.loss_of(batch))
    assert first.network.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_moving_average_is_validated_and_loaded_from_checkpoints(fit, tmp_path):
    trained = module(ema=0.9)
    network = trained.network
    expected = {name: value.clone() for name, value in network.state_dict().items()}

    class Follow(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, k):
            decay = min(0.9, (1 + k) / (10 + k))
            for name, value in network.state_dict().items():
                expected[name] = decay * expected[name] + (1 - decay) * value

    trainer = fit(trained, 5, callbacks=[Follow()])
    for name, value in trained.averaged.state_dict().items():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, network.state_dict()[name])

    lr = torch.rand(1, 1, 9, 9)
    torch.testing.assert_close(trained.eval()(lr), trained.averaged(lr))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = network_weights(torch.load(tmp_path / "run.ckpt", weights_only=True))
    assert all(torch.equal(saved[name], value) for name, value in trained.averaged.state_dict().items())


def test_a_refined_loss_compares_with_the_averaged_network_in_evaluation_mode(fit, data):
    torch.manual_seed(0)
    loss = WeightedSum({"ldl": LDL(refined=True), "pixel": nn.L1Loss()}, {"ldl": 1.0, "pixel": 1.0})
    rate = 0.1  # large, so that the weights oscillate and their average is better in some pixels
    trained = SRModule(SRCNN(scale=2), loss, partial(torch.optim.SGD, lr=rate), ema=0.9)
    network, averaged = copy.deepcopy(trained.network).train(), copy.deepcopy(trained.network).eval()
    fit(trained, 3)
    data.setup()
    zeroed = []
    for k in range(3):
        batch = data.to_float(data.train_batches()[k])
        lr = to_channels(batch["lr"], 1)
        sr = network(lr)  # lacks a border, unlike the averaged network's in evaluation mode
        hr, mean = (center_crop(image, *sr.shape[-2:]) for image in (to_channels(batch["hr"], 1), averaged(lr)))
        weights = 1 + LDL().artifact_map(sr, hr) * ((sr - hr).abs() >= (mean - hr).abs())
        zeroed.append((weights == 1).float().mean().item())
        network.zero_grad()
        (weights * (sr - hr).abs()).mean().backward()
        decay = min(0.9, (1 + k) / (10 + k))
        with torch.no_grad():
            for p, average in zip(network.parameters(), averaged.parameters(), strict=True):
                p -= rate * p.grad
                average.copy_(decay * average + (1 - decay) * p)
    assert zeroed[0] == 0 and 0 < zeroed[1] < 1
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained.network.state_dict()[name], value)


def test_a_refined_loss_without_a_sum_is_given_the_average_once_training_begins():
    trained = SRModule(SRCNN(scale=2), LDL(refined=True), SGD, ema=0.9)
    lr, hr = torch.rand(2, 3, 12, 12), torch.rand(2, 3, 24, 24)
    sr, target = trained.train().sr_and_target(lr, hr)
    assert torch.equal(trained.image_loss(sr, target, lr), LDL()(sr, target))
    trained.setup("fit")
    nn.init.normal_(trained.averaged.conv3.weight)
    mean = trained.averaged_sr(lr, sr)
    torch.testing.assert_close(mean, center_crop(trained.averaged.eval()(to_channels(lr, 1)), *sr.shape[-2:]))
    found = trained.image_loss(sr, target, lr)
    assert found == LDL(refined=True)(sr, target, mean) and found != LDL()(sr, target)


def test_a_refined_loss_without_an_average_is_refused():
    with pytest.raises(InputError, match=r"refined=true of LDL\): set model\.ema, such as 0\.999, or refined=false"):
        SRModule(SRCNN(scale=2), LDL(refined=True), SGD)


def test_weights_that_are_not_finite_are_not_saved(monkeypatch):
    trained = module()
    monkeypatch.setattr(type(trained), "batches_done", 7)
    trained.on_save_checkpoint({})
    trained.network.conv2.bias.data[3] = torch.nan
    with pytest.raises(
        FloatingPointError, match="not finite after 7 batches and were not saved; earlier checkpoints are kept"
    ):
        trained.on_save_checkpoint({})


@pytest.mark.parametrize("accumulated", [1, 2])
def test_gradient_norm_is_logged_as_the_mean_over_the_steps_since_the_last_log(fit, monkeypatch, accumulated):
    norms, logged = [], []

    class Follow(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(torch.cat([p.grad.flatten() for p in module.network.parameters()]).norm().item())

    trained = module(log_every=4)
    monkeypatch.setattr(trained, "log_scalars", lambda metrics, step: logged.append(metrics["train/gradient"]))
    settings = {"accumulate_grad_batches": accumulated, "gradient_clip_val": 1e-3}
    fit(trained, 12, callbacks=[Follow()], **settings)
    until = [(step - 1) // accumulated for step in (4, 8, 12)]  # a batch is logged before the optimizer's step
    expected = [sum(norms[start:end]) / (end - start) for start, end in itertools.pairwise([0, *until])]
    assert logged == pytest.approx(expected)
    assert min(norms) > 1e-3


class InfiniteGradient(nn.Module):
    """Loss that is finite and has an infinite gradient in its third call in training."""

    calls = 0

    def forward(self, sr, hr):
        self.calls += self.training
        error = (sr - hr).square().sum()
        return (error - error.detach()).sqrt() if self.calls == 3 else error


def test_gradients_that_are_not_finite_stop_the_run_at_their_step(fit):
    trained = SRModule(SRCNN(scale=2), InfiniteGradient(), SGD, log_every=100)
    with pytest.raises(InputError, match="the gradients of batch 3 are NaN or infinite"):
        fit(trained, 10)
    assert all(value.isfinite().all() for value in trained.network.state_dict().values())


class SometimesNaN(nn.Module):
    """Loss that is NaN in its third call in training, and has NaN gradients in its fifth."""

    calls = 0

    def forward(self, sr, hr):
        self.calls += self.training
        error = (sr - hr).square().mean()
        return error * {3: torch.nan}.get(self.calls, 1) + ((error - error.detach()).sqrt() if self.calls == 5 else 0)


class States(pl.Callback):
    """Keep module and optimizer states after each batch."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *_):
        states = [module.state_dict(), *(optimizer.state_dict()["state"] for optimizer in trainer.optimizers)]
        self.states.append([value.clone() for value in tree_leaves(states) if isinstance(value, torch.Tensor)])

    def changed(self):
        """Return for each batch but the first whether it changed anything."""
        return [not all(map(torch.equal, one, other)) for one, other in itertools.pairwise(self.states)]


@pytest.mark.parametrize("optimizer", [partial(torch.optim.AdamW, lr=1e-3), partial(Muon, lr=1e-3)])
def test_batches_with_nan_gradients_are_skipped_up_to_the_given_number(fit, caplog, optimizer):
    def trained(max_skipped):
        network = MSRResNet(scale=2, num_features=4, num_blocks=1)
        network.head = nn.Sequential(network.head, nn.BatchNorm2d(4))
        return SRModule(network, SometimesNaN(), optimizer, log_every=1, ema=0.9, max_skipped_batches=max_skipped)

    skipping, states, logged = trained(2), States(), []
    skipping.log_scalars = lambda metrics, step: logged.append(metrics)
    trainer = fit(skipping, 7, callbacks=[states], gradient_clip_val=1.0)
    assert states.changed() == [True, False, True, False, True, True]
    assert skipping.skipped_batches == [3, 5]
    assert [("train/loss" in metrics) for metrics in logged] == [True, True, False, True, True, True, True]
    assert "batch 5 is skipped: its gradients are NaN or infinite (2 of at most 2)" in caplog.text
    assert trainer.global_step == 7

    checkpoint = {"recorded": {"count": 0, "sums": {}}}
    skipping.on_save_checkpoint(checkpoint)
    resumed = trained(2)
    resumed.trainer = trainer
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.skipped_batches == [3, 5]

    with pytest.raises(DivergedError, match="the gradients of batch 5 are NaN or infinite, after 1 skipped batches"):
        fit(trained(1), 7)


@pytest.mark.parametrize("number", [-1, 0.5, "ten"])
def test_a_limit_of_skipped_batches_that_is_no_number_of_batches_is_refused(number):
    with pytest.raises(InputError, match=rf"model\.max_skipped_batches={number} is not a number of batches"):
        module(max_skipped_batches=number)


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"model\.ema=1\.5 is not between 0 and 1"):
        module(ema=1.5)


def test_the_centre_is_cropped_with_equal_margins_or_refused():
    image = torch.arange(36).reshape(6, 6)
    assert center_crop(image, 2, 4).tolist() == [[13, 14, 15, 16], [19, 20, 21, 22]]
    for size in [(5, 6), (8, 6)]:
        with pytest.raises(ValueError, match="of 6x6 with equal margins"):
            center_crop(image, *size)
