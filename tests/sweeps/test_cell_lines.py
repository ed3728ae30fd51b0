"""Lines that a sweep prints when its cells end, from reports and results written here."""

import json
import time

import pytest

from sr_lightning.sweeps.cell_lines import CellLines, seconds_left
from sr_lightning.sweeps.invocation import SweepInvocation


@pytest.fixture
def lines(tmp_path):
    """Lines of a sweep of eight cells that none has begun."""
    invocation = SweepInvocation(tmp_path / ".sweep" / "now")
    invocation.directory.mkdir(parents=True)
    facts = {"command": ["train.py"], "devices": [], "cells": 8}
    (invocation.directory / "call.json").write_text(json.dumps(facts))
    return CellLines(invocation)


def end(lines, number, status, psnr=None, *, scale=3, **facts):
    """Write report and result of a cell that took a minute."""
    cell, now = f"espcn_x{scale}_{number}", time.time()
    numbers = {} if psnr is None else {"psnr": psnr, "bicubic": 30.0, "steps": 10, "seconds": 50.0}
    folder = lines.invocation.sweep_dir / cell
    folder.mkdir(exist_ok=True)
    if psnr is not None:
        result = {"status": "finished", "data": "t91", "scale": scale, "protocol": "y"} | numbers
        (folder / "result.json").write_text(json.dumps(result))
    times = {} if status == "skipped" else {"started": now - 60, "ended": now}
    lines.invocation.report(number, cell=cell, words=[], status=status, **numbers, **times, **facts)
    return cell


def printed(lines, capsys):
    lines.update()
    return [line.partition("] ")[2] or line for line in capsys.readouterr().out.splitlines()]


def test_cell_has_its_number_score_gain_the_best_so_far_and_the_time_left(lines, capsys):
    best = end(lines, 0, "finished", 31.5)
    assert printed(lines, capsys) == [f"1 of 8  {best}  31.50 dB  +1.50 over bicubic  07:00 left"]
    cell = end(lines, 1, "resumed", 31.25)
    expected = f"2 of 8  {cell}  resumed  31.25 dB  +1.25 over bicubic  best so far 31.50 ({best})  06:00 left"
    assert printed(lines, capsys) == [expected]
    cell = end(lines, 2, "pruned", 32)
    assert printed(lines, capsys) == [
        f"3 of 8  {cell}  pruned  32.00 dB  +2.00 over bicubic  the best so far  05:00 left"
    ]
    assert printed(lines, capsys) == []


def test_cell_that_stopped_early_says_so(lines, capsys):
    cell = end(lines, 0, "finished", 31.5, stopped_early="no gain")
    assert f"{cell}  31.50 dB  +1.50 over bicubic  stopped early at step 10  " in printed(lines, capsys)[0]


def test_scores_at_another_scale_are_not_compared(lines, capsys):
    end(lines, 0, "finished", 35, scale=2)
    printed(lines, capsys)
    cell = end(lines, 1, "skipped", 31)
    assert printed(lines, capsys) == [f"2 of 8  {cell}  skipped  31.00 dB  +1.00 over bicubic  06:00 left"]


def test_failed_cell_shows_its_error_and_the_end_of_its_log(lines, capsys):
    (lines.invocation.sweep_dir / "espcn_x3_0").mkdir()
    log = lines.invocation.sweep_dir / "espcn_x3_0" / "train.log"
    log.write_text("".join(f"line {number}\n" for number in range(20)))
    cell = end(lines, 0, "failed", error="RuntimeError: \x1b[2Jout")
    first, place, *tail = printed(lines, capsys)
    assert first == f"1 of 8  {cell}  FAILED, RuntimeError: \\x1b[2Jout"
    assert place == f"  see {log}"
    assert tail == [f"  | line {number}" for number in range(12, 20)]


def test_result_of_an_earlier_version_has_no_gain_and_a_damaged_one_no_part_in_the_best(lines, capsys):
    cell = end(lines, 0, "finished", 31.0)
    lines.invocation.report(0, bicubic=None)
    (lines.invocation.sweep_dir / end(lines, 1, "skipped", 33.0) / "result.json").write_text("{")
    assert printed(lines, capsys) == [
        "1 of 8  espcn_x3_1  skipped  33.00 dB  +3.00 over bicubic  06:00 left",
        f"2 of 8  {cell}  31.00 dB  06:00 left",
    ]


def test_trials_of_a_study_are_counted_over_all_invocations(lines, capsys):
    lines.invocation.facts.update(cells=30, done=2)
    cell = end(lines, 0, "finished", 31.0)
    assert printed(lines, capsys) == [f"trial 3 of 30  {cell}  31.00 dB  +1.00 over bicubic  27:00 left"]


def test_interrupted_cell_is_printed_and_not_counted(lines, capsys):
    cell = end(lines, 0, "interrupted")
    assert printed(lines, capsys) == [f"0 of 8  {cell}  interrupted"]
    lines.invocation.report(0, status="resumed", psnr=31.0, bicubic=None)
    assert printed(lines, capsys) == [f"1 of 8  {cell}  resumed  31.00 dB  07:00 left"]


def test_time_left_counts_running_cells_by_what_they_lack_and_divides_by_the_parallel_ones():
    now = time.time()
    done = {"status": "finished", "started": now - 200, "ended": now - 100}
    running = {"status": "running", "started": now - 40}
    assert seconds_left([running], 5, 1) is None
    assert seconds_left([done, running, {"status": "waiting"}], 5, 2) == pytest.approx((60 + 3 * 100) / 2, abs=1)
