import pytest

from sr_lightning.utils import stopwatch as stopwatch_module
from sr_lightning.utils.stopwatch import DATA, OTHER, VALIDATION, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A list whose last number is the time."""
    now = [100.0]
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now[-1])
    return now


def test_each_second_counts_for_the_phase_that_was_entered_last(clock):
    watch = Stopwatch()
    watch.enter(VALIDATION)  # before the start: ignored
    clock.append(110.0)
    watch.start()
    for moment, phase in [(111.0, DATA), (113.0, VALIDATION), (117.0, DATA), (125.0, OTHER)]:
        clock.append(moment)
        watch.enter(phase)
    clock.append(141.0)
    assert watch.elapsed == 31.0
    assert {phase: seconds for phase, seconds in watch.seconds.items() if seconds} == {
        DATA: 10.0,
        VALIDATION: 4.0,
        OTHER: 17.0,
    }


def test_the_total_includes_the_earlier_parts_of_a_run(clock):
    watch = Stopwatch()
    assert watch.total == 0.0
    watch.earlier = 5.0
    assert watch.total == 5.0
    watch.start()
    clock.append(102.0)
    assert watch.total == 7.0
