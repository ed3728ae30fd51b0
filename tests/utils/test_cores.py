import os

import pytest
import torch

from sr_lightning.utils import cores
from sr_lightning.utils.cores import SHARE, limit_threads, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv(SHARE, raising=False)


def system(folder, groups, **files):
    """A file system root with /proc/self/cgroup and files below /sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for path, text in files.items():
        file = folder / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),  # a third thread would use up the quota and stop all of them
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # of the group around it
        ("0::/host/only\n", {"cpu.max": "400000 100000\n"}, 4),  # in a container
        ("2:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2),
        ("2:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {"cpu.max": "garbage\n"}, 8),
        ("", {}, 8),
    ],
)
def test_cores_are_limited_by_the_quota_of_every_control_group(groups, files, expected, tmp_path):
    assert usable_cores(system(tmp_path, groups, **files)) == expected


def test_cores_are_those_of_the_affinity_and_of_a_cells_share(tmp_path, monkeypatch):
    assert usable_cores(tmp_path) == 8  # no proc/, as on other systems than Linux
    monkeypatch.setenv(SHARE, "3")
    assert usable_cores(tmp_path) == 3
    monkeypatch.setenv(SHARE, "64")
    assert usable_cores(tmp_path) == 8


def test_threads_are_limited_to_the_cores_unless_the_user_sets_them(monkeypatch):
    used = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1] if used else 4)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert limit_threads() == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert limit_threads() == 2
    monkeypatch.setattr(cores, "usable_cores", lambda: 64)
    assert limit_threads() == 2  # torch's own number, such as one per physical core, is not raised
