"""Whole chains: reproducibility, independence from the batch, and every yaml in conf/degradation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sr_lightning.degradations import JPEG, Blur, EitherOrder, Noise, RandomDegradation, Resize
from sr_lightning.degradations.padded_batch import PaddedBatch, as_int64
from sr_lightning.errors import InputError
from tests.helpers import slow_except

FOLDER = Path(__file__).parents[2] / "conf" / "degradation"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "bicubic")


def load(name, *changes):
    cfg = OmegaConf.merge(OmegaConf.load(FOLDER / f"{name}.yaml"), OmegaConf.from_dotlist(list(changes)))
    return instantiate(cfg)


def patches(count=8, height=48, width=48, seed=0):
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 3, height // 8, width // 8), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().mul_(1 / 255)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_lr_has_8_bits_and_the_right_size_and_differs_for_each_image(name, scale):
    degradation = load(name)
    hr = patches(1).expand(12, -1, -1, -1)
    lr = degradation.degrade(hr, scale, degradation.draw(0, 0, 12))
    assert lr.shape == (12, 3, 48 // scale, 48 // scale) and lr.dtype == torch.float32 and lr.is_contiguous()
    levels = (lr * 255).round()
    assert torch.equal(lr, levels * (1 / 255)) and levels.min() >= 0 and levels.max() <= 255
    assert len({image.numpy().tobytes() for image in lr}) == 12
    assert (lr - hr[0].mean(dim=(1, 2), keepdim=True)).mean().abs() < 0.05  # still the same image


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_the_batch_or_on_earlier_calls(name):
    degradation = load(name)
    hr, random_bits = patches(10), degradation.draw(3, 7, 10)
    together = degradation.degrade(hr, 4, random_bits)
    degradation.degrade(patches(2, seed=1), 4, degradation.draw(3, 8, 2))
    torch.rand(1)  # the global generator has no influence
    for part in (slice(0, None, 2), slice(1, None, 2), slice(9, None)):
        assert torch.equal(degradation.degrade(hr[part], 4, random_bits[part]), together[part])
    in_one_chunk = degradation._degrade_chunk(hr, 4, random_bits)
    assert torch.equal(in_one_chunk, together)
    assert torch.equal(load(name).degrade(hr, 4, load(name).draw(3, 7, 10)), together)


def test_the_random_bits_depend_on_seed_and_batch_number_and_differ_from_those_of_the_patches():
    degradation = load("second_order")
    drawn = degradation.draw(0, 0, 4)
    assert drawn.shape == (4, 8 + 3 + 5 + 2 + 8 + 3 + 5 + 1 + 3 + 8 + 2) and drawn.dtype == np.uint64
    others = [degradation.draw(0, 1, 4), degradation.draw(1, 0, 4), np.random.Philox(key=[0, 0]).random_raw(drawn.size)]
    for other in others:
        assert not set(drawn.flatten().tolist()) & set(other.flatten().tolist())


def test_a_gpu_gives_the_same_bits():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for name in NAMES:
        degradation = load(name)
        hr, random_bits = patches(70), degradation.draw(0, 5, 70)
        assert torch.equal(
            degradation.degrade(hr.cuda(), 4, random_bits).cpu(), degradation.degrade(hr, 4, random_bits)
        )


class Devices(TorchDispatchMode):
    """Fail at operations with operands on two devices, except copies and scalars; note those with the host's."""

    def __init__(self):
        super().__init__()
        self.on_host = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if "copy" not in str(operation):
            assert len({operand.device for operand in operands if operand.ndim > 0}) < 2, operation
        if any(leaf.device.type == "cpu" for leaf in tree_leaves((operands, result)) if isinstance(leaf, torch.Tensor)):
            self.on_host.append(str(operation))
        return result


@pytest.mark.parametrize("name", slow_except(NAMES, "blur_noise_jpeg"))
def test_everything_is_computed_on_the_images_device_without_synchronising(name, monkeypatch):
    """In fixed shapes nothing comes from the host, except for constants at the first time: a graph has no copies."""
    degradation = load(name)
    for k in range(5):
        hr = torch.empty(12, 3, 48, 48, device="meta")  # reading a value would fail
        random_bits = degradation.draw(0, k, 12)
        there = as_int64(random_bits).to(hr.device)
        with Devices():
            assert degradation.degrade(hr, 4, random_bits).device == hr.device
        if k > 0:
            for name in ("tensor", "as_tensor", "from_numpy"):
                monkeypatch.setattr(torch, name, None)
        with Devices() as devices:
            assert degradation.degrade(hr, 4, there).device == hr.device
        monkeypatch.undo()
        assert k == 0 or not devices.on_host


def test_a_whole_image_gets_the_same_lr_in_every_run():
    degradation = load("second_order")
    hr = (patches(1, 40, 72)[0] * 255).round().to(torch.uint8)
    lr = degradation(hr, 4)
    assert lr.shape == (3, 10, 18) and lr.dtype == torch.uint8
    torch.manual_seed(1)
    assert torch.equal(load("second_order")(hr, 4), lr)
    changed = hr.clone()
    changed[0, 0, 0] ^= 1
    assert (load("second_order")(changed, 4) != lr).double().mean() > 0.5  # another image gets other noise


def test_a_gray_image_stays_gray_with_one_channel_or_three():
    degradation = load("blur_noise_jpeg", "steps.noise.gray=0", "steps.noise.gaussian=1")
    gray = (patches(1)[0, :1] * 255).to(torch.uint8)
    one, three = degradation(gray, 4), degradation(gray.expand(3, -1, -1), 4)
    assert one.shape == (1, 12, 12) and torch.equal(three, one.expand(3, -1, -1))


def test_every_setting_changes_the_key_and_the_lr_source():
    base, changed = load("second_order"), load("second_order", "steps.finish.other.jpeg.quality=[30,96]")
    assert base.lr_source.startswith("made-second_order-") and base.key != changed.key
    assert base.lr_source != changed.lr_source
    same = load("second_order", "steps.noise.sigma=[1.0,30.0]")
    assert same.key == base.key and same.lr_source == base.lr_source
    removed = OmegaConf.load(FOLDER / "second_order.yaml")
    del removed.steps.noise
    assert instantiate(removed).key != base.key


def test_the_second_order_chain_has_the_published_settings():
    steps = load("second_order").steps
    assert [type(step) for step in steps.values()] == [Blur, Resize, Noise, JPEG, Blur, Resize, Noise, EitherOrder]
    first, second = steps["blur"], steps["blur_2"]
    published = {"iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "generalized_aniso": 0.03}
    published |= {"plateau_iso": 0.12, "plateau_aniso": 0.03}
    assert first.kernels == pytest.approx({kind: 0.9 * share for kind, share in published.items()} | {"sinc": 0.1})
    assert second.kernels == first.kernels and second.probability == 0.8
    finish = steps["finish"]
    assert list(finish.one) == ["resize", "sinc"] and finish.one["sinc"].probability == 0.8


class Mark:
    """A step that appends its digit to the pixels, which shows the order of the steps."""

    def __init__(self, digit):
        self.digit, self.num_draws = digit, digit

    def __call__(self, batch, random_bits, lr_size):
        assert random_bits.shape == (len(batch.images), self.num_draws)
        return batch._replace(images=10 * batch.images + self.digit)


def test_both_orders_are_used_and_each_step_gets_its_own_random_bits():
    step = EitherOrder({"a": Mark(1), "b": Mark(2)}, {"c": Mark(3)})
    assert step.num_draws == 7
    random_bits = as_int64(np.random.Philox(key=0).random_raw(200 * 7)).view(200, 7)
    for fixed_shapes in (False, True):
        zeros, sizes = torch.zeros(200, 3, 1, 1, dtype=torch.float64), torch.ones(200, 2, dtype=torch.int64)
        batch = step(PaddedBatch(zeros, sizes, fixed_shapes), random_bits, (1, 1))
        orders = batch.images[:, 0, 0, 0].int().tolist()
        assert orders == [123 if bits >= 0 else 312 for bits in random_bits[:, 0].tolist()]
        assert set(orders) == {123, 312}


def test_invalid_chains_and_images_are_refused():
    with pytest.raises(InputError, match=r"its steps lead to 48x48, but LR has 12x12; .*relative_to=lr"):
        no_resize = RandomDegradation("mine", {"jpeg": JPEG()})
        no_resize.degrade(patches(2), 4, no_resize.draw(0, 0, 2))
    with pytest.raises(InputError, match=r"name='my own': use letters, digits .*; steps=\{\}: give one or more"):
        RandomDegradation("my own", {})
    with pytest.raises(InputError, match="second_order takes uint8"):
        load("second_order")(torch.rand(3, 8, 8), 2)
