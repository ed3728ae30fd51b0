"""Noise compared with SplitMix64's published numbers and SciPy's distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from sr_lightning.degradations import Noise, noise
from sr_lightning.degradations.noise import PHOTONS, gaussian_noise, poisson_noise, splitmix64, standard_normal
from sr_lightning.degradations.padded_batch import PaddedBatch, as_int64
from sr_lightning.errors import InputError


def flat(level, n=1, side=200):
    return torch.full((n, 3, side, side), level / 255, dtype=torch.float64)


def per_image(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def test_splitmix64_gives_the_published_numbers():
    bits = splitmix64(torch.tensor([1234567]), 1, 1, 5).flatten().numpy().view(np.uint64).tolist()
    assert bits == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_bits_at_a_position_depend_only_on_the_key_and_the_position():
    key = torch.tensor([5, -(1 << 60)])
    large = splitmix64(key, 3, 20, 30)
    assert torch.equal(splitmix64(key[1:], 2, 7, 9), large[1:, :2, :7, :9])
    assert len(large.unique()) == large.numel()


def test_standard_normal_numbers_are_normal_and_independent():
    normal = standard_normal(torch.tensor([0, 1]), 3, 100, 200).flatten(1).numpy()
    for numbers in normal:
        assert stats.kstest(numbers, "norm").pvalue > 1e-3
    pairs = [(normal[0], normal[1]), (normal[0][:-1], normal[0][1:]), (normal[0][:-200], normal[0][200:])]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))


def test_gaussian_noise_has_the_given_sigma_in_levels_and_can_be_gray():
    key = torch.tensor([1, 2])
    noisy, gray = (gaussian_noise(flat(128, 2), per_image(10.0, 20.0), key, gray=gray) for gray in (False, True))
    noise = (noisy - 128 / 255) * 255
    assert noise[0].mean().item() == pytest.approx(0, abs=0.15)
    for noise_of_one, sigma in zip(noise, (10, 20), strict=True):
        assert noise_of_one.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(np.corrcoef(noise[0, 0].flatten(), noise[0, 1].flatten())[0, 1]) < 0.02
    assert torch.equal(gray, noisy[:, :1].expand(-1, 3, -1, -1))
    assert gaussian_noise(flat(2), per_image(30.0), key[:1]).min() == 0


@pytest.mark.parametrize("level", [10, 60, 230])
def test_photon_counts_follow_scipys_poisson_distribution(level):
    noisy = poisson_noise(flat(level, 1, 120), per_image(0.1), torch.tensor([level]))
    mean = PHOTONS * level / 255
    photons = (noisy * 255 - level) / 255 / 0.1 * PHOTONS + mean
    whole = photons.round()
    unclamped = (noisy > 0) & (noisy < 1)
    assert unclamped.double().mean() > 0.99
    assert (photons - whole)[unclamped].abs().max() < 1e-6
    counts = np.bincount(whole.flatten().long().numpy(), minlength=400)
    expected = stats.poisson.pmf(np.arange(len(counts)), mean) * counts.sum()
    common = expected > 10
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert chi2 < stats.chi2.ppf(0.999, common.sum())


def test_the_search_with_edges_finds_what_a_binary_search_finds():
    table = noise._cumulative_table(torch.device("cpu"))
    edges = torch.arange(256 * noise._EDGES + 1, dtype=torch.float64) / noise._EDGES
    near_entries = torch.cat([table, torch.nextafter(table, table + 1), torch.nextafter(table, table - 1)])
    random = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 256
    values = torch.cat([edges, near_entries.clamp(0, 256), random])
    assert torch.equal(noise._search(values).long(), torch.searchsorted(table, values, right=True))


def test_poisson_noise_grows_with_brightness_is_zero_on_black_and_can_be_gray():
    key = torch.tensor([7])
    assert torch.equal(poisson_noise(flat(0), per_image(3.0), key), flat(0))
    dark, bright = (poisson_noise(flat(level), per_image(0.5), key).std().item() for level in (20, 80))
    assert bright / dark == pytest.approx(2, rel=0.03)
    noisy = poisson_noise(flat(100), per_image(0.5), key, gray=True)
    assert torch.equal(noisy[:, 0], noisy[:, 2]) and noisy.std().item() == pytest.approx(
        0.5 * np.sqrt(100 / 255) / 16, rel=0.03
    )


def test_kind_strength_and_grayness_follow_their_probabilities():
    random_bits = as_int64(np.random.Philox(key=3).random_raw(2000)).view(400, 5)
    batch = PaddedBatch(flat(128, 400, 24), torch.full((400, 2), 24))
    noise = Noise(gaussian=0.25, sigma=(5, 10), poisson_scale=(0, 0), gray=0.4, probability=0.8)
    change = noise(batch, random_bits, None).images - batch.images
    deviation = change[:, 0].std(dim=(1, 2)) * 255
    gaussian = deviation > 0
    assert 55 < gaussian.sum() < 105  # 400 * 0.8 * 0.25 = 80 +- 8
    assert 4 < deviation[gaussian].min() < 6 and 9 < deviation[gaussian].max() < 11
    gray = (change[:, 0] == change[:, 1]).flatten(1).all(1)[gaussian]
    assert 0.2 < gray.double().mean() < 0.6  # 0.4 +- 0.055


def test_all_invalid_settings_are_named():
    with pytest.raises(
        InputError, match=r"noise: gray=2: give a number from 0 to 1; sigma=\[5, 1\]: give \[low, high\] from 0 to 255"
    ):
        Noise(gray=2, sigma=[5, 1])
