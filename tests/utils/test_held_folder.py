"""One process at a time holds a folder, also of several machines that share it without locks."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import remove_failed_start
from sr_lightning.utils import held_folder
from sr_lightning.utils.held_folder import FolderInUseError, Owner, held, holder, read_owner
from tests.helpers import ROOT

# A process of a machine of its own: another kernel, name and clock, and locks that reach no other process.
MACHINE = """
import sys, time
from pathlib import Path
from sr_lightning.errors import InputError
from sr_lightning.utils import held_folder
from sr_lightning.utils.atomic_files import write_text

class NoLock:
    def __init__(self, path): pass
    def acquire(self, timeout): raise OSError(37, "No locks available")
    def release(self): pass

name, folder, beat, stale, clock, vital = sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:])
held_folder.this_kernel = held_folder.socket.gethostname = lambda: name
held_folder.FileLock = NoLock
held_folder.BEAT, held_folder.STALE, held_folder.PAUSE = beat, stale, 0.05
now = time.time
time.time = lambda: now() + clock
try:
    with held_folder.held(folder, patience=0, vital=bool(vital)):
        print("holds", flush=True)
        for line in sys.stdin:
            write_text(folder / "result", line)
            print("wrote", flush=True)
except InputError as error:
    print(error, flush=True)
"""


@pytest.fixture
def machine(tmp_path):
    """Start a process of a machine by its name."""
    processes = []

    def start(name: str, *, beat: float = 0.1, stale: float = 60, clock: float = 0, vital: int = 1) -> subprocess.Popen:
        words = [sys.executable, "-c", MACHINE, name, tmp_path, beat, stale, clock, vital]
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
        processes.append(
            subprocess.Popen(map(str, words), env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def write(process: subprocess.Popen, line: str) -> None:
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def test_folder_of_a_live_process_on_another_machine_is_refused_whatever_the_clocks(machine, tmp_path):
    one = machine("one")
    assert one.stdout.readline() == "holds\n"
    for clock in (-3600, 3600):
        message = machine("two", clock=clock).stdout.readline()
        assert message.startswith(f"{tmp_path} is in use by process {one.pid} on one, since ")
        assert message.endswith(
            f"wait until it ends, or end it. If it cannot be reached: rm {tmp_path}/.owner, which ends it\n"
        )
    write(one, "a line")
    assert one.stdout.readline() == "wrote\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".owner", "result"]


def test_process_that_ends_frees_its_folder_for_other_machines_at_once(machine, tmp_path):
    one = machine("one")
    assert one.stdout.readline() == "holds\n"
    one.stdin.close()
    assert one.wait() == 0
    assert list(tmp_path.iterdir()) == []
    assert machine("two", stale=1000).stdout.readline() == "holds\n"


def test_folder_of_a_killed_process_is_taken_once_its_heartbeat_is_old(machine, tmp_path):
    one = machine("one")
    assert one.stdout.readline() == "holds\n"
    one.kill()
    one.wait()
    two = machine("two", stale=0.5)
    assert two.stdout.readline() == "holds\n"
    assert read_owner(tmp_path).who.startswith(f"process {two.pid} on two")
    assert time.time() - (tmp_path / ".owner").stat().st_mtime < 60


def test_folder_is_free_on_all_machines_after_its_owner_was_removed_and_the_process_ends(machine, tmp_path):
    one = machine("one")
    assert one.stdout.readline() == "holds\n"
    (tmp_path / ".owner").unlink()
    assert one.wait(10) == 1
    assert "is not held by this process any more, .owner was removed: the process ends" in one.stderr.read()
    assert machine("two").stdout.readline() == "holds\n"


@pytest.mark.parametrize("beat", [0.2, 1000], ids=["by its next heartbeat", "by its next write"])
def test_suspended_process_that_wakes_after_its_folder_was_taken_ends_without_a_file(machine, tmp_path, beat):
    one = machine("one", beat=beat)
    assert one.stdout.readline() == "holds\n"
    one.send_signal(signal.SIGSTOP)
    two = machine("two", stale=0.5)
    assert two.stdout.readline() == "holds\n"
    if beat == 1000:
        write(one, "by one")
    one.send_signal(signal.SIGCONT)
    assert one.wait(10) == 1
    assert f"process {two.pid} on two" in one.stderr.read()
    assert not (tmp_path / "result").exists()
    write(two, "by two")
    assert two.stdout.readline() == "wrote\n"
    assert (tmp_path / "result").read_text() == "by two\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".owner", "result"]


def test_process_that_loses_a_folder_that_is_not_vital_goes_on_and_leaves_it_to_its_new_owner(machine, tmp_path):
    one = machine("one", vital=0)
    assert one.stdout.readline() == "holds\n"
    one.send_signal(signal.SIGSTOP)
    two = machine("two", stale=0.5)
    assert two.stdout.readline() == "holds\n"
    one.send_signal(signal.SIGCONT)
    write(one, "by one")
    assert one.stdout.readline() == "wrote\n"
    two.kill()
    two.wait()
    beat = (tmp_path / ".owner").stat().st_mtime_ns
    time.sleep(0.3)  # its next heartbeats
    one.stdin.close()
    assert one.wait(10) == 0
    assert (tmp_path / ".owner").stat().st_mtime_ns == beat
    assert read_owner(tmp_path).who.startswith(f"process {two.pid} on two")


def test_owner_that_cannot_be_written_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    class Unwritable:
        @property
        def content(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Owner, "this_process", Unwritable)
    with pytest.raises(InputError, match=r"\.owner cannot be written: No space left"), held(tmp_path, patience=0):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_one_of_many_takes_a_folder_with_an_old_heartbeat(tmp_path):
    stale = Owner("process 1 on gone, since 2026-01-01 00:00\nkernel word\n")
    racers = [Owner(f"process {n} on machine\nkernel {n}\n") for n in range(8)]
    barrier = threading.Barrier(len(racers))

    def race(mine):
        barrier.wait()
        return held_folder._replace(tmp_path, stale, mine)

    for _ in range(30):
        (tmp_path / ".owner").write_text(stale.content)
        with ThreadPoolExecutor(len(racers)) as pool:
            won = list(pool.map(race, racers))
        assert won.count(True) == 1
        assert read_owner(tmp_path) == racers[won.index(True)]
        assert not held_folder._replace(tmp_path, stale, racers[0])  # a latecomer
        assert [path.name for path in tmp_path.iterdir()] == [".owner"]


def test_machines_that_race_for_a_folder_with_an_old_heartbeat_have_one_winner(machine, tmp_path):
    owner = tmp_path / ".owner"
    owner.write_text("process 1 on gone, since 2026-01-01 00:00\nkernel word\n")
    os.utime(owner, (0, 0))
    said = [process.stdout.readline() for process in [machine(f"m{n}") for n in range(4)]]
    assert said.count("holds\n") == 1
    assert sum(" is in use by process " in line for line in said) == 3


@pytest.mark.parametrize(
    "content",
    ["process 1 on here, since 2026-01-01 00:00", "process 1 on here, since 2026-01-01 00:00\n{kernel} word\n"],
    ids=["of an earlier version", "of this machine"],
)
def test_process_that_this_machine_locks_for_is_judged_by_the_lock(tmp_path, content):
    """Its heartbeat is fresh, but the system has freed its lock."""
    (tmp_path / ".owner").write_text(content.format(kernel=held_folder.this_kernel()))
    assert holder(tmp_path) is None
    with held(tmp_path, patience=0):
        assert holder(tmp_path).startswith(f"process {os.getpid()} on ")
        with pytest.raises(FolderInUseError, match=f"is in use by process {os.getpid()} on "), held(tmp_path, 0):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_folder_of_a_process_that_was_killed_before_it_had_written_its_name_is_free_a_heartbeat_later(tmp_path):
    owner = tmp_path / ".owner"
    owner.touch()
    assert holder(tmp_path) == "another process"
    os.utime(owner, (time.time() - held_folder.BEAT - 1,) * 2)
    assert holder(tmp_path) is None
    with held(tmp_path, patience=0):
        assert read_owner(tmp_path).who.startswith(f"process {os.getpid()} on ")


def test_holder_on_another_machine_is_known_by_its_heartbeat(tmp_path):
    (tmp_path / ".hydra").mkdir()
    owner = tmp_path / ".owner"
    owner.write_text("process 7 on far, since 2026-01-01 00:00\nkernel word\n")
    assert holder(tmp_path) == "process 7 on far, since 2026-01-01 00:00"
    assert not remove_failed_start(tmp_path)
    os.utime(owner, (time.time() - 121,) * 2)
    assert holder(tmp_path) is None
    assert remove_failed_start(tmp_path)
    assert not Path(tmp_path).exists()
