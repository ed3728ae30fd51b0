import json
import threading

import pytest

from sr_lightning.utils import timings
from sr_lightning.utils.timings import Timings, fastest, least_times


class Clock:
    """A clock that only steps advance; each form's steps take the given seconds, the last of them from then on."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.seconds, self.steps = 0.0, seconds, dict.fromkeys(seconds, 0)
        monkeypatch.setattr(timings.time, "perf_counter", lambda: self.now)

    def build(self, name):
        def step():
            values = self.seconds[name]
            self.now += values[min(self.steps[name], len(values) - 1)]
            self.steps[name] += 1

        return step


def test_times_are_measured_once_and_kept_by_key(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, slow=[9.0, 2.0], quick=[9.0, 1.0])  # the first call, which prepares, does not count
    times = Timings(tmp_path)
    for _ in range(2):
        assert times.seconds({"network": "a"}, ["slow", "quick"], clock.build, 0.5) == {"slow": 2.0, "quick": 1.0}
    assert clock.steps["slow"] == 3  # the first call and two rounds
    Timings(tmp_path).seconds({"network": "b"}, ["slow", "quick"], clock.build, 0.5)
    assert clock.steps["slow"] == 6
    kept = [json.loads(path.read_text()) for path in (tmp_path / "timings").glob("*.json")]
    assert sorted(each["network"] for each in kept) == ["a", "b"]
    assert all(each["processor"] == timings.processor() for each in kept)


def test_a_disturbed_measurement_goes_on_and_is_not_kept(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, a=[1.0, *(0.001 * 1.2**i for i in range(20, 0, -1))], b=[1.0, 0.001])
    Timings(tmp_path).seconds({}, ["a", "b"], clock.build, 0.5)
    assert not list((tmp_path / "timings").glob("*.json"))
    assert clock.steps["a"] > 3
    calm = Clock(monkeypatch, a=[1.0, 0.4, 0.1], b=[1.0, 0.1])
    seconds, reliable = least_times({name: calm.build(name) for name in "ab"}, 0.5)
    assert reliable
    assert seconds == {"a": pytest.approx(0.1), "b": pytest.approx(0.1)}


def test_cells_of_a_sweep_share_a_disturbed_measurement(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, a=[0.001 * 1.2**i for i in range(20, 0, -1)])
    first = Timings(tmp_path / "cache", tmp_path / "sweep").seconds({}, ["a"], clock.build, 0.5)
    assert Timings(tmp_path / "cache", tmp_path / "sweep").seconds({}, ["a"], clock.build, 0.5) == first
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_sweep_uses_the_times_of_the_cache_and_keeps_its_own(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, a=[1.0])
    kept = Timings(tmp_path / "cache").seconds({}, ["a"], clock.build, 0.5)
    monkeypatch.setitem(clock.seconds, "a", [5.0])
    assert Timings(tmp_path / "cache", tmp_path / "sweep").seconds({}, ["a"], clock.build, 0.5) == kept
    assert Timings(tmp_path / "other", tmp_path / "sweep").seconds({}, ["a"], clock.build, 0.5) == kept


def test_processes_measure_one_after_the_other(tmp_path):
    running, together = threading.Semaphore(1), []

    def build(name):
        def step():
            together.append(not running.acquire(blocking=False))
            threading.Event().wait(0.01)
            if not together[-1]:
                running.release()

        return step

    threads = [threading.Thread(target=Timings(tmp_path).seconds, args=({"n": i}, ["a"], build, 0.0)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together
    assert not any(together)


@pytest.mark.parametrize(
    "seconds",
    ['{"a": "x"}', '{"b": 1.0}', '{"a": NaN}', '{"a": 0}', f'{{"a": 1{"0" * 400}}}', "[]", "{", "[" * 100_000],
    ids=lambda seconds: seconds[:10],
)
def test_an_unreadable_file_is_measured_again(seconds, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, a=[1.0])
    Timings(tmp_path).seconds({}, ["a"], clock.build, 0.0)
    next((tmp_path / "timings").glob("*.json")).write_text(f'{{"seconds": {seconds}}}')
    assert Timings(tmp_path).seconds({}, ["a"], clock.build, 0.0) == {"a": 1.0}


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    caplog.set_level("INFO")
    clock = Clock(monkeypatch, a=[1.0])
    assert Timings(tmp_path / "file").seconds({}, ["a"], clock.build, 0.0) == {"a": 1.0}
    assert "cannot be kept" in caplog.text


def test_instruction_sets_belong_to_the_name_of_the_processor(monkeypatch):
    timings.processor.cache_clear()
    plain = timings.processor()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    timings.processor.cache_clear()
    assert timings.processor() != plain
    timings.processor.cache_clear()


def test_the_first_form_stays_unless_another_is_clearly_faster():
    assert fastest({"float32": 1.0, "bfloat16": 0.92}) == "float32"
    assert fastest({"float32": 1.0, "bfloat16": 0.9, "float16": 0.8}) == "float16"
    assert fastest({"float32": 1.0}) == "float32"
