"""The machine shared out: cores and GPUs of jobs that run side by side."""

import os

import pytest

from hybrid_flax.jobs.machine import share_of, visible_gpus


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert visible_gpus() == ["4", "6"]
    assert [share_of(slot, 2, visible_gpus()).environment for slot in range(2)] == [
        {"CUDA_VISIBLE_DEVICES": "4"},
        {"CUDA_VISIBLE_DEVICES": "6"},
    ]
    shared = {"CUDA_VISIBLE_DEVICES": "6", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert share_of(3, 4, ["4", "6"]) == (shared, ())
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert visible_gpus() == []


@pytest.mark.parametrize("slots, wanted", [(1, [()]), (2, [(0, 2, 4), (1, 3)]), (6, [(n % 5,) for n in range(6)])])
def test_cores_are_shared_out(slots, wanted, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(5)), raising=False)
    assert [share_of(slot, slots, []) for slot in range(slots)] == [({}, cores) for cores in wanted]
