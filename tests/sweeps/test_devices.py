"""A device belongs to one cell at a time, first come, first served."""

import subprocess
import sys
import threading
import time

import pytest
from omegaconf import OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.sweeps.devices import acquire_devices, devices_wanted, visible_devices
from tests.helpers import ROOT


class Requests:
    """Threads that request devices, with a record of who got and released them."""

    def __init__(self, folder):
        self.folder, self.threads, self.events, self.got = folder, [], [], {}
        self.may_end = {}

    def request(self, name, count, devices):
        def hold():
            with acquire_devices(count, devices, self.folder) as mine:
                self.got[name] = mine
                self.events.append((name, "got"))
                assert self.may_end[name].wait(30)
                self.events.append((name, "released"))

        self.may_end[name] = threading.Event()
        self.threads.append(threading.Thread(target=hold))
        waiting = len(list(self.folder.glob("*.wants")))
        self.threads[-1].start()
        self.until(lambda: name in self.got or len(list(self.folder.glob("*.wants"))) > waiting)

    def release(self, name):
        self.may_end[name].set()
        self.until(lambda: (name, "released") in self.events)

    def until(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def requests(tmp_path):
    requests = Requests(tmp_path)
    yield requests
    for event in requests.may_end.values():
        event.set()
    for thread in requests.threads:
        thread.join()


def test_device_queue_is_first_come_first_served(requests):
    devices = ["0", "1"]
    requests.request("a", 1, devices)
    requests.until(lambda: "a" in requests.got)
    requests.request("both", 2, devices)
    requests.request("late", 1, devices)
    time.sleep(0.5)  # long enough for who is not to be let in
    assert set(requests.got) == {"a"}
    requests.release("a")
    requests.until(lambda: "both" in requests.got)
    assert requests.got["both"] == devices
    assert "late" not in requests.got
    requests.release("both")
    requests.until(lambda: "late" in requests.got)


def test_each_free_device_goes_to_one_cell(requests):
    devices = ["2", "5", "GPU-f00"]
    for name in "abc":
        requests.request(name, 1, devices)
    requests.until(lambda: len(requests.got) == 3)
    assert sorted(device for mine in requests.got.values() for device in mine) == sorted(devices)
    requests.request("d", 1, devices)
    requests.release("b")
    requests.until(lambda: "d" in requests.got)
    assert requests.got["d"] == requests.got["b"]


def test_waiting_for_other_devices_blocks_nobody(requests):
    requests.request("a", 1, ["0"])
    requests.request("waits", 1, ["0"])
    requests.request("b", 1, ["1"])
    requests.until(lambda: "b" in requests.got)
    assert "waits" not in requests.got


def test_killed_process_frees_its_devices_and_its_place(requests, tmp_path):
    code = (
        "from pathlib import Path; from sr_lightning.sweeps.devices import acquire_devices\n"
        f"with acquire_devices(2, ['0', '1'], Path({str(tmp_path)!r})): print('got', flush=True); input()"
    )
    words, pipe = [sys.executable, "-c", code], subprocess.PIPE
    holder = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe)
    assert holder.stdout.readline() == b"got\n"
    waiter = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe)
    requests.until(lambda: list(tmp_path.glob("*.wants")))
    for process in (holder, waiter):
        process.kill()
        process.communicate()
    requests.request("next", 2, ["0", "1"])
    requests.until(lambda: "next" in requests.got)


def trainer(**settings):
    return OmegaConf.create({"accelerator": "auto", "devices": 1} | settings)


def test_cell_gets_the_devices_of_its_trainer():
    there = ["0", "1", "2"]
    assert [devices_wanted(trainer(devices=d), there) for d in (1, 2, "3", -1, "auto")] == [1, 2, 3, 3, 3]
    assert devices_wanted(trainer(accelerator="cpu", devices=9), there) == 0
    assert devices_wanted(trainer(devices=9), []) == 0
    for wrong in (4, 0, [0, 1]):
        with pytest.raises(InputError, match="from 1 to 3"):
            devices_wanted(trainer(devices=wrong), there)


def test_devices_are_read_from_the_environment(monkeypatch):
    for named, there in (("0,1", ["0", "1"]), ("3", ["3"]), ("", []), ("-1", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_devices() == there


def test_devices_are_read_from_nvidia_smi_otherwise(monkeypatch, tmp_path):
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
