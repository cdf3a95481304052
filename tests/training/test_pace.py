"""How long a step takes: measured, and nothing else."""

import time

import tiny

from hybrid_flax.training.pace import measure_pace, quickest, start_seconds
from hybrid_flax.training.setup import make_setup


def test_the_quickest_of_some_calls():
    pauses = [0.3, 0.05, 0.2, 0.9]
    calls = iter(pauses)
    assert 0.05 <= quickest(lambda: time.sleep(next(calls))) < 0.2
    assert list(calls) == [0.9]  # half a second was over


def test_a_step_is_timed_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.tiny_config("synthetic:parity", task__name="answer", data__mode="padded")
    pace = measure_pace(make_setup(config), config)
    assert 0 < pace.step < pace.compile < 60
    assert list(tmp_path.iterdir()) == []


def test_the_start_of_a_process_is_timed(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: time.sleep(0.05))
    assert 0.05 <= start_seconds() < 1
