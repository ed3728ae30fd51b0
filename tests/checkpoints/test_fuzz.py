"""A few hundred mutants of all files that are read; `python -m tests.checkpoints.fuzz` reads as many as wanted."""

import pytest

from tests.checkpoints.fuzz import MUTATORS, answer, fuzz, original
from tests.checkpoints.test_checkpoint import flip_bit_of


def test_every_mutant_is_refused_or_read_right():
    counts, faults = fuzz(seed=0, numbers=range(300))
    assert not faults
    for name in MUTATORS:
        assert counts[name]["refused"] and counts[name]["past parsing"], name
        assert counts[name]["refused"] + counts[name]["same"] + counts[name]["other"] == counts[name]["mutants"]
    assert sum(count["past parsing"] for count in counts.values()) > 100


def test_fuzzer_finds_a_reader_that_does_not_look_at_checksums(tmp_path, monkeypatch):
    path = tmp_path / "best.ckpt"
    path.write_bytes(original("checkpoint"))
    flip_bit_of(path, "data/0")
    flipped = path.read_bytes()
    assert answer("bytes", "checkpoint", flipped, tmp_path) == "refused"
    monkeypatch.setattr("sr_lightning.utils.tensor_files.check_archive", lambda path: None)
    with pytest.raises(AssertionError, match="damage was not noticed"):
        answer("bytes", "checkpoint", flipped, tmp_path)
