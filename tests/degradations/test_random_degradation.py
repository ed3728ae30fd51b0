"""Whole chains: what they depend on, in which company, and that every yaml of conf/degradation is one that works."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sr_lightning.degradations import JPEG, Blur, EitherOrder, Noise, RandomDegradation, Resize
from sr_lightning.degradations.padded_batch import Canvas
from sr_lightning.errors import InputError

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
def test_lr_is_8_bit_of_its_size_and_another_for_each_image(name, scale):
    degradation = load(name)
    hr = patches(1).expand(12, -1, -1, -1)
    lr = degradation.degrade(hr, scale, degradation.draw(0, 0, 12))
    assert lr.shape == (12, 3, 48 // scale, 48 // scale) and lr.dtype == torch.float32 and lr.is_contiguous()
    levels = (lr * 255).round()
    assert torch.equal(lr, levels * (1 / 255)) and levels.min() >= 0 and levels.max() <= 255
    assert len({image.numpy().tobytes() for image in lr}) == 12
    assert (lr - hr[0].mean(dim=(1, 2), keepdim=True)).mean().abs() < 0.05  # it is still that image


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_those_beside_it_nor_on_what_came_before(name):
    degradation = load(name)
    hr, words = patches(10), degradation.draw(3, 7, 10)
    together = degradation.degrade(hr, 4, words)
    degradation.degrade(patches(2, seed=1), 4, degradation.draw(3, 8, 2))
    torch.rand(1)  # no global generator has a say
    for part in (slice(0, None, 2), slice(1, None, 2), slice(9, None)):
        assert torch.equal(degradation.degrade(hr[part], 4, words[part]), together[part])
    all_in_one_plane = degradation._part(hr, 4, words)
    assert torch.equal(all_in_one_plane, together)
    assert torch.equal(load(name).degrade(hr, 4, load(name).draw(3, 7, 10)), together)


def test_words_depend_on_seed_and_batch_number_and_are_not_those_of_the_patches():
    degradation = load("second_order")
    drawn = degradation.draw(0, 0, 4)
    assert drawn.shape == (4, 8 + 3 + 5 + 2 + 8 + 3 + 5 + 1 + 3 + 8 + 2) and drawn.dtype == np.uint64
    others = [degradation.draw(0, 1, 4), degradation.draw(1, 0, 4), np.random.Philox(key=[0, 0]).random_raw(drawn.size)]
    for other in others:
        assert not set(drawn.flatten().tolist()) & set(other.flatten().tolist())


def test_a_device_with_an_accelerator_gives_the_same_bits():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for name in NAMES:
        degradation = load(name)
        hr, words = patches(70), degradation.draw(0, 5, 70)
        assert torch.equal(degradation.degrade(hr.cuda(), 4, words).cpu(), degradation.degrade(hr, 4, words))


class OneDevice(TorchDispatchMode):
    """Lets no operation have operands on two devices, but for copies and numbers."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim > 0]
        if "copy" not in str(operation):
            assert len({operand.device for operand in operands}) < 2, operation
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_computed_where_the_images_are_and_none_of_it_is_waited_for(name):
    degradation = load(name)
    for k in range(5):
        hr = torch.empty(12, 3, 48, 48, device="meta")  # of which no value can be asked
        with OneDevice():
            assert degradation.degrade(hr, 4, degradation.draw(0, k, 12)).device == hr.device


def test_whole_images_of_any_shape_get_the_same_lr_in_every_run():
    degradation = load("second_order")
    hr = (patches(1, 40, 72)[0] * 255).round().to(torch.uint8)
    lr = degradation(hr, 4)
    assert lr.shape == (3, 10, 18) and lr.dtype == torch.uint8
    torch.manual_seed(1)
    assert torch.equal(load("second_order")(hr, 4), lr)
    changed = hr.clone()
    changed[0, 0, 0] ^= 1
    assert (load("second_order")(changed, 4) != lr).double().mean() > 0.5  # another image, other noise


def test_a_gray_image_stays_gray_with_one_channel_or_three():
    degradation = load("blur_noise_jpeg", "steps.noise.gray=0", "steps.noise.gaussian=1")
    gray = (patches(1)[0, :1] * 255).to(torch.uint8)
    one, three = degradation(gray, 4), degradation(gray.expand(3, -1, -1), 4)
    assert one.shape == (1, 12, 12) and torch.equal(three, one.expand(3, -1, -1))


def test_the_key_and_the_protocols_name_stand_for_every_setting():
    base, changed = load("second_order"), load("second_order", "steps.finish.other.jpeg.quality=[30,96]")
    assert base.lr_source.startswith("made-second_order-") and base.key != changed.key
    assert base.lr_source != changed.lr_source
    same = load("second_order", "steps.noise.sigma=[1.0,30.0]")
    assert same.key == base.key and same.lr_source == base.lr_source
    removed = OmegaConf.load(FOLDER / "second_order.yaml")
    del removed.steps.noise
    assert instantiate(removed).key != base.key


def test_the_second_order_chain_is_the_published_one():
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
    """A step that appends its digit to the pixels, to tell the order."""

    def __init__(self, digit):
        self.digit, self.words = digit, digit

    def __call__(self, canvas, words, lr_sizes):
        assert words.shape == (len(canvas.images), self.words)
        return Canvas(10 * canvas.images + self.digit, canvas.sizes)


def test_either_order_is_taken_half_the_time_and_each_step_gets_its_words():
    step = EitherOrder({"a": Mark(1), "b": Mark(2)}, {"c": Mark(3)})
    assert step.words == 7
    words = np.random.Philox(key=0).random_raw(200 * 7).reshape(200, 7)
    canvas = Canvas(torch.zeros(200, 3, 1, 1, dtype=torch.float64), np.ones((200, 2), np.int64))
    orders = step(canvas, words, np.ones((200, 2), np.int64)).images[:, 0, 0, 0].int().tolist()
    assert orders == [123 if word < 1 << 63 else 312 for word in words[:, 0].tolist()]
    assert set(orders) == {123, 312}


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"its steps lead to 48x48, LR has 12x12; .*relative_to=lr"):
        no_resize = RandomDegradation("mine", {"jpeg": JPEG()})
        no_resize.degrade(patches(2), 4, no_resize.draw(0, 0, 2))
    with pytest.raises(InputError, match=r"name='my own': letters, digits .*; steps=\{\}: one or more"):
        RandomDegradation("my own", {})
    with pytest.raises(InputError, match="second_order takes uint8"):
        load("second_order")(torch.rand(3, 8, 8), 2)
