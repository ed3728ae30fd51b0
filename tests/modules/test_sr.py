from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from sr_lightning.checkpoints.checkpoint import network_weights
from sr_lightning.errors import InputError
from sr_lightning.modules import SRModule
from sr_lightning.modules.sr import center_crop
from sr_lightning.networks import SRCNN

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


def test_weights_that_are_not_finite_are_not_saved(monkeypatch):
    trained = module()
    monkeypatch.setattr(type(trained), "batches_done", 7)
    trained.on_save_checkpoint({})
    trained.network.conv2.bias.data[3] = torch.nan
    with pytest.raises(
        FloatingPointError, match="not finite after 7 batches and were not saved; earlier checkpoints are kept"
    ):
        trained.on_save_checkpoint({})


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


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"model\.ema=1\.5 is not between 0 and 1"):
        module(ema=1.5)


def test_the_centre_is_cropped_with_equal_margins_or_refused():
    image = torch.arange(36).reshape(6, 6)
    assert center_crop(image, 2, 4).tolist() == [[13, 14, 15, 16], [19, 20, 21, 22]]
    for size in [(5, 6), (8, 6)]:
        with pytest.raises(ValueError, match="of 6x6 with equal margins"):
            center_crop(image, *size)
