"""Tiles equal the whole image for every network of conf/model; out of memory means smaller tiles."""

import copy
import functools
import logging

import numpy as np
import pytest
import torch
from torch import nn

from sr_lightning.errors import InputError
from sr_lightning.inference import SelfEnsemble, fuse_for_inference
from sr_lightning.networks import EDSR, ESPCN, SRCNN, RRDBNet, SwinIR
from sr_lightning.upscale.tiles import (
    WIDE_TILE_COST,
    Box,
    automatic_pixels,
    automatic_tile,
    largest_layer,
    out_of_memory,
    tile_map,
)
from tests.helpers import slow_except
from tests.networks.test_every_network import CHOICES, small


def tiled(network, lr, tile, margin, alignment=None):
    """Assemble the network's output for (1, C, H, W) from tiles; also return the sizes of its inputs.

    An alignment of None is that of the network.
    """
    height, width = lr.shape[-2:]
    scale = network.scale
    sr = torch.full((1, lr.shape[1], height * scale, width * scale), torch.nan)
    sizes = []

    def compute(box, around):
        part = lr[..., around.top : around.bottom, around.left : around.right]
        sizes.append(tuple(part.shape[-2:]))
        return network(part)[(..., *box.slices_in(around, scale))]

    alignment = alignment or getattr(network, "alignment", 1)
    with torch.inference_mode():
        for box, part in tile_map(compute, height, width, margin, tile and (tile, tile), alignment):
            rows = slice(box.top * scale, box.bottom * scale)
            columns = slice(box.left * scale, box.right * scale)
            assert sr[..., rows, columns].isnan().all()  # no pixel twice
            sr[..., rows, columns] = part
    return sr, sizes


TILINGS = [(2, 37, 53, 11), (3, 61, 30, 17), (4, 29, 45, 8)]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("scale", "height", "width", "tile"), slow_except(TILINGS, TILINGS[0]))
def test_tiles_with_a_margin_of_the_receptive_radius_equal_the_whole(name, scale, height, width, tile):
    network = fuse_for_inference(small(name, scale))
    if network.receptive_radius is None:
        pytest.skip("depends on the whole image, and is not tiled")
    lr = torch.rand(1, network.num_channels, height, width, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = network(lr)
    sr, sizes = tiled(network, lr, tile, network.receptive_radius)
    assert len(sizes) == -(-height // tile) * -(-width // tile)
    assert any(size != (height, width) for size in sizes)  # else this test would see no margin
    alignment = getattr(network, "alignment", 1)
    assert max(map(max, sizes)) <= tile + 2 * (network.receptive_radius + alignment - 1)
    torch.testing.assert_close(sr, whole, rtol=0, atol=1e-4)


def test_margin_one_pixel_smaller_differs():
    torch.manual_seed(0)
    network = SRCNN(scale=2, kernel_sizes=(9, 1, 5)).eval()
    for parameter in network.parameters():
        parameter.data.abs_()
    lr = torch.rand(1, 1, 30, 30)
    with torch.inference_mode():
        whole = network(lr)
    torch.testing.assert_close(tiled(network, lr, 10, network.receptive_radius)[0], whole, rtol=0, atol=1e-4)
    assert (tiled(network, lr, 10, network.receptive_radius - 1)[0] - whole).abs().max() > 1e-3


WINDOWS = {"num_features": 12, "num_groups": 1, "num_blocks": 2}


@pytest.mark.parametrize(
    ("network", "height", "width", "tile"),
    [
        (EDSR(scale=2, num_features=8, num_blocks=2), 39, 47, 15),
        (SwinIR(scale=2, **WINDOWS), 31, 39, 15),
        (RRDBNet(scale=2, num_features=8, num_blocks=1, unshuffle=2), 7, 97, 9),  # wider than two margins
    ],
    ids=["EDSR", "SwinIR", "RRDBNet"],
)
@pytest.mark.parametrize("flipped", [False, True])
def test_tiles_are_aligned_as_the_network_needs_it_also_for_a_self_ensemble(network, height, width, tile, flipped):
    """Larger weights, so that what one pixel sees matters. The sides are no multiples of a window."""
    torch.manual_seed(0)
    network = copy.deepcopy(network).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network = SelfEnsemble(network) if flipped else network
    lr = torch.rand(1, 3, height, width)
    with torch.inference_mode():
        whole = network(lr)
    torch.testing.assert_close(tiled(network, lr, tile, network.receptive_radius)[0], whole, rtol=0, atol=1e-4)
    if getattr(network, "alignment", 1) > 1:
        assert (tiled(network, lr, tile, network.receptive_radius, alignment=1)[0] - whole).abs().max() > 1e-3


class Repeat(nn.Module):
    """Repeat pixels, and raise an error for more than `most` pixels."""

    scale, num_channels, receptive_radius = 2, 1, 0

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error = most, error

    def forward(self, lr):
        if lr.shape[-2] * lr.shape[-1] > self.most:
            raise self.error
        return lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


def real_error(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        real_error(lambda: torch.empty(2**60, dtype=torch.uint8)),
        real_error(lambda: np.empty(2**60, np.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."),
        RuntimeError("posix_memalign failed:Cannot allocate memory (12)"),
    ],
    ids=["torch", "numpy", "cuda", "nnpack"],
)
def test_out_of_memory_halves_the_tile_with_a_warning(error, caplog):
    lr = torch.rand(1, 1, 70, 120)
    with caplog.at_level(logging.WARNING):
        sr, sizes = tiled(Repeat(900, error), lr, None, 0)
    torch.testing.assert_close(sr, lr.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: continuing with tiles of {tile}" for tile in (60, 30)
    ]
    assert sizes[0] == (70, 120)
    assert max(height * width for height, width in sizes[2:]) <= 900


def test_finished_tiles_are_not_repeated_after_out_of_memory():
    calls = []

    def compute(box, around):
        calls.append(box)
        if len(calls) == 3:
            raise MemoryError
        return box

    boxes = [box for box, _ in tile_map(compute, 64, 128, 0, (64, 64))]
    assert boxes[0] == Box(0, 64, 0, 64)
    assert sum(box.height * box.width for box in boxes) == 64 * 128
    assert len(set(calls)) == len(calls)


def test_out_of_memory_at_the_smallest_tile_is_an_error():
    with pytest.raises(
        InputError, match=r"not enough memory, even for a tile of \d+ with 0 pixels around it: CUDA out"
    ):
        tiled(Repeat(10, torch.OutOfMemoryError("CUDA out of memory")), torch.rand(1, 1, 64, 64), None, 0)


def test_other_errors_are_not_treated_as_out_of_memory():
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        tiled(Repeat(10, RuntimeError("shapes")), torch.rand(1, 1, 64, 64), None, 0)


def test_layers_are_measured_per_input_pixel():
    assert largest_layer(ESPCN(scale=3, num_features=[64, 32], kernel_sizes=[5, 3, 3])) == 64 * 4
    assert largest_layer(EDSR(scale=4, num_features=8, num_blocks=1)) == 8 * 4 * 4 * 4


@pytest.mark.parametrize(
    ("network", "pixels"),
    [
        (ESPCN(scale=2), 360**2),
        (EDSR(scale=2, num_features=4, num_blocks=18), 880**2),  # 22 times its radius of 40
        (EDSR(scale=8, num_features=128, num_blocks=1), 12288),  # times 128 * 8 * 8 * 4 bytes = 384 MiB
        (EDSR(scale=8, num_features=512, num_blocks=8), (64 + 2 * 20) ** 2),  # tiles of 64 are the smallest
    ],
    ids=["light", "far-sighted", "heavy", "heaviest"],
)
def test_pixels_of_automatic_tiles_suit_the_network(network, pixels):
    assert automatic_pixels(network, network.receptive_radius, torch.device("cpu")) == pixels


def grid_cost(height, width, margin, rows, columns):
    """Return the pixels that a grid of tiles computes in all, and those of its largest tile."""
    (heights, height), (widths, width) = sides(height, rows, margin), sides(width, columns, margin)
    return heights * widths, height * width


@functools.cache
def sides(side, number, margin):
    """Return the sum and the largest of the sides, with margins, of tiles that divide an axis."""
    axis = Box(0, side, 0, 1)
    lengths = [box.expanded(margin, axis).height for box in axis.split(-(-side // number), 1)]
    return sum(lengths), max(lengths)


@pytest.mark.parametrize(
    ("height", "width", "margin", "pixels"),
    [(54, 96, 5, 1000), (54, 96, 2, 3000), (300, 20, 3, 900), (20, 300, 3, 900), (97, 101, 0, 500), (1, 999, 4, 300)],
)
def test_automatic_tiles_fit_and_compute_few_pixels_twice(height, width, margin, pixels):
    tile_height, tile_width = automatic_tile(height, width, margin, pixels)
    rows, columns = -(-height // tile_height), -(-width // tile_width)
    computed, largest = grid_cost(height, width, margin, rows, columns)
    assert largest <= pixels
    others = [grid_cost(height, width, margin, r, c) for r in range(1, height + 1) for c in range(1, min(width, 40))]
    assert computed <= WIDE_TILE_COST * 1.02 * min(cost for cost, size in others if size <= pixels)  # 1.02: rounding


def test_automatic_tiles_are_the_whole_image_or_strips_of_its_width_where_these_cost_little():
    assert automatic_tile(270, 480, 5, 270 * 480) == (270, 480)
    assert automatic_tile(540, 960, 5, 360**2) == (108, 960)
    assert automatic_tile(540, 960, 36, 360**2)[1] < 960
