"""Copies to a GPU and back without one: streams that do nothing, and memory that is not pinned."""

import contextlib

import pytest
import torch

from sr_lightning.upscale.transfers import Transfers


class Stream:
    """A stream on which everything is done at once."""

    def wait_stream(self, other):
        pass

    def record_event(self):
        return self

    def synchronize(self):
        pass


@pytest.fixture
def transfers(monkeypatch):
    allocate = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, pin_memory=False, **options: allocate(*args, **options))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    transfers = Transfers(torch.device("cpu"))
    transfers.streams = [Stream(), Stream()]
    return transfers


PIXELS = torch.arange(6 * 7 * 3, dtype=torch.uint8).view(6, 7, 3)


@pytest.mark.parametrize(
    ("planes", "interleaved"),
    [
        (PIXELS.permute(2, 0, 1), True),
        (PIXELS.permute(2, 0, 1).contiguous(), False),
        (PIXELS[..., :1].permute(2, 0, 1), False),
        (PIXELS[..., 0].expand(3, -1, -1), False),
    ],
    ids=["interleaved", "planes", "gray", "repeated"],
)
def test_channels_stay_where_they_are_in_the_image(planes, interleaved, transfers):
    part = planes[:, 1:5, 2:6]
    there = transfers.upload(part)
    assert torch.equal(there, part)
    assert (there.permute(1, 2, 0) if interleaved else there).is_contiguous()
    sr = torch.arange(len(part) * 8 * 8).view(len(part), 8, 8)[:, 1:7, 2:8]
    here, finite = transfers.download(sr, torch.tensor(True), part)()
    assert torch.equal(here, sr) and finite
    assert (here.permute(1, 2, 0) if interleaved else here).is_contiguous()


@pytest.mark.parametrize(("at_once", "order"), [(1, "aAbBcC"), (2, "abAcBC"), (3, "abcABC")])
def test_tiles_are_begun_before_earlier_ones_are_used(at_once, order):
    transfers, done = Transfers(torch.device("cpu")), []
    transfers.at_once = at_once
    for tile in transfers.ahead(done.append(name) or name for name in "abc"):
        done.append(tile.upper())
    assert "".join(done) == order
