"""The frequency loss against Fourier sums written out."""

import numpy as np
import pytest
import torch

from sr_lightning.losses import FrequencyL1


def images(seed, size=(2, 3, 6, 9)):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def test_frequency_loss_is_the_mean_of_the_spectrums_differences():
    sr, hr = images(0), images(1)
    rows, columns = (np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) for n in sr.shape[-2:])
    of_sr, of_hr = (rows @ image.double().numpy() @ columns for image in (sr, hr))
    half = (of_sr - of_hr)[..., : sr.shape[-1] // 2 + 1]
    expected = np.mean([np.abs(half.real), np.abs(half.imag)])
    assert FrequencyL1()(sr, hr).item() == pytest.approx(expected, rel=1e-5)


def test_frequency_loss_of_a_shift_in_brightness_is_that_of_the_mean():
    sr = images(0, (1, 1, 8, 8))
    # 8*8 times the shift in the zero frequency, of 8x5 complex numbers
    assert FrequencyL1()(sr + 0.25, sr).item() == pytest.approx(0.25 * 64 / (2 * 8 * 5), rel=1e-4)


def test_frequency_loss_gives_sr_a_gradient_and_takes_bfloat16():
    sr, hr = images(0).requires_grad_(), images(1)
    FrequencyL1()(sr, hr).backward()
    assert (sr.grad != 0).float().mean() > 0.95
    assert FrequencyL1()(sr.bfloat16(), hr.bfloat16()).isfinite()
