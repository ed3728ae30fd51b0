"""Sizes of results: other factors than the network's, numbers of pixels, and their limits."""

import pytest

from sr_lightning.errors import InputError
from sr_lightning.upscale.size import passes, size_of_results, suffix_of


@pytest.mark.parametrize(
    ("factor", "to", "size", "expected"),
    [
        ("3", None, (85, 85), (255, 255)),
        ("2.5", None, (85, 84), (213, 210)),  # halves round up
        ("1.1", None, (30, 50), (33, 55)),  # exact: 1.1 is no binary fraction
        (None, "4096x", (4000, 3000), (4096, 3072)),
        (None, "x2160", (1920, 1080), (3840, 2160)),
        (None, "4096x2160", (1920, 1080), (3840, 2160)),
        (None, "4096x2160", (1000, 300), (4096, 1229)),
    ],
)
def test_results_have_the_factor_or_fit_into_the_size(factor, to, size, expected):
    assert size_of_results(factor, to)(*size) == expected


def test_without_an_option_the_factor_is_that_of_the_network():
    assert size_of_results(None, None) is None


@pytest.mark.parametrize("factor", ["1", "0.5", "0", "-2", "64.5", "1e9", "nan", "inf", "x3", "", "3/2", "٣"])
def test_wrong_factors_are_refused(factor):
    with pytest.raises(InputError, match=r"--factor .*: choose a number above 1, up to 64, such as 3 or 2.5"):
        size_of_results(factor, None)


@pytest.mark.parametrize("to", ["x", "10", "0x", "x0", "100x0", "-5x", "1.5x", "4096X", "1x2x3", "", "99999999999x"])
def test_wrong_sizes_are_refused(to):
    with pytest.raises(InputError, match=r"--to .*: give a width 4096x, a height x2160, or 4096x2160"):
        size_of_results(None, to)


def test_both_options_are_refused():
    with pytest.raises(InputError, match="--factor and --to both set the size"):
        size_of_results("3", "100x")


@pytest.mark.parametrize(
    ("factor", "to", "size", "message"),
    [
        (None, "100x", (100, 50), "100x50 pixels, which --to 100x would not enlarge"),
        (None, "200x60", (100, 70), "would not enlarge"),
        (
            None,
            "700x",
            (10, 10),
            "which --to 700x would enlarge to 700x700; the limits are a factor of 64",
        ),
        ("10", None, (6000, 4000), "would enlarge to 60000x40000; the limits are a factor of 64 and 2,147,483,648 pix"),
    ],
)
def test_images_that_a_size_does_not_suit_are_refused(factor, to, size, message):
    with pytest.raises(InputError, match=message):
        size_of_results(factor, to)(*size)


def test_passes_are_as_many_as_reach_the_size():
    assert [passes((10, 10), (new, new), 2) for new in (10, 20, 21, 40, 41)] == [1, 1, 2, 2, 3]
    assert passes((10, 10), (20, 21), 2) == 2


def test_names_state_factor_or_size():
    assert suffix_of(None, None, 4) == "_x4"
    assert suffix_of("2.50", None, 4) == "_x2.5"
    assert suffix_of(None, "x2160", 4) == "_x2160"
