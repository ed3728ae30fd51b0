"""provenance.json: command, code and machine of each part of a run."""

import json
import subprocess
import sys

import pytest
import torch

from sr_lightning.runs import provenance
from sr_lightning.runs.provenance import earlier_parts, kills_in_a_row, recorded, state_of


def git(folder, *words):
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *name, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init")
    (folder / "own.py").write_text("RATE = 1\n")
    git(folder, "add", "own.py")
    git(folder, "commit", "-m", "first")
    return folder


def test_each_part_of_a_run_is_recorded_with_its_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "model=espcn", "name=a b"])
    with recorded(tmp_path, device="a processor") as parts:
        (running,) = json.loads((tmp_path / "provenance.json").read_text())
        assert running == parts[0]
        assert (running["ended"], running["outcome"]) == (None, None)
    with pytest.raises(ZeroDivisionError), recorded(tmp_path):
        1 / 0  # noqa: B018
    first, second = json.loads((tmp_path / "provenance.json").read_text())
    assert first["command"] == "train.py model=espcn 'name=a b'"
    assert first["device"] == "a processor"
    assert first["versions"]["torch"] == torch.__version__
    assert first["started"] <= first["ended"] <= second["started"]
    assert (first["outcome"], second["outcome"]) == ("finished", "division by zero")


@pytest.mark.parametrize(
    ("parts", "kills"),
    [
        ([(0, None)], 0),
        ([(0, None), (0, None)], 1),
        ([(0, "time"), (10, "time"), (10, None), (10, None), (10, None)], 2),
        ([(10, None), (20, None), (30, None)], 0),  # slow, but not in vain
        ([(None, None), (0, None)], 0),  # of an earlier version
    ],
)
def test_kills_without_a_step_in_between_are_counted(parts, kills):
    assert kills_in_a_row([{"step": step, "ended": ended} for step, ended in parts]) == kills


def test_commit_and_uncommitted_changes_are_recorded(repository, tmp_path, monkeypatch):
    state = state_of(repository)
    assert len(state["commit"]) == 40 and state["diff"] == "" and state["untracked"] == []
    (repository / "own.py").write_text("RATE = 2\n")
    (repository / "new.py").touch()
    state = state_of(repository)
    assert "-RATE = 1\n+RATE = 2" in state["diff"]
    assert state["untracked"] == ["new.py"]
    monkeypatch.setattr(provenance, "MAX_DIFF", 10)
    assert len(state_of(repository)["diff"]) < 50
    assert state_of(tmp_path) is None


def test_a_run_without_git_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with recorded(tmp_path) as (part,):
        assert part["code"] == {"sr_lightning": None}


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_a_damaged_record_is_replaced(tmp_path, content):
    (tmp_path / "provenance.json").write_bytes(content)
    assert earlier_parts(tmp_path / "provenance.json") == []
    with recorded(tmp_path):
        pass
    assert len(earlier_parts(tmp_path / "provenance.json")) == 1
