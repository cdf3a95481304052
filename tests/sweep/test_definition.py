"""The life of a sweep with trials that do not train: claims, ends, pruning, interruption, tables."""

import csv
import io
import math
import os
import random
import re
import signal
from pathlib import Path

import pytest
import tiny
from jobs.fake import FakeExecutor, loss_of
from rich.console import Console

from hybrid_flax.config import ConfigError
from hybrid_flax.jobs import executor, view
from hybrid_flax.jobs.status import read_status
from hybrid_flax.sweep import run
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.run import run_sweep

SWEEP = """
from hybrid_flax.sweep.space import *
def sweep():
    return product(axis("optim.learning_rate", [0.1, 0.01, 0.001]), axis("seed", [0, 1]))
def sweep_more():
    return axis("seed", [2])
def sweep_failing():
    return axis("seed", [12, 13, 14])
def sweep_space():
    yield {"optim.learning_rate": float_range(1e-3, 1e-1, log=True), "seed": 0}
def sweep_small():
    yield {"optim.learning_rate": choice(0.01, 0.02), "seed": choice(0, 1)}
"""


pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    text = tiny.write_text(folder)
    return str(tiny.write_experiment(folder, text, SWEEP, eval__every=1, train__steps=9))


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def go(plan, workdir, executor=None, **given):
    """(exit code, output, executor) of a sweep."""
    executor, screen = executor or FakeExecutor(), console()
    standings, stopped_by = run_sweep(plan, workdir, executor, console=screen, **given)
    code = 128 + stopped_by if stopped_by else int(any(one.state == "failed" for one in standings))
    return code, screen.file.getvalue(), executor


def loss_at(rate, seed) -> float:
    return loss_of({"optim": {"learning_rate": rate}, "seed": seed}, 9)


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_to_its_end(experiment, tmp_path):
    plan = read_sweep(experiment, [])
    code, output, executor = go(plan, tmp_path, FakeExecutor(slots=2))
    assert code == 0 and executor.most == 2
    assert executor.steps == {trial.name: list(range(1, 10)) for trial in plan.trials}
    rows = table(tmp_path)
    expected = sorted(loss_of(trial.config.to_dict(), 9) for trial in plan.trials)
    assert [float(row["loss"]) for row in rows] == expected
    assert rows[0]["optim.learning_rate"] == "0.01" and {row["state"] for row in rows} == {"done"}
    text = (tmp_path / "sweep.md").read_text()
    assert text.count("\n") == 8 + 1 + 5  # trials, and settings by their mean over seeds
    means = {rate: (loss_at(rate, 0) + loss_at(rate, 1)) / 2 for rate in (0.1, 0.01, 0.001)}
    assert [f"| optim.learning_rate={rate:g} | 2 | {means[rate]:.6g} |" in text for rate in means] == [True] * 3
    assert f"best: trial {rows[0]['trial']}, loss {float(rows[0]['loss']):.4f}" in output

    code, _, executor = go(plan, tmp_path)  # again: there is nothing to do
    assert code == 0 and executor.steps == {} and table(tmp_path) == rows


def test_a_grid_may_grow(experiment, tmp_path):
    go(read_sweep(experiment, [], num_trials=2), tmp_path)
    code, _, executor = go(read_sweep(experiment, []), tmp_path)
    assert code == 0 and len(executor.steps) == 4 and len(table(tmp_path)) == 6
    code, _, executor = go(read_sweep(experiment, [], ["more"]), tmp_path)
    assert len(executor.steps) == 1 and [row["seed"] for row in table(tmp_path)] == ["2"]


def test_another_config_is_refused(experiment, tmp_path):
    go(read_sweep(experiment, [], num_trials=1), tmp_path)
    for overrides, method in ((["optim.b1=0.5"], "grid"), ([], "tpe")):
        plan = read_sweep(experiment, overrides, ["space"] if method == "tpe" else [], method, 1)
        with pytest.raises(ConfigError, match=r"optim.b1: 0.9 -> 0.5|search: 'grid'") as caught:
            go(plan, tmp_path)
        assert "use another --workdir" in str(caught.value)


def test_a_failed_trial_is_told_and_tried_again(experiment, tmp_path):
    plan = read_sweep(experiment, [], ["failing"])
    code, output, executor = go(plan, tmp_path)
    assert code == 1
    assert "failed: trial 1 (seed=13): step 3: train/loss is not finite" in output
    assert {row["seed"]: row["state"] for row in table(tmp_path)} == {"12": "done", "13": "failed", "14": "done"}
    assert table(tmp_path)[-1]["reason"] == "step 3: train/loss is not finite"
    assert read_status(tmp_path / plan.trials[1].name, "loss")[:2] == ("failed", 2)
    code, _, executor = go(plan, tmp_path)
    assert code == 1 and executor.steps == {plan.trials[1].name: [3]}  # from its checkpoint
    assert len(table(tmp_path)) == 3


def test_a_metric_that_is_no_number_is_a_failure(experiment, tmp_path, monkeypatch):
    """The others go on, and it is the last of the table."""
    monkeypatch.setattr(
        "jobs.fake.loss_of", lambda config, step: math.nan if config["seed"] == 0 else loss_of(config, step)
    )
    code, output, _ = go(read_sweep(experiment, []), tmp_path)
    rows = table(tmp_path)
    assert code == 1 and [row["state"] for row in rows] == ["done"] * 3 + ["failed"] * 3
    assert {row["seed"] for row in rows[3:]} == {"0"} and rows[3]["reason"].endswith("is not a number")
    assert "best: trial 3, loss 0.1111" in output


class Interrupted(FakeExecutor):
    """Signals this process after some steps; what runs then goes on for one step."""

    after = 12

    def _step(self, job):
        super()._step(job)
        if sum(map(len, self.steps.values())) == self.after:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        for job in self.running:
            job.ended is None and super()._step(job)
        super().close()


@pytest.mark.parametrize("after", random.Random(0).sample(range(1, 54), 3))
def test_interrupted_and_gone_on_with(after, experiment, tmp_path):
    plan = read_sweep(experiment, [])
    executor = Interrupted(slots=2)
    executor.after = after
    code, output, _ = go(plan, tmp_path, executor)
    assert code == 143 and "stopped by SIGTERM; run the same command to go on" in output
    code, _, second = go(plan, tmp_path, FakeExecutor(slots=2))
    assert code == 0
    trained = {
        trial.name: executor.steps.get(trial.name, []) + second.steps.get(trial.name, []) for trial in plan.trials
    }
    assert trained == {trial.name: list(range(1, 10)) for trial in plan.trials}  # every step once
    uninterrupted = tmp_path / "whole"
    go(plan, uninterrupted, FakeExecutor(slots=2))
    assert table(tmp_path) == table(uninterrupted)


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruning(pruner, experiment, tmp_path):
    plan = read_sweep(experiment, [], ["space"], "random", 20)
    code, _, executor = go(plan, tmp_path, pruner=pruner)
    states = [row["state"] for row in table(tmp_path)]
    assert code == 0 and len(states) == 20
    assert states.count("pruned") == executor.cancelled > 0 and states[0] == "done"
    assert sum(map(len, executor.steps.values())) < 20 * 9
    pruned = next(row for row in table(tmp_path) if row["state"] == "pruned")
    assert read_status(tmp_path / pruned["run"], "loss")[:2] == ("pruned", int(pruned["step"]))
    code, _, executor = go(plan, tmp_path, pruner=pruner)
    assert code == 0 and executor.steps == {}


def test_pruning_needs_evaluations(experiment, tmp_path):
    plan = read_sweep(experiment, ["eval.every=0"])
    with pytest.raises(ConfigError, match=r"needs evaluations on the way: set eval\.every"):
        go(plan, tmp_path, pruner="halving")
    with pytest.raises(ConfigError, match="none of none, median, halving, hyperband"):
        go(read_sweep(experiment, []), tmp_path / "other", pruner="hyper")


@pytest.mark.slow
def test_searches_are_repeatable_and_go_on(experiment, tmp_path):
    """The trials of a seed do not depend on interruptions."""
    for method in ("random", "tpe"):
        plan = read_sweep(experiment, ["train.steps=2"], ["space"], method, 14)
        go(plan, tmp_path / method)
        executor = Interrupted()
        executor.after = 17
        assert go(plan, tmp_path / f"{method}-cut", executor)[0] == 143
        go(plan, tmp_path / f"{method}-cut")
        assert table(tmp_path / method) == table(tmp_path / f"{method}-cut")
        go(plan, tmp_path / f"{method}-seed", seed=100)
        assert table(tmp_path / method) != table(tmp_path / f"{method}-seed")


def test_no_trial_is_drawn_twice(experiment, tmp_path):
    """A space of four trials is tried out by four."""
    with pytest.raises(ConfigError, match="the search space has only 4"):
        read_sweep(experiment, [], ["small"], "tpe", 5)
    for method in ("random", "tpe"):
        plan = read_sweep(experiment, ["train.steps=1"], ["small"], method, 4)
        code, _, executor = go(plan, tmp_path / method)
        assert code == 0 and len(executor.steps) == len(table(tmp_path / method)) == 4


def test_draws_that_cannot_run_are_failures(experiment, tmp_path, monkeypatch):
    plan = read_sweep(experiment, [], ["space"], "random", 5)
    checked = []

    def check(config):
        checked.append(config)
        if len(checked) == 2:
            raise ConfigError("does not fit")

    monkeypatch.setattr(run, "check_config", check)
    code, output, executor = go(plan, tmp_path)
    assert code == 1 and len(executor.steps) == 4 and "does not fit" in output
    assert [row["state"] for row in table(tmp_path)].count("failed") == 1
    code, _, executor = go(plan, tmp_path)  # now it fits
    assert code == 0 and len(executor.steps) == 1 and len(table(tmp_path)) == 5


def test_a_worker_that_died_after_training(experiment, tmp_path):
    """Its trial is finished in the folder, not in the study: it is not trained again."""
    plan = read_sweep(experiment, [], num_trials=2)
    go(plan, tmp_path)
    for path in (tmp_path / "study.journal", tmp_path / "study.journal.lock"):
        path.unlink()
    code, _, executor = go(plan, tmp_path)
    assert code == 0 and executor.steps == {} and len(table(tmp_path)) == 2


@pytest.mark.parametrize(
    ("printed", "code", "reason"),
    [
        ("a\nerror: b\nc\n", 1, "b"),
        ("a\n", -9, "killed (SIGKILL): out of memory?"),
        ("", -15, "ended by SIGTERM"),
        ("x\nXlaRuntimeError: RESOURCE_EXHAUSTED\n", 1, "exit code 1: XlaRuntimeError: RESOURCE_EXHAUSTED"),
        ("", 3, "exit code 3: it printed nothing"),
    ],
)
def test_why(printed, code, reason, tmp_path):
    """Of what this process printed, not an earlier one."""
    output = tmp_path / "output.log"
    output.write_text("error: old\n" + printed)
    assert executor.why(code, output, len("error: old\n")) == reason


def test_live_table(experiment, tmp_path, monkeypatch):
    """In a terminal: what runs, what has ended, the keys that vary, the best so far."""
    monkeypatch.setattr(view, "_PAUSE", 0.0)
    plan = read_sweep(experiment, [], num_trials=4)
    screen = Console(file=io.StringIO(), width=100, force_terminal=True)
    assert run_sweep(plan, tmp_path, FakeExecutor(slots=2), console=screen)[1] is None
    text = screen.file.getvalue()
    assert "learning_rate" in text and "seed" in text and "running" in text and "pattern" not in text
    assert re.search(r"2/4 trials, best 9\.1111 of trial 0, eta 0:0", text)


def test_another_metric(experiment, tmp_path):
    """eval.metric is what a sweep looks for, here the highest."""
    plan = read_sweep(experiment, ["eval.metric=accuracy"])
    code, output, _ = go(plan, tmp_path)
    rows = table(tmp_path)
    expected = sorted((1 / loss_of(trial.config.to_dict(), 9) for trial in plan.trials), reverse=True)
    assert code == 0 and [float(row["accuracy"]) for row in rows] == expected
    assert f"best: trial {rows[0]['trial']}, accuracy {expected[0]:.4f}" in output
    plan = read_sweep(experiment, ["eval.metric=accuracy"], ["space"], "random", 12)
    go(plan, tmp_path / "pruned", pruner="halving")
    by_state = {row["state"]: float(row["accuracy"]) for row in reversed(table(tmp_path / "pruned"))}
    assert by_state["done"] > by_state["pruned"]
