from functools import partial
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from sr_lightning.callbacks import Alarms
from sr_lightning.checkpoints.checkpoint import network_weights
from sr_lightning.errors import InputError
from sr_lightning.losses import LeastSquares, RelativisticAverage, Vanilla, WeightedSum
from sr_lightning.modules import GANModule
from sr_lightning.modules.running_means import RunningMeans
from sr_lightning.networks import EDSR, Bicubic
from sr_lightning.optim import Muon, warmup_cosine
from tests.fake_graph import FakeGraph
from tests.helpers import differences

RATE, DISCRIMINATOR_RATE = 0.05, 0.02


def discriminator() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3)]
    network = nn.Sequential(*layers)
    network.num_channels = 3
    return network


def gan(adversarial=None, **options) -> GANModule:
    torch.manual_seed(0)
    settings = {
        "network": EDSR(scale=2, num_features=8, num_blocks=1),
        "loss": WeightedSum({"pixel": nn.MSELoss()}, {"pixel": 1.0}),
        "optimizer": partial(torch.optim.SGD, lr=RATE),
        "discriminator": discriminator(),
        "adversarial": adversarial or Vanilla(),
        "adversarial_weight": 0.1,
        "discriminator_optimizer": partial(torch.optim.SGD, lr=DISCRIMINATOR_RATE),
    }
    return GANModule(**(settings | options))


def train_in_plain_pytorch(module: GANModule, data, steps: int) -> None:
    """Train in the same way in plain PyTorch, with vanilla losses."""
    data.setup()
    real, fake = torch.ones, torch.zeros
    for k in range(steps):
        batch = data.to_float(data.train_batches()[k])
        sr, hr = module.network(batch["lr"]), batch["hr"]
        logits = module.discriminator(sr)
        loss = F.mse_loss(sr, hr) + 0.1 * F.binary_cross_entropy_with_logits(logits, real(logits.shape))
        for p, gradient in zip(
            module.network.parameters(), torch.autograd.grad(loss, list(module.network.parameters())), strict=True
        ):
            p.data -= RATE * gradient
        logits = module.discriminator(torch.cat([batch.get("real", hr), sr.detach()])).chunk(2)
        loss = sum(
            F.binary_cross_entropy_with_logits(part, label(part.shape))
            for part, label in zip(logits, (real, fake), strict=True)
        )
        gradients = torch.autograd.grad(loss, list(module.discriminator.parameters()))
        for p, gradient in zip(module.discriminator.parameters(), gradients, strict=True):
            p.data -= DISCRIMINATOR_RATE * gradient


def assert_close(one: GANModule, other: GANModule, **tolerance) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **tolerance, msg=name)


@pytest.mark.parametrize("sharpen_hr", [None, 0.5])
def test_training_matches_the_same_steps_in_plain_pytorch(fit, data, monkeypatch, sharpen_hr):
    monkeypatch.setattr(data, "sharpen_hr", sharpen_hr)
    trained, expected = gan(), gan()
    fit(trained, 5)
    train_in_plain_pytorch(expected, data, 5)
    assert_close(trained, expected)
    assert not torch.equal(trained.network.head.weight, gan().network.head.weight)


def test_steps_and_schedules_count_batches(fit):
    halve = partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5)
    trained = gan(scheduler=halve, discriminator_scheduler=halve)
    trainer = fit(trained, 7)
    assert trainer.global_step == trained.batches_done == 7
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([RATE / 4, DISCRIMINATOR_RATE / 4])


class NaNInOneBatch(nn.Module):
    """NaN for images of one brightness, whatever the network computes."""

    def forward(self, sr, hr):
        return (sr - hr).abs().mean() * torch.where(hr.mean() > 0.5, torch.nan, 1.0)


@pytest.mark.parametrize(("sharpen_hr", "loss"), [(None, nn.L1Loss()), (0.5, NaNInOneBatch())], ids=["plain", "NaN"])
@pytest.mark.parametrize("adversarial", [Vanilla(), RelativisticAverage()])
def test_replayed_steps_train_both_networks_to_the_same_bits(fit, data, monkeypatch, adversarial, sharpen_hr, loss):
    monkeypatch.setattr(data, "sharpen_hr", sharpen_hr)
    muon, schedule = partial(Muon, lr=1e-3), partial(warmup_cosine, total_steps=5)
    runs = []
    for record in (None, FakeGraph):
        torch.manual_seed(0)
        module = gan(
            adversarial, optimizer=muon, discriminator_optimizer=muon, scheduler=schedule, ema=0.9,
            discriminator_scheduler=schedule, gradient_clip_val=1e-2, log_every=2,
            discriminator=spectral_norms(discriminator()), loss=loss, max_skipped_batches=1,
        )  # fmt: skip
        module.record, logged = record, []
        monkeypatch.setattr(module, "log_scalars", lambda metrics, step, logged=logged: logged.append((step, metrics)))
        trainer = fit(module, 5)
        assert trainer.global_step == 5
        states = [each.state_dict() for each in trainer.optimizers]
        module.check_gradients()
        runs.append((module.state_dict(), states, logged, module.skipped_batches))
    assert not list(differences(*runs, "run"))
    assert len(runs[0][2]) == 2
    assert len(runs[0][3]) == (sharpen_hr is not None)


def spectral_norms(network: nn.Module) -> nn.Module:
    """Normalise the convolutions spectrally, whose vectors are buffers that each forward pass changes."""
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            torch.nn.utils.spectral_norm(layer)
    return network


def test_the_generator_enlarges_each_batch_once(fit):
    trained, calls = gan(), []
    trained.network.register_forward_hook(lambda *_: calls.append(1))
    fit(trained, 4)
    assert len(calls) == 4


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_both_gradients_are_clipped_in_every_precision(fit, precision):
    clip = 1e-3
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
    plugins = None if precision == "32-true" else [MixedPrecision(precision, "cpu", scaler)]
    trained, before = gan(gradient_clip_val=clip), gan()
    fit(trained, 1, plugins=plugins)
    for name, rate in [("network", RATE), ("discriminator", DISCRIMINATOR_RATE)]:
        moves = [
            (a - b).flatten()
            for a, b in zip(getattr(trained, name).parameters(), getattr(before, name).parameters(), strict=True)
        ]
        assert torch.cat(moves).norm().item() == pytest.approx(rate * clip, rel=1e-2)


def test_fp16_scaling_trains_like_float32(fit):
    scaled, expected = gan(), gan()
    trainer = fit(
        scaled, 3, plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))]
    )
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**10  # no step was skipped
    fit(expected, 3)
    assert_close(scaled, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulating_over_parts_of_a_batch_gives_the_same_step(fit, parts):
    whole, parted = gan(), gan(accumulate=parts)
    fit(whole, 3)
    fit(parted, 3)
    assert_close(parted, whole)
    whole.trainer = parted.trainer = None


@pytest.mark.parametrize("adversarial", [Vanilla(), LeastSquares(), RelativisticAverage()])
def test_the_adversarial_term_alone_moves_the_generator(fit, adversarial):
    class Nothing(nn.Module):
        def forward(self, sr, hr):
            return 0 * sr.sum()

    trained = gan(adversarial, loss=Nothing())
    before = trained.network.head.weight.clone()
    fit(trained, 1)
    assert not torch.equal(trained.network.head.weight, before)


def test_every_loss_term_and_both_learning_rates_are_logged(fit, monkeypatch):
    trained, logged = gan(log_every=2), []
    monkeypatch.setattr(trained, "log_scalars", lambda metrics, step: logged.append((step, metrics)))
    fit(trained, 4)
    assert [step for step, _ in logged] == [2, 4]
    realness = {"train/d_hr", "train/d_sr", "train/discriminator_loss"}
    gradients = {"train/gradient", "train/discriminator_gradient"}
    rates = {"train/learning_rate", "train/discriminator_learning_rate"}
    assert logged[0][1].keys() == {"train/loss", "train/pixel", "train/adversarial"} | realness | gradients | rates
    assert logged[0][1]["train/pixel"] == logged[0][1]["train/loss"]


def test_a_skipped_batch_updates_neither_network(fit):
    class NaNInTheSecondBatch(nn.Module):
        calls = 0

        def forward(self, sr, hr):
            self.calls += 1
            return (sr - hr).abs().mean() * (torch.nan if self.calls == 2 else 1)

    states = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            states.append({name: value.clone() for name, value in module.state_dict().items()})

    trained = gan(loss=NaNInTheSecondBatch(), log_every=1, max_skipped_batches=1)
    fit(trained, 3, callbacks=[Keep()])
    assert trained.skipped_batches == [2]
    changed = [{name for name in one if not torch.equal(one[name], other[name])} for one, other in pairwise(states)]
    assert changed[0] == set()
    assert any(name.startswith("discriminator") for name in changed[1])


def test_a_nan_loss_stops_the_run_and_is_named(fit):
    class Broken(nn.Module):
        def forward(self, sr, hr):
            return (sr - hr).mean() * torch.nan

    trained = gan(loss=WeightedSum({"broken": Broken()}, {"broken": 1.0}), log_every=1)
    with pytest.raises(FloatingPointError, match=r"gradients of batch 1 .*train/broken is nan"):
        fit(trained, 2)


def test_the_moving_average_covers_only_the_generator(fit, tmp_path):
    trained = gan(ema=0.9)
    trainer = fit(trained, 3)
    trainer.save_checkpoint(tmp_path / "gan.ckpt")
    checkpoint = torch.load(tmp_path / "gan.ckpt", weights_only=True)
    averaged = {key for key in checkpoint["state_dict"] if key.startswith("averaged.")}
    assert {key.removeprefix("averaged.") for key in averaged} == trained.network.state_dict().keys()
    EDSR(scale=2, num_features=8, num_blocks=1).load_state_dict(network_weights(checkpoint))


def test_a_generator_without_parameters_is_refused():
    with pytest.raises(InputError, match="Bicubic has no parameters to train: choose another generator"):
        gan(network=Bicubic(scale=2))


def test_a_discriminator_with_other_channels_than_the_network_is_refused():
    with pytest.raises(InputError, match=r"model\.discriminator\.num_channels=3 differs from the network's 1"):
        gan(network=EDSR(scale=2, num_features=8, num_blocks=1, num_channels=1))


class Watched:
    """The attributes of a module that an alarm reads."""

    log_every, batches_done, warm_start, running_means = 1, 40, "a run", RunningMeans()

    def __init__(self, **latest):
        self.latest = {f"train/{key}": value for key, value in latest.items()}


class Trainer:
    is_global_zero = True

    def __init__(self, sanity_checking=False):
        self.sanity_checking = sanity_checking


def watch(alarms: Alarms, realness: list[tuple[float, float]]) -> None:
    for k, (d_hr, d_sr) in enumerate(realness):
        alarms.on_train_batch_end(Trainer(), Watched(d_hr=d_hr, d_sr=d_sr), None, None, k)


def test_a_saturated_and_a_blind_discriminator_raise_an_alarm_after_the_patience(caplog):
    watch(Alarms(patience=3), [(1.0, 0.0), (1.0, 0.0), (0.7, 0.3), (1.0, 0.0), (1.0, 0.0)])
    assert not caplog.records
    watch(Alarms(patience=3), [(0.999, 0.002)] * 5)
    watch(Alarms(patience=3), [(0.5, 0.5)] * 5)
    first, second = [record.message for record in caplog.records]
    assert first.startswith("step 3: the discriminator is saturated: D(HR) = 0.999 and D(SR) = 0.002")
    assert second == (
        "step 3: the discriminator is blind: D(HR) = 0.500 and D(SR) = 0.500, for 3 logged values in a row; "
        "try a larger model.discriminator_optimizer.lr"
    )
    with pytest.raises(InputError, match="stopped at step 2: the discriminator is saturated"):
        watch(Alarms(patience=2, action="stop"), [(1.0, 0.0)] * 2)


def test_psnr_far_below_the_warm_start_raises_an_alarm_also_after_resuming(caplog):
    alarms, module = Alarms(psnr_drop=2.0), Watched()
    for psnr, sanity_checking in [(30.0, True), (28.5, False), (27.9, False)]:
        module.latest["val/psnr"] = psnr
        alarms.on_validation_end(Trainer(sanity_checking), module)
    (record,) = caplog.records
    assert "from the warm start's 30.00 dB to 27.90 dB" in record.message
    resumed = Alarms(psnr_drop=2.0, action="stop")
    resumed.load_state_dict(alarms.state_dict())
    with pytest.raises(InputError, match="Earlier checkpoints are kept"):
        resumed.on_validation_end(Trainer(), module)


def test_invalid_alarm_settings_are_refused():
    with pytest.raises(InputError, match=r"action=shout: choose warn or stop"):
        Alarms(action="shout")
    with pytest.raises(InputError, match=r"blind=0\.5, saturated=0\.4"):
        Alarms(blind=0.5, saturated=0.4)
