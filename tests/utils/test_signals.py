"""Signals that end a command."""

import signal
import subprocess
import sys
import threading

import pytest

from sr_lightning.utils.signals import Interrupted, interruptible

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TWO_SIGNALS = """
import signal
from sr_lightning.utils.signals import interruptible
with interruptible():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("first", flush=True)
        signal.raise_signal(signal.SIGTERM)
    print("not reached")
"""


@pytest.mark.parametrize(("signum", "code"), [*zip(ENDING, (130, 143, 129), strict=True)])
def test_a_signal_raises_an_exception_with_the_exit_code_that_shells_report(signum, code):
    handlers = [signal.getsignal(each) for each in ENDING]
    with pytest.raises(Interrupted, match=signal.Signals(signum).name) as caught, interruptible():
        signal.raise_signal(signum)
    assert caught.value.exit_code == code
    assert [signal.getsignal(each) for each in ENDING] == handlers


def test_a_second_signal_of_any_kind_ends_the_process_at_once():
    result = subprocess.run([sys.executable, "-c", TWO_SIGNALS], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "first\n")


def test_a_signal_that_the_process_ignores_stays_ignored():
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_another_thread_than_the_main_one_changes_no_handler():
    handlers, inside = [signal.getsignal(each) for each in ENDING], []

    def work():
        with interruptible():
            inside.extend(signal.getsignal(each) for each in ENDING)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == handlers
