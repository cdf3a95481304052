"""The plan of a sweep: its programs against the compiled ones, and what a person reads."""

import io

import jax
import pytest
import tiny
from rich.console import Console

from hybrid_flax.models.build import init_params
from hybrid_flax.report.sweep_plan import group_trials, print_sweep_plan
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.trials import check_config
from hybrid_flax.training.pace import Pace
from hybrid_flax.training.step import make_train_step

SWEEP = """
from hybrid_flax.sweep.space import *
def sweep():
    return product(
        axis("model.pattern", ["lstm", "swa"]),
        axis("optim.learning_rate", [1e-3, 1e-2]),
        axis("train.dropout", [0.0, 0.1, 0.2]),
    )
def sweep_marked():
    return axis("sample.prompt", ["[/x]", "[bold]"])
def sweep_space():
    yield {
        "model.pattern": choice("lstm", "swa"),
        "optim.learning_rate": float_range(1e-3, 1e-1, log=True),
        "mixers.swa.window": when("model.pattern", ["swa"], int_range(2, 8, step=2)),
    }
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    return str(tiny.write_experiment(folder, tiny.write_text(folder), SWEEP))


def printed(plan, workdir, **given) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_sweep_plan(plan, workdir, 2, console=console, **given)
    return console.file.getvalue()


def test_programs(experiment, tmp_path):
    """Learning rates share a program, also by the step that they train with; having dropout or not does not."""
    plan = read_sweep(experiment, [])
    programs = group_trials(plan, {plan.trials[0].name: 4})
    assert [len(program.trials) for program in programs] == [2, 4, 2, 4]
    assert [program.num_steps for program in programs] == [2 * 6 - 4, 4 * 6, 2 * 6, 4 * 6]
    steps = set()
    for program in programs:
        of_trials = [check_config(trial.config) for trial in program.trials]
        made = {make_train_step(e.model, e.task, e.traits, None) for e in of_trials}
        assert len(made) == 1
        steps |= made
        params = jax.eval_shape(lambda model=of_trials[0].model: init_params(model, jax.random.key(0)))
        assert program.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len(steps) == 4


def test_brackets_are_letters(experiment, tmp_path):
    text = printed(read_sweep(experiment, [], ["marked"]), tmp_path, on_cpu=False)
    assert "sample.prompt=[/x]" in text and "sample.prompt=[bold]" in text


def test_printed(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_flax.report.sweep_plan.measure_pace", lambda experiment, config: Pace(3600.0, 600.0))
    monkeypatch.setattr("hybrid_flax.report.sweep_plan.start_seconds", lambda: 300.0)
    plan = read_sweep(experiment, [])
    text = printed(plan, tmp_path, on_cpu=True)
    assert "12 trials" in text and "4 programs to compile" in text
    assert all(trial.name in text for trial in plan.trials)
    assert "hours with --jobs=2" in text and "3.6e+06 ms a step" in text
    # Of 12 trials in 4 programs, two at a time.
    assert "50 minutes for starting (300 s a trial) and compiling (600 s a program)" in text
    assert "time unknown" in printed(plan, tmp_path, on_cpu=False)
    assert list(tmp_path.iterdir()) == []
    text = printed(read_sweep(experiment, [], ["space"], "tpe", 7), tmp_path, on_cpu=True)
    assert "tpe search, 7 trials" in text and "2 to 8 in steps of 2 where model.pattern is swa" in text
    assert "0.001 to 0.1, evenly in the logarithm" in text and "at most 42 steps" in text
