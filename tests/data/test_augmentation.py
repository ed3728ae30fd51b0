"""CutBlur, mixup and exchanged colours against a patch-by-patch computation in NumPy."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sr_lightning.data import FolderDataModule
from sr_lightning.data.augmentation import NUM_DRAWS, ORDERS, Augmentation
from sr_lightning.data.datamodule import identity_collate
from sr_lightning.data.patches import DeviceGather
from sr_lightning.degradations import JPEG, Bicubic, Noise, RandomDegradation, Resize, downscale
from sr_lightning.errors import InputError
from sr_lightning.images.files import read_image, write_image
from sr_lightning.networks import ESPCN
from sr_lightning.training.train import preflight
from tests.helpers import compose

ALL = {"cutblur": 0.6, "mixup": 0.5, "channel_shuffle": 0.7}
NOISY = RandomDegradation("noisy", {"resize": Resize(relative_to="lr"), "noise": Noise(), "jpeg": JPEG()})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(pictures, cache):
    def build(degradation=NOISY, **settings):
        data = FolderDataModule(
            str(pictures), val_fraction=0.3, scale=2, degradation=degradation, max_steps=100, seed=3, cache_dir=cache,
            **{"patch_size": 10, "batch_size": 8} | settings,
        )  # fmt: skip
        data.setup()
        return data

    return build


def batch(data, number, **where):
    return data.to_float(data.train_batches(**where)[number])


def expected(plain, seed, number, cutblur=0, mixup=0, channel_shuffle=0):
    """Augment a whole batch, patch by patch, from Philox's numbers."""
    images = {name: image.numpy().copy() for name, image in plain.items()}
    count, side = len(plain["lr"]), plain["lr"].shape[-1]
    raw = np.random.Philox(key=[seed, number], counter=[0, 0, 0, 3]).random_raw(count * NUM_DRAWS)
    u = (raw.reshape(count, -1) >> np.uint64(11)) / 2**53
    box, changed = round(0.7 * side), {"lr": [], "hr": []}
    for i in range(count):
        lr, hr = images["lr"][i], images["hr"][i]
        if u[i, 5] < cutblur:
            clean = downscale(torch.from_numpy(hr * 255).round().byte(), 2).numpy().astype(np.float32) * np.float32(
                1 / 255
            )
            top, left = (int(value * (side - box + 1)) for value in u[i, 6:8])
            inside, outside = (lr, clean) if u[i, 8] < 0.5 else (clean, lr)
            lr = outside.copy()
            lr[:, top : top + box, left : left + box] = inside[:, top : top + box, left : left + box]
        order = ORDERS[int(u[i, 4] * 6)] if u[i, 3] < channel_shuffle else [0, 1, 2]
        changed["lr"].append(lr[order])
        changed["hr"].append(hr[order])
    mixed = {"lr": [], "hr": []}
    for i in range(count):
        partner = (i + 1 + int(u[i, 1] * (count - 1))) % count
        weight = np.float32(int(u[i, 2] * 65536) / 65536)
        for name, images in changed.items():
            is_mixed = u[i, 0] < mixup
            mixed[name].append(images[i] * weight + images[partner] * (1 - weight) if is_mixed else images[i])
    return {name: torch.from_numpy(np.stack(images)) for name, images in mixed.items()}


@pytest.mark.parametrize("made_by", [NOISY, Bicubic()], ids=["random LR", "stored LR"])
@pytest.mark.parametrize("used", [ALL, {"mixup": 1.0}, {"cutblur": 1.0}, {"channel_shuffle": 1.0}], ids=" ".join)
def test_patches_are_those_of_a_computation_in_numpy(build, made_by, used):
    if isinstance(made_by, Bicubic):
        used = {name: p for name, p in used.items() if name != "cutblur"}
    plain, augmented = build(made_by), build(made_by, **used)
    for k in (0, 7):
        wanted = expected(batch(plain, k), 3, k, **used)
        found = batch(augmented, k)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_batch_does_not_depend_on_earlier_batches_or_calls(build):
    data = build(**ALL)
    forward = [batch(data, k) for k in range(4)]
    again = build(**ALL)
    for k in (3, 1, 1, 0, 2):
        drawn = again.train_batches()[k]
        for _ in range(2):
            assert all(torch.equal(image, forward[k][name]) for name, image in again.to_float(drawn).items())


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one(build, world_size):
    data = build(**ALL)
    whole = batch(data, 5)
    for rank in range(world_size):
        part = batch(data, 5, rank=rank, world_size=world_size)
        assert all(torch.equal(part[name], whole[name][rank::world_size]) for name in ("lr", "hr"))


def test_images_on_the_device_give_the_same_batch(build):
    data = build(**ALL, residence="device")
    data.device_gather = DeviceGather(data.train_store, "cpu")
    there, here = batch(data, 2), batch(data, 2, on_device=False)
    assert there.keys() == here.keys() == {"lr", "hr"}
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_workers_give_the_same_batches(build):
    data = build(**ALL)
    loader = DataLoader(
        data.train_batches(), batch_size=None, sampler=range(3), num_workers=1, collate_fn=identity_collate
    )
    for k, drawn in enumerate(loader):
        assert all(torch.equal(image, batch(data, k)[name]) for name, image in data.to_float(drawn).items())


def test_one_augmentation_does_not_change_the_draws_of_another():
    alone, together = Augmentation(cutblur=0.5).draw(1, 2, 64), Augmentation(0.5, None, 0.5).draw(1, 2, 64)
    for name in ("cut", "corner", "outside"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


def test_probabilities_partners_and_orders_are_as_stated():
    draws = [Augmentation(0.3, 0.5, 0.6).draw(0, k, 16) for k in range(400)]
    own = [draw.rows[:16] for draw in draws]
    assert np.mean([draw.mixed.mean() for draw in draws]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([draw.cut[:16].mean() for draw in draws]) == pytest.approx(0.3, abs=0.02)
    orders = np.concatenate([draw.order[:16] for draw in draws])
    shares = [(orders == order).all(axis=1).mean() for order in ORDERS]
    assert shares == pytest.approx([0.5] + [0.1] * 5, abs=0.02)  # an order of six: the usual one with 0.4 + 0.6 / 6
    away = np.concatenate([(draw.rows[16:] - rows[draw.mixed]) % 16 for draw, rows in zip(draws, own, strict=True)])
    assert set(away) == set(range(1, 16))


@pytest.mark.parametrize("settings", [{"cutblur": None}, {"mixup": 0, "cutblur": 0.0, "channel_shuffle": None}])
def test_augmentations_are_off_by_default(build, settings):
    assert build(**settings).augmentation is None
    data = compose().data
    assert data.cutblur is data.mixup is data.channel_shuffle is None


def test_wrong_probabilities_are_named_together(build):
    with pytest.raises(InputError, match=r"data.cutblur=2, data.mixup=True: give a probability from 0 to 1, or null"):
        build(cutblur=2, mixup=True, channel_shuffle=0.5)


def test_mixup_of_single_patches_is_refused(build):
    with pytest.raises(InputError, match=r"data\.mixup=0\.5 mixes patches of a batch: set data.batch_size to 2"):
        build(mixup=0.5, batch_size=1)


def test_cutblur_of_bicubic_lr_is_refused_and_of_other_files_not(build, pictures, tmp_path):
    with pytest.raises(InputError, match=r"data.cutblur=0.5 .* is already: choose a degradation"):
        build(Bicubic(), cutblur=0.5)
    for file in pictures.glob("*.png"):
        hr = torch.from_numpy(read_image(file))
        write_image(tmp_path / "bicubic" / file.name, downscale(hr, 2).numpy())
        write_image(tmp_path / "other" / file.name, 255 - downscale(255 - hr, 2).numpy() // 2)
    with pytest.raises(InputError, match=r"data.cutblur=0.5 .* is already"):
        build(Bicubic(), lr=str(tmp_path / "bicubic"), cutblur=0.5)
    build(Bicubic(), lr=str(tmp_path / "other"), cutblur=0.5)


def test_shuffled_channels_of_luma_are_refused_before_images_are_decoded(build, monkeypatch):
    data = build(channel_shuffle=0.5)
    monkeypatch.setattr(data, "setup", lambda: pytest.fail("decodes images"))
    module = torch.nn.Module()
    module.network = ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3])
    with pytest.raises(InputError, match=r"data\.channel_shuffle=0\.5: this network sees luma only"):
        preflight(module, data)
