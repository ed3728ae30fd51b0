"""Long loops are never silent for long."""

import multiprocessing
import os
import signal
import sys

from tqdm import tqdm

from sr_lightning.utils import progress
from sr_lightning.utils.progress import tracked


def test_a_log_file_gets_lines_with_the_time_left(caplog, monkeypatch):
    caplog.set_level("INFO")
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(tracked("abcde", 5, "scoring Set5 x2")) == list("abcde")
    assert caplog.messages == ["scoring Set5 x2: 2 of 5, 01:00 left", "scoring Set5 x2: 4 of 5, 00:20 left"]


def test_a_terminal_gets_a_bar_and_no_lines(caplog, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "QUIET", -1)
    assert list(tracked(iter("ab"), 2, "decoding images")) == ["a", "b"]
    assert "decoding images" in capsys.readouterr().err
    assert not caplog.messages


def test_process_that_is_killed_while_it_draws_a_bar_does_not_block_others():
    def die():
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert tqdm.get_lock().acquire(True, 1)
    tqdm.get_lock().release()
