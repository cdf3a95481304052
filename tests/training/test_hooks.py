"""Hooks: when they are called, with what, and what becomes of a run whose hook fails."""

import jax
import numpy as np
import pytest
import tiny

from hybrid_flax import load_run, register_hook
from hybrid_flax.training import hooks
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.loop import train
from hybrid_flax.training.writers import read_jsonl

VALUES = {"eval__every": 3, "train__log_every": 2, "train__checkpoint_every": 5}  # of 6 steps


@pytest.fixture
def config(text):
    return tiny.tiny_config(text, **VALUES)


def test_events_come_with_their_values(config, tmp_path):
    seen = {event: [] for event in hooks.EVENTS}
    for event in hooks.EVENTS:

        def note(step, values, run, event=event):
            on_disk = {int(path.name) for path in (run.folder / "checkpoints").glob("[0-9]*") if path.name.isdecimal()}
            seen[event].append((step, dict(values), jax.tree.map(np.copy, run.params), on_disk))

        register_hook(event, note)
    run, results = train(config, tmp_path)
    assert {event: [step for step, *_ in calls] for event, calls in seen.items()} == {
        "log": [2, 4, 6],
        "evaluation": [3, 6],
        "checkpoint": [3, 5, 6],
        "end": [6],
    }
    assert all(step in on_disk for step, _, _, on_disk in seen["checkpoint"])
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    logged = [{key: value for key, value in values.items() if "perf/" not in key} for _, values, *_ in seen["log"]]
    assert logged == [row for row in rows if "train/loss" in row]
    evaluated = [{"step": step, **values} for step, values, *_ in seen["evaluation"]]
    assert evaluated == [row for row in rows if "eval/loss" in row]
    assert seen["end"][0][1] == results
    assert [values == {} for _, values, *_ in seen["checkpoint"]] == [False, True, False]
    for one, other in zip(*map(jax.tree.leaves, (seen["end"][0][2], run.params)), strict=True):
        np.testing.assert_array_equal(one, other)


def fails(step, values, run):
    raise KeyError("missing")


@pytest.mark.parametrize(("event", "step"), [("log", 2), ("evaluation", 3), ("checkpoint", 3)])
def test_a_hook_that_fails_ends_training_and_loses_nothing(config, tmp_path, event, step):
    register_hook(event, fails)
    wanted = (
        rf"^hook of {event} at step {step} \(.*fails\) fails: KeyError: missing .*; the checkpoint of step {step} is"
    )
    with pytest.raises(TrainingFailed, match=wanted):
        train(config, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoints" / str(step)).is_dir()
    hooks._hooks.clear()
    train(config, tmp_path / "cut")
    train(config, tmp_path / "whole")
    for name in ("metrics.jsonl", "results.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_hook_that_fails_at_the_end_leaves_the_results(config, tmp_path):
    register_hook("end", fails)
    with pytest.raises(TrainingFailed, match="hook of end at step 6"):
        train(config, tmp_path)
    hooks._hooks.clear()
    _, results = train(config, tmp_path)
    assert results.keys() == {"valid"} and load_run(tmp_path).step == 6


def test_what_cannot_be_a_hook():
    with pytest.raises(ValueError, match="event 'evaluate' is none of log, evaluation, checkpoint, end; nearest: eval"):
        register_hook("evaluate", fails)
    register_hook("log", lambda step, values, run: None)
    with pytest.raises(ValueError, match="<lambda> is registered already: give each function a name of its own"):
        register_hook("log", lambda step, values, run: print(step))


def test_a_hook_registered_again_takes_the_place_of_the_old_one():
    def made(number):
        def hook(step, values, run):
            called.append(number)

        return hook

    called = []
    for number in (1, 2):
        register_hook("log", made(number))
    (hook,) = hooks._hooks.values()
    hook(1, {}, None)
    assert called == [2]
