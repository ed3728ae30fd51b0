"""python -m sr_lightning.sweeps.status: a sweep read from its files, made here or by an earlier version."""

import fcntl
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from sr_lightning.sweeps.cells import read_sweep
from sr_lightning.sweeps.status import main, page
from tests.helpers import ROOT

EARLIER = ROOT / "tests" / "earlier_version" / "multirun" / "tiny"
CONFIG = "max_steps: 100\nscale: 3\ndata:\n  val: [photos]\ndegradation: {}\nprotocol: {channel: 'y'}\n"


@contextmanager
def locked(path):
    """Hold a lock file, as another process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def add_cell(sweep, name, result=None, psnr=(), seconds=10):
    """Write the files of a cell that validated every 20 steps."""
    folder = sweep / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    rows = [f"{20 * (i + 1)},{value},{seconds * (i + 1)}\n" for i, value in enumerate(psnr)]
    (folder / "metrics.csv").write_text("step,val/psnr,seconds\n" + "".join(rows))
    if result:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """A sweep of ten cells, the first five of which have begun; its invocation is alive."""
    sweep = tmp_path / "multirun" / "mixed"
    done = {"status": "finished", "psnr": 31.5, "bicubic": 30.0, "steps": 100, "max_steps": 100}
    add_cell(sweep, "espcn_0", done, [30, 31, 31.5])
    add_cell(sweep, "espcn_1", {"status": "failed", "error": "RuntimeError: out of memory\nmore"})
    add_cell(sweep, "espcn_2", {"status": "pruned", "psnr": 30.5, "bicubic": 30.0, "steps": 40}, [30, 30.5])
    running = add_cell(sweep, "espcn_3", psnr=[30.25, 31.0])
    call = sweep / ".sweep" / "2026-01-01_00-00-00_1"
    call.mkdir(parents=True)
    (call / "call.json").write_text(json.dumps({"devices": [], "cells": 10}))
    statuses = ("finished", "failed", "pruned", "running", "waiting")
    for number, status in enumerate(statuses):
        times = {"started": 100.0, "ended": 200.0}
        report = {"number": number, "cell": f"espcn_{number}", "status": status} | times
        (call / f"{number:05d}.json").write_text(json.dumps(report))
    with locked(call / "alive.lock"), locked(running / ".lock"):
        yield sweep


def shown(sweep, columns=80, lines=0):
    return page(sweep, read_sweep(sweep), os.terminal_size((columns, lines))).splitlines()


def test_every_cell_has_its_status_step_score_gain_speed_time_left_and_curve(sweep):
    text = shown(sweep, 300)
    assert [line.split() for line in text[:6]] == [
        ["cell", "status", "step", "PSNR", "gain", "steps/s", "left", "val/psnr"],
        ["espcn_0", "finished", "100/100", "31.50", "+1.50", "2.0", "▁▁▁▆█"],
        ["espcn_1", "failed", "0/100"],
        ["espcn_2", "pruned", "40/100", "30.50", "+0.50", "2.0", "▁▁█"],
        ["espcn_3", "running", "40/100", "31.00", "+1.00", "2.0", "00:30", "▁▁█"],
        ["espcn_4", "waiting"],
    ]
    assert text[6] == "espcn_1: RuntimeError: out of memory"
    counts = "10 cells: 1 finished, 1 failed, 1 pruned, 1 running, 1 waiting, 5 not begun"
    assert text[7].startswith(f"{sweep}: {counts}, ")
    assert text[8] == "best: espcn_0, 31.50 dB, +1.50 over bicubic"


def test_killed_sweep_has_interrupted_cells(sweep):
    for lock in [*sweep.glob(".sweep/*/alive.lock"), sweep / "espcn_3" / ".lock"]:
        lock.unlink()
    statuses = [cell.status for cell in read_sweep(sweep).cells]
    assert statuses == ["finished", "failed", "pruned", "interrupted", "interrupted"]


def test_cell_that_another_machine_trains_is_running_by_its_heartbeat(sweep):
    (sweep / "espcn_3" / ".lock").unlink()
    owner = sweep / "espcn_3" / ".owner"
    owner.write_text("process 7 on far, since 2026-01-01 00:00\nkernel word\n")
    for call in sweep.glob(".sweep/*"):
        (call / "alive.lock").unlink()
    assert [cell.status for cell in read_sweep(sweep).cells][3] == "running"
    os.utime(owner, (0, 0))
    assert [cell.status for cell in read_sweep(sweep).cells][3] == "interrupted"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_page_fits_the_terminal(sweep, columns):
    add_cell(sweep, "wdsr_b_with_a_very_long_name_t91_bsds_x3_seed12_d098a048", psnr=[31, 32])
    text = shown(sweep, columns)
    assert max(map(len, text)) <= columns
    assert any("…d098a048" in line for line in text)


def test_low_terminal_shows_running_and_failed_cells_first(sweep):
    for number in range(10, 40):
        add_cell(sweep, f"espcn_{number}", {"status": "finished", "psnr": 30.0, "steps": 100})
    text = shown(sweep, 80, 12)
    assert len(text) <= 12
    assert [line.split()[1] for line in text[1:3]] == ["running", "failed"]
    assert "... and 28 more cells" in text


def test_damaged_files_are_passed_over(sweep):
    for path in (*sweep.glob("*/*"), *sweep.glob(".sweep/*/0*.json")):
        if path.is_file() and path.name != ".lock":
            path.write_bytes(b"\xff\0{[" + path.read_bytes()[:30])
    assert "espcn_3 running" in " ".join(" ".join(shown(sweep)).split())


def test_sweep_of_an_earlier_version_is_read_and_nothing_is_written():
    before = {path: path.stat().st_mtime_ns for path in EARLIER.rglob("*")}
    text = shown(EARLIER)
    assert text[1].split()[:5] == ["srcnn_folder_x2_seed1_65356e6c", "finished", "40/40", "29.69", "+0.01"]
    assert {path: path.stat().st_mtime_ns for path in EARLIER.rglob("*")} == before


def test_wrong_folder_is_one_line_with_the_way_out(sweep, capsys, monkeypatch):
    monkeypatch.chdir(sweep.parents[1])
    (sweep.parent / "empty").mkdir()
    for folder, message in {
        "multirun/mixd": "there is no folder multirun/mixd; the sweeps here: multirun/mixed",
        "multirun": "multirun is not the folder of a sweep; name one of its sweeps: multirun/mixed",
        "multirun/empty": "multirun/empty is not the folder of a sweep",
        "multirun/mixed/espcn_0": f"is a single run; the folder of its sweep is {sweep}",
    }.items():
        assert main([folder]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_watching_ends_with_the_sweep(sweep, capsys):
    for report in sweep.glob(".sweep/*/0*.json"):
        report.unlink()
    (sweep / "espcn_3" / ".lock").unlink()
    assert main([str(sweep), "--watch", "0.1"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_curve_is_plain_where_the_output_is(sweep, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert all(line.isascii() for line in shown(sweep, 30))


def test_command_does_not_import_torch():
    code = "import sys, sr_lightning.sweeps.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
