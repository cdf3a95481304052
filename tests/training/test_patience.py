"""Early stopping: when, what is kept and reported, and the same after a crash anywhere."""

import json

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console
from tiny import Crash, at_step, crash

from hybrid_flax.runs import load_run
from hybrid_flax.tasks.base import Metric
from hybrid_flax.training.checkpoint import Checkpoints
from hybrid_flax.training.loop import train
from hybrid_flax.training.writers import read_jsonl

QUIET = Console(quiet=True)
WORSE_IN_THE_END = {
    "train__steps": 40,
    "train__patience": 2,
    "train__dropout": 0.1,
    "train__recurrent_dropout": 0.1,
    "eval__every": 2,
    "eval__best": True,
    "data__test_fraction": 0.1,
    "schedule__name": "constant",
    "optim__name": "sgd",
    "optim__learning_rate": 0.5,
    "model__pattern": "gru",
}


@pytest.fixture(scope="module")
def stopped(text, tmp_path_factory):
    """(config, folder, run, results) of a run that stopped early."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny.tiny_config(text, **WORSE_IN_THE_END)
    return config, folder, *train(config, folder, console=QUIET)


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "results.json")}


def assert_same_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_when_it_stops_and_what_it_reports(stopped, capsys):
    config, folder, run, results = stopped
    losses = {row["step"]: row["eval/loss"] for row in read_jsonl(folder / "metrics.jsonl") if "eval/loss" in row}
    best = min(losses, key=losses.get)
    last = max(losses)
    assert best > 2 and last == best + 4 < config.train.steps, "two evaluations without a better one"
    for step in range(2, last, 2):
        so_far = min((s for s in losses if s <= step), key=losses.get)
        assert step - so_far < 4, "it stopped too late"
    saved = json.loads((folder / "results.json").read_text())
    assert (saved["step"], saved["last_step"], saved["stopped_early"]) == (best, last, True)
    assert {name: saved[name] for name in ("valid", "test")} == results
    assert results["valid"]["loss"] == pytest.approx(losses[best], rel=1e-6)
    assert run.step == best
    assert_same_params(run.params, load_run(folder).params)
    assert (load_run(folder, "best").step, load_run(folder, "latest").step) == (best, last)

    before = files(folder)
    again, same = train(config, folder)
    assert f"this run is finished: {last} steps" in capsys.readouterr().out
    assert same == results and again.step == best and files(folder) == before
    assert_same_params(again.params, run.params)


def test_a_quiet_run_prints_nothing(stopped, capsys):
    config, folder, *_ = stopped
    train(config, folder, console=QUIET)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("after_best", [-1, 1, 3])
def test_cut_off(after_best, stopped, tmp_path, monkeypatch):
    """Before the best evaluation, between it and the next, and before the last."""
    config, whole, run, _ = stopped
    with monkeypatch.context() as patch:
        at_step(patch, run.step + after_best, crash)
        with pytest.raises(Crash):
            train(config, tmp_path, console=QUIET)
    again, _ = train(config, tmp_path, console=QUIET)
    assert files(tmp_path) == files(whole)
    assert_same_params(again.params, run.params)
    assert_same_params(*(load_run(path, "latest").params for path in (tmp_path, whole)))


def test_cut_off_before_the_final_metrics(stopped, tmp_path):
    """It does not train on."""
    config, whole, *_ = stopped
    before = files(whole)
    (whole / "results.json").unlink()
    train(config, whole, console=QUIET)
    assert files(whole) == before


@pytest.mark.parametrize(
    ("lower_is_better", "values", "best"),
    [(True, [3.0, 1.0, 1.0, 2.0], 2), (False, [0.1, 0.5, 0.5, 0.3], 2), (False, [-1.0], 1)],
)
def test_the_best_checkpoint(lower_is_better, values, best, tmp_path):
    """By its direction, the first of equals, also after the folder is opened again."""
    metric = Metric("m", lower_is_better=lower_is_better)
    checkpoints = Checkpoints(tmp_path, metric)
    assert checkpoints.best() is None
    for step, value in enumerate(values, start=1):
        checkpoints.save(step, {"x": np.full(3, step)}, {"eval/loss": 1.0, "eval/m": value})
    checkpoints.save(9, {"x": np.full(3, 9)})
    assert checkpoints.best() == best
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {str(best), str(len(values)), "9"}
    again = Checkpoints(tmp_path, metric)
    assert (again.best(), again.latest()) == (best, 9)
    again.close()
