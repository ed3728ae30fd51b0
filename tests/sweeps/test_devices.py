"""Devices train one cell at a time, first come, first served."""

import subprocess
import sys
import threading
import time

import pytest
from omegaconf import OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.sweeps.devices import acquire_devices, devices_wanted, visible_devices
from tests.helpers import ROOT


class Borrowers:
    """Threads that borrow devices, and the order in which they came, got and gave back."""

    def __init__(self, folder):
        self.folder, self.threads, self.events, self.got = folder, [], [], {}
        self.may_end = {}

    def come(self, name, count, devices):
        def borrow():
            with acquire_devices(count, devices, self.folder) as mine:
                self.got[name] = mine
                self.events.append((name, "got"))
                assert self.may_end[name].wait(30)
                self.events.append((name, "gave"))

        self.may_end[name] = threading.Event()
        self.threads.append(threading.Thread(target=borrow))
        waiting = len(list(self.folder.glob("*.wants")))
        self.threads[-1].start()
        self.until(lambda: name in self.got or len(list(self.folder.glob("*.wants"))) > waiting)

    def give_back(self, name):
        self.may_end[name].set()
        self.until(lambda: (name, "gave") in self.events)

    def until(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def borrowers(tmp_path):
    borrowers = Borrowers(tmp_path)
    yield borrowers
    for event in borrowers.may_end.values():
        event.set()
    for thread in borrowers.threads:
        thread.join()


def test_who_needs_two_waits_for_two_and_is_not_overtaken(borrowers):
    devices = ["0", "1"]
    borrowers.come("a", 1, devices)
    borrowers.until(lambda: "a" in borrowers.got)
    borrowers.come("both", 2, devices)
    borrowers.come("late", 1, devices)
    time.sleep(0.5)  # long enough for who is not to be let in
    assert set(borrowers.got) == {"a"}
    borrowers.give_back("a")
    borrowers.until(lambda: "both" in borrowers.got)
    assert borrowers.got["both"] == devices
    assert "late" not in borrowers.got
    borrowers.give_back("both")
    borrowers.until(lambda: "late" in borrowers.got)


def test_each_free_device_is_lent_at_once_and_to_one(borrowers):
    devices = ["2", "5", "GPU-f00"]
    for name in "abc":
        borrowers.come(name, 1, devices)
    borrowers.until(lambda: len(borrowers.got) == 3)
    assert sorted(device for mine in borrowers.got.values() for device in mine) == sorted(devices)
    borrowers.come("d", 1, devices)
    borrowers.give_back("b")
    borrowers.until(lambda: "d" in borrowers.got)
    assert borrowers.got["d"] == borrowers.got["b"]


def test_who_waits_for_other_devices_holds_nobody_up(borrowers):
    borrowers.come("a", 1, ["0"])
    borrowers.come("waits", 1, ["0"])
    borrowers.come("b", 1, ["1"])
    borrowers.until(lambda: "b" in borrowers.got)
    assert "waits" not in borrowers.got


def test_a_killed_process_gives_back_its_devices_and_its_place(borrowers, tmp_path):
    code = (
        "from pathlib import Path; from sr_lightning.sweeps.devices import acquire_devices\n"
        f"with acquire_devices(2, ['0', '1'], Path({str(tmp_path)!r})): print('got', flush=True); input()"
    )
    words, pipe = [sys.executable, "-c", code], subprocess.PIPE
    holder = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe)
    assert holder.stdout.readline() == b"got\n"
    waiter = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe)
    borrowers.until(lambda: list(tmp_path.glob("*.wants")))
    for process in (holder, waiter):
        process.kill()
        process.communicate()
    borrowers.come("next", 2, ["0", "1"])
    borrowers.until(lambda: "next" in borrowers.got)


def trainer(**settings):
    return OmegaConf.create({"accelerator": "auto", "devices": 1} | settings)


def test_a_cells_devices_are_as_many_as_its_trainer_asks_for():
    there = ["0", "1", "2"]
    assert [devices_wanted(trainer(devices=d), there) for d in (1, 2, "3", -1, "auto")] == [1, 2, 3, 3, 3]
    assert devices_wanted(trainer(accelerator="cpu", devices=9), there) == 0
    assert devices_wanted(trainer(devices=9), []) == 0
    for wrong in (4, 0, [0, 1]):
        with pytest.raises(InputError, match="from 1 to 3"):
            devices_wanted(trainer(devices=wrong), there)


def test_the_environment_says_which_devices_there_are(monkeypatch):
    for named, there in (("0,1", ["0", "1"]), ("3", ["3"]), ("", []), ("-1", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_devices() == there


def test_without_a_word_in_the_environment_nvidia_smi_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\necho 'GPU 0: X (UUID: GPU-1)'\necho '  MIG 1g Device 0: (UUID: MIG-1)'\necho 'GPU 1: X'\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == ["0", "1"]
    script.unlink()
    assert visible_devices() == []
