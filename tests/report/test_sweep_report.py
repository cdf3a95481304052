"""The page of a sweep has every trial, its pictures are files too, and odd sweeps are told as they are."""

import json
import math
import re

import numpy as np
import pytest
import tiny
from jobs.fake import FakeExecutor
from markup import read
from metrics import ACCURACY, LOSS

from hybrid_flax import cli
from hybrid_flax.compare.statistics import mean_interval
from hybrid_flax.config import apply_overrides, base_config
from hybrid_flax.jobs import executors
from hybrid_flax.jobs.queue import Standing
from hybrid_flax.report.reproduce import reproduce_command
from hybrid_flax.report.sweep_drawings import _limits, _places
from hybrid_flax.report.sweep_report import write_sweep_report
from hybrid_flax.sweep.definition import Sweep
from hybrid_flax.sweep.space import choice, float_range
from hybrid_flax.sweep.tables import best_first, best_of
from hybrid_flax.training import devices

METRICS = {"loss": LOSS, "accuracy": ACCURACY}
PATTERNS = ("lstm", "gate:rglru+swa", "cascade:lstm+<attn>")


def plan_of(records, metric="loss", space=None):
    base = apply_overrides(base_config(), [f"eval.metric={metric}"] + ["task.name=classify"] * (metric != "loss"))
    return Sweep("experiments/tiny.py", base, METRICS[metric], "tpe" if space else "grid", (), space, len(records))


def made_up(workdir, count=8, seed=0, metric="loss", points=3):
    """Finished trials with random metrics, those of their last evaluation."""
    rng, records = np.random.default_rng(seed), []
    for number in range(count):
        values = {
            "model.pattern": PATTERNS[number % 3],
            "optim.learning_rate": float(10 ** rng.uniform(-4, -1)),
            "seed": int(rng.integers(3)),
        }
        if "swa" in values["model.pattern"]:
            values["mixers.swa.window"] = int(rng.choice([16, 64]))
        record = Standing(number, f"run{number}", values, "done", 10 * points, float(rng.uniform(0.2, 0.9)), "")
        curve = [*rng.uniform(0.2, 0.9, size=points - 1).tolist(), record.value]
        write_curve(workdir, record, metric, curve)
        records.append(record)
    return records


def write_curve(workdir, record, metric, values):
    (workdir / record.run).mkdir(exist_ok=True)
    lines = [json.dumps({"step": 10 * (n + 1), f"eval/{metric}": value}) + "\n" for n, value in enumerate(values)]
    (workdir / record.run / "metrics.jsonl").write_text("".join(lines))


def page_of(plan, records, workdir):
    """(text, tags, names of the pictures)"""
    text, tags = read(write_sweep_report(plan, records, workdir).read_text(encoding="utf-8"))
    files = list((workdir / "plots").iterdir())
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert sum(tag == "figure" for tag, _ in tags) == len(files)
    return text, tags, {file.stem for file in files}


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_every_trial_is_on_the_page(tmp_path, metric):
    records = made_up(tmp_path, metric=metric)
    records[1] = records[1]._replace(state="pruned")
    records[2] = records[2]._replace(state="failed", reason="step 3: train/loss is <not> finite")
    text, tags, pictures = page_of(plan_of(records, metric), records, tmp_path)
    keys = ("model.pattern", "optim.learning_rate", "seed", "mixers.swa.window")
    assert pictures == {"curves", "importance", "parallel", *(f"parameter-{key}" for key in keys)}
    for record in records:
        assert (f"{100 * record.value:.2f}" if metric == "accuracy" else f"{record.value:#.5g}") in text
        assert f"{record.values['optim.learning_rate']:.6g}" in text and record.run in text
    done = [record for record in records if record.state == "done"]
    best = (min if metric == "loss" else max)(done, key=lambda record: record.value)
    assert f"Trial {best.number} has the best validation {metric}" in text and f"best: trial {best.number}" in text
    assert "6 of 8 trials are done, 1 pruned, 1 failed" in text
    assert "step 3: train/loss is <not> finite" in text and "cascade:lstm+<attn>" in text
    bold = [held for tag, held in tags if tag == "td" and "best" in held.get("class", "")]
    assert [float(held["data-v"]) for held in bold if "data-v" in held] == [best.number, best.value]


def test_one_trial(tmp_path):
    text, _, pictures = page_of(plan_of([1]), made_up(tmp_path, 1), tmp_path)
    assert pictures == {"curves"} and "Trial 0 has the best" in text and "Each parameter" not in text


def test_nothing_was_swept(tmp_path):
    (record,) = made_up(tmp_path, 1)
    text, _, _ = page_of(plan_of([1]), [record._replace(values={})], tmp_path)
    assert "the config was trained as it is" in text


def test_two_trials_are_too_few_for_importance(tmp_path):
    text, _, pictures = page_of(plan_of([1, 2]), made_up(tmp_path, 2), tmp_path)
    assert "importance" not in pictures and "parallel" in pictures
    assert "Left out: it takes at least 4 finished trials, and there are 2." in text


def test_one_parameter(tmp_path):
    records = [record._replace(values={"seed": record.number}) for record in made_up(tmp_path)]
    text, _, pictures = page_of(plan_of(records), records, tmp_path)
    assert pictures == {"curves", "importance", "parameter-seed"} and "two parameters that vary" in text


@pytest.mark.parametrize("state", ["failed", "waiting"])
def test_nothing_was_evaluated(tmp_path, state):
    reason = "out of memory" if state == "failed" else ""
    records = [
        record._replace(state=state, step=0, value=None, reason=reason, run=f"not-there-{record.number}")
        for record in made_up(tmp_path)
    ]
    text, _, pictures = page_of(plan_of(records), records, tmp_path)
    assert pictures == set() and "No trial is finished yet" in text
    assert ("8 trials: out of memory" in text) == (state == "failed")
    assert ("8 are still to be trained" in text) == (state == "waiting")


def test_no_trial_at_all(tmp_path):
    text, _, _ = page_of(plan_of([1], space={"seed": choice(0, 1)}), [], tmp_path)
    assert "There is no trial yet" in text and "0 | 1" in text


def test_metrics_that_are_no_numbers(tmp_path):
    records = made_up(tmp_path, 6)
    worst = [math.nan, math.inf]
    records[:2] = [record._replace(value=value) for record, value in zip(records, worst)]
    for record in records[:2]:
        write_curve(tmp_path, record, "loss", ["nan", "inf", 0.5])
    text, _, _ = page_of(plan_of(records), records, tmp_path)
    best = min(records[2:], key=lambda record: record.value)
    assert best_of(records, LOSS) is best and f"Trial {best.number} has the best" in text
    assert [record.number for record in best_first(records, LOSS)[-2:]] == [1, 0]  # what is no number at the end


def test_a_constant_parameter_and_a_constant_metric(tmp_path):
    records = made_up(tmp_path)
    records = [record._replace(values={**record.values, "model.depth": 2}, value=0.5) for record in records]
    text, _, pictures = page_of(plan_of(records), records, tmp_path)
    assert "parameter-model.depth" not in pictures and "model.depth 2 1 2" in text  # values, how many, of the best
    assert "Left out: all finished trials are equally good." in text


def test_long_strings(tmp_path):
    long = ["x" * 400 + end for end in "ab"]
    records = [r._replace(values={**r.values, "data.path": long[r.number % 2]}) for r in made_up(tmp_path)]
    text, _, _ = page_of(plan_of(records), records, tmp_path)
    assert "x" * 300 not in text and re.search("x{20}…x{20,}[ab]", text)


@pytest.mark.slow
def test_many_trials(tmp_path):
    records = made_up(tmp_path, 230)
    page = write_sweep_report(plan_of(records), records, tmp_path)
    text, tags = read(page.read_text(encoding="utf-8"))
    assert "The 200 best of 230" in text and page.stat().st_size < 2e6
    assert sum(tag == "tr" for tag, _ in tags) > 230


def test_settings_by_their_mean_over_seeds(tmp_path):
    """A lucky seed does not make the best setting."""
    values = {"lucky": [0.1, 0.9, 0.8], "steady": [0.3, 0.31, 0.29]}
    records = []
    for pattern, losses in values.items():
        for seed, loss in enumerate(losses):
            row = {"model.pattern": pattern, "seed": seed}
            records.append(Standing(len(records), "not-there", row, "done", 9, loss, ""))
    text, _, _ = page_of(plan_of(records), records, tmp_path)
    table = text[text.index("setting runs") :]
    assert table.index("model.pattern=steady") < table.index("model.pattern=lucky")
    for losses in values.values():
        mean, half = mean_interval(losses)
        assert f"{mean:#.5g} ± {half:.2g} {min(losses):#.5g} {max(losses):#.5g}" in table


def test_cross_validation(tmp_path):
    """Folds repeat a setting; their test parts are its figure, read from the folders that lie here."""
    records = []
    for number, (width, fold) in enumerate([(8, 0), (8, 1), (16, 0), (16, 1)]):
        row = {"model.width": width, "data.fold": fold}
        records.append(Standing(number, f"run{number}", row, "done", 9, 0.5 + 0.01 * number, ""))
        if number != 3:
            (tmp_path / f"run{number}").mkdir()
            results = {"step": 9, "test": {"accuracy": 0.6 + 0.1 * number}}
            (tmp_path / f"run{number}" / "results.json").write_text(json.dumps(results))
    text, _, _ = page_of(plan_of(records, "accuracy"), records, tmp_path)
    table = text[text.index("setting runs") :]
    mean, half = mean_interval([0.6, 0.7])
    assert f"model.width=8 2 50.50 ± {100 * mean_interval([0.5, 0.51])[1]:.2g} 50.00 51.00" in table
    assert f"51.00 {100 * mean:.2f} ± {100 * half:.2g}" in table
    assert "53.00 80.00" in table.replace(" | ", " ")  # one fold lies elsewhere


def test_pictures_of_an_earlier_sweep_are_gone(tmp_path):
    records = made_up(tmp_path)
    page_of(plan_of(records), records, tmp_path)
    fewer = [record._replace(values={"seed": record.number}) for record in records]
    assert page_of(plan_of(fewer), fewer, tmp_path)[2] == {"curves", "importance", "parameter-seed"}


def test_limits_leave_out_what_is_far_out():
    rng = np.random.default_rng(0)
    values = rng.uniform(1.0, 2.0, size=20)
    low, high = _limits([*values, 500.0, math.inf, math.nan], down=True)
    assert (low, high) == (values.min(), values.max())
    assert _limits([-500.0, *-values], down=False) == (-values.max(), -values.min())
    low, high = _limits([3.0, 3.0], down=True)
    assert low < 3.0 < high


def test_places_on_an_axis():
    rows = [{"a": 1e-4, "b": "x"}, {"a": 1e-2, "b": True}, {"a": 1.0}]
    records = [Standing(n, str(n), values, "done", 1, 1.0, "") for n, values in enumerate(rows)]
    place, ticks = _places(records, "a")
    assert place == pytest.approx({0: 0.0, 1: 0.5, 2: 1.0})
    assert [label for _, label in ticks] == ["0.0001", "0.01", "1"]
    place, ticks = _places(records, "b")
    assert place[2] < 0 < place[1] < place[0] < 1 and {label for _, label in ticks} == {"x", "True", "not set"}


def test_the_command_writes_it(tmp_path, monkeypatch, capsys, no_pauses):
    """Also where some trials fail, and with the search space in words."""
    monkeypatch.setattr(executors, "make_executor", lambda *given: FakeExecutor(slots=2))
    monkeypatch.setattr(devices, "set_up_jax", lambda platforms: None)
    head = (
        "from hybrid_flax.sweep.space import *\n"
        "def sweep():\n"
        '    yield {"optim.learning_rate": float_range(1e-3, 1e-1, log=True), "seed": choice(12, 13)}\n'
    )
    experiment = tiny.write_experiment(tmp_path, tiny.write_text(tmp_path), head, eval__every=1, train__steps=4)
    workdir = tmp_path / "sweep"
    command = ["sweep", f"--config={experiment}", "--search=random", "--trials=8", f"--workdir={workdir}"]
    assert cli.main(command) == 1
    assert capsys.readouterr().out.rstrip().endswith(str(workdir / "sweep.html"))
    text, _ = read((workdir / "sweep.html").read_text(encoding="utf-8"))
    assert "0.001 to 0.1, evenly in the logarithm" in text and "train/loss is not finite" in text
    assert float_range(1e-3, 1e-1, log=True).log and (workdir / "plots" / "parallel.png").exists()


@pytest.mark.slow
def test_a_sweep_that_trains(tmp_path):
    """The command on the page is the one of the best trial."""
    head = (
        "from hybrid_flax.sweep.space import axis, product\n"
        "def sweep():\n"
        '    return product(axis("model.pattern", ["lstm", "conv"]), axis("optim.learning_rate", [1e-3, 1e-2]))\n'
    )
    experiment = tiny.write_experiment(tmp_path, tiny.write_text(tmp_path), head, eval__every=2, train__steps=6)
    workdir = tmp_path / "sweep"
    command = (tiny.ROOT / "launch.py", "sweep", f"--config={experiment}", f"--workdir={workdir}")
    code, out, err = tiny.python(*command)
    assert code == 0, out + err
    text, tags = read((workdir / "sweep.html").read_text(encoding="utf-8"))
    losses = {
        path.parent.name: json.loads(path.read_text())["valid"]["loss"] for path in workdir.glob("*/results.json")
    }
    best = min(losses, key=losses.get)
    again = reproduce_command(workdir / best, experiment=str(experiment)).text.replace(
        "hybrid-flax ", "python launch.py "
    )
    assert len(losses) == 4 and " ".join(again.split()) in text
    assert f"python launch.py eval --workdir={workdir / best} --split=test" in text
    assert {path.stem for path in (workdir / "plots").iterdir()} == {
        "curves", "importance", "parallel", "parameter-model.pattern", "parameter-optim.learning_rate"
    }  # fmt: skip
    assert all(f"{loss:#.5g}" in text for loss in losses.values())
