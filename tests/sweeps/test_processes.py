"""Processes of one run end together."""

import os
import signal
import subprocess
import sys
from textwrap import dedent

from tests.helpers import ROOT

FIRST = """
    import subprocess, sys, time
    from sr_lightning.sweeps.processes import exit_with_first_process

    exit_with_first_process()
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    time.sleep(100)
"""
FURTHER = """
    import os, time

    os.environ["LOCAL_RANK"] = "1"
    print("imports", flush=True)
    while os.getppid() == int(os.environ["SR_LIGHTNING_FIRST_PROCESS"]):
        time.sleep(0.01)  # the first process is killed before this one watches it
    from sr_lightning.sweeps.processes import exit_with_first_process

    exit_with_first_process()
    time.sleep(100)
    print("is alive", flush=True)
"""


def test_further_process_of_a_run_ends_with_a_first_one_that_was_killed_during_its_start():
    words = [sys.executable, "-c", dedent(FIRST), dedent(FURTHER)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "imports\n"
    first.send_signal(signal.SIGKILL)
    assert first.stdout.read() == ""  # ends when no process has it open
    first.wait()
