"""Progress: speed and time left, weighted by pixels."""

import io
import logging
import sys
from pathlib import Path

import pytest

from sr_lightning.upscale import progress
from sr_lightning.upscale.plan import Job
from sr_lightning.upscale.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def job(name):
    return Job(Path(name), Path("out") / name)


def test_time_left_is_that_of_the_pixels_without_the_first_tile(clock):
    small, large = job("a.png"), job("b.png")
    with Progress({small: 10e6, large: 90e6}) as shown:
        shown.begin(small)
        clock[0] = 60.0  # loading and the first tile are slow
        shown.advance(small, 0.5)
        assert shown.text() == ""
        clock[0] = 62.0
        shown.advance(small, 0.5)
        assert shown.text() == "2.5 MP/s, 00:36 left"
        shown.end(small)
        shown.begin(large)
        clock[0] = 70.0
        shown.advance(large, 0.5)
        assert shown.text() == "5.0 MP/s, 00:09 left"
        assert shown.share() == pytest.approx(0.55)


def test_files_that_fail_leave_no_time(clock):
    broken, good = job("a.png"), job("b.png")
    with Progress({broken: 50e6, good: 10e6}) as shown:
        shown.begin(broken)
        shown.advance(broken, 0.1)
        shown.end(broken)
        assert shown.total == pytest.approx(15e6)
        shown.begin(good)
        shown.advance(good, 1.0)
        shown.end(good)
        assert shown.share() == 1


def test_videos_show_frames_and_are_measured_apart_from_images(clock):
    image, clip = job("a.png"), job("b.mp4")
    with Progress({image: 1e6, clip: 100e6}) as shown:
        shown.begin(image)
        shown.advance(image, 0.5)
        shown.advance(image, 0.5)
        shown.end(image)
        shown.begin(clip)
        for second in (10.0, 10.5, 11.0):
            clock[0] = second
            shown.advance(clip, 0.1)
        assert shown.text() == "2.0 frames/s, 00:03 left"


def test_a_video_of_unknown_length_shows_its_speed(clock):
    clip = job("a.mp4")
    with Progress({clip: 0.0}) as shown:
        shown.begin(clip)
        for second in (0.0, 0.5):
            clock[0] = second
            shown.advance(clip, 0.0)
        assert shown.text() == "2.0 frames/s"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_names_the_file_and_a_log_file_gets_plain_lines(clock, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        one = job(f"{'n' * 30}\x1b.png")
        with Progress({one: 40e6}) as shown:
            shown.begin(one)
            for second in (0.0, 10.0, 20.0, 41.0):
                clock[0] += second
                shown.advance(one, 0.2)
            shown.bar.refresh()
        written = stream.getvalue()
        if stream.isatty():
            assert f"{'n' * 27}…" in written and "80% |" in written and "MP/s, " in written
            assert not caplog.text
        else:
            assert "|" not in written and "\r" not in written
            (record,) = caplog.records
            assert record.getMessage() == f"{'n' * 30}\\x1b.png: 80 % of all, 0.3 MP/s, 00:23 left"
