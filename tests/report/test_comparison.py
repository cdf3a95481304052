"""The page of a comparison has every figure of its tables, and says what is missing."""

import csv
import json
import math

import numpy as np
import pytest
import tiny
from markup import read
from metrics import ACCURACY, LOSS

from hybrid_flax.compare.results import Budget, Column, Comparison, Cost, Entry, Failure, Row
from hybrid_flax.compare.statistics import mean_interval, verdicts
from hybrid_flax.report.comparison import write_report
from hybrid_flax.report.comparison_tables import markdown, write_tables
from hybrid_flax.report.disagreement import most_disputed
from hybrid_flax.report.drawings import _validation_curve
from hybrid_flax.training.loop import train

ROWS = (Row("lstm", True), Row("attn", True), Row("gate:lstm+attn", False))
COLUMNS = (
    Column("text", "lm", LOSS, Budget("parameters", 1e5), 100, 32),
    Column("parity", "answer", ACCURACY, Budget("flops", 2e4), 50, 16),
)


def entry_of(row, column, rng, folders):
    values = tuple(rng.uniform(0.5, 0.9, size=len(folders)).tolist())
    cost = Cost(
        *(int(n) for n in rng.integers(10_000, 99_000, size=2)), int(rng.integers(100, 999)), 1e4, 2e8, "memory"
    )
    pairs = ((0.01, 0.5), (0.001, 0.6))
    return Entry(row, column.task, row, 33, 0.01, pairs, tuple(range(len(folders))), values, values, folders, cost)


def made_up(workdir, seeds=3, failures=()):
    """A comparison of random figures whose runs are no more than their metrics."""
    rng = np.random.default_rng(0)
    entries = []
    for row in ROWS:
        for column in COLUMNS:
            folders = tuple(f"runs/{row.name}-{column.task}-{seed}" for seed in range(seeds))
            for folder in folders:
                (workdir / folder).mkdir(parents=True)
                lines = [{"step": step, f"eval/{column.metric.name}": rng.uniform()} for step in (10, 20)]
                (workdir / folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            entries.append(entry_of(row.name, column, rng, folders))
    entries[0] = entries[0]._replace(failures=failures)
    return Comparison("Made <up>", ROWS, COLUMNS, tuple(entries), (0.01, 0.001), seeds, "1 x cpu")


def test_every_figure_is_on_the_page(tmp_path):
    comparison = made_up(tmp_path, failures=(Failure("runs/x", 0.1, 0, "train/loss is not finite"),))
    path = write_report(comparison, tmp_path)
    text, tags = read(path.read_text(encoding="utf-8"))
    for entry in comparison.entries:
        scale, digits = (100, 1) if entry.task == "parity" else (1, 3)
        mean, half = (scale * value for value in mean_interval(entry.test))
        assert f"{mean:.{digits}f} ± {half:.{digits}f}" in text
        assert f"{entry.cost.parameters:,}" in text
    for (row, _), verdict in verdicts(comparison).items():
        assert row in text and f"{verdict.p:.3f}" in text and f"{verdict.corrected:.3f}" in text
    assert "Made <up>" in text and "train/loss is not finite" in text and "is no run" in text
    plots = sorted(file.name for file in (tmp_path / "plots").iterdir())
    assert plots == [f"{name}-{task}.png" for name in ("costs", "curves", "intervals") for task in ("parity", "text")]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "plots").iterdir())
    assert sum(tag == "figure" for tag, _ in tags) == 6


def test_the_best_fusion_is_chosen_on_validation(tmp_path):
    """Of two fusions the one that is better on validation is named, though the other has the better test."""
    sound = made_up(tmp_path)
    other = Row("add:lstm+attn", False)
    entries = list(sound.entries)
    for column in COLUMNS:
        gate = sound.entry("gate:lstm+attn", column.task)
        better, worse = (0.9, 0.1) if not column.metric.lower_is_better else (0.1, 0.9)
        entries[entries.index(gate)] = gate._replace(valid=(better,) * 3, test=(worse,) * 3)
        entries.append(gate._replace(row=other.name, valid=(worse,) * 3, test=(better,) * 3))
    comparison = sound._replace(rows=(*ROWS, other), entries=tuple(entries))
    text, _ = read(write_report(comparison, tmp_path).read_text(encoding="utf-8"))
    assert text.count("best fusion gate:lstm+attn") == 2 and "best fusion add:lstm+attn" not in text


def test_the_same_difference_at_every_seed_is_said_to_be_no_test(tmp_path):
    """In the tables and on the page."""
    comparison = made_up(tmp_path)
    constant = {"lstm": (0.5,) * 3, "attn": (0.25,) * 3}
    values = [constant.get(entry.row, entry.test) for entry in comparison.entries]
    entries = tuple(e._replace(valid=v, test=v) for e, v in zip(comparison.entries, values))
    comparison = comparison._replace(entries=entries)
    text, _ = read(write_report(comparison, tmp_path).read_text(encoding="utf-8"))
    table = markdown(comparison)
    words = "no test: the same difference at every seed"
    assert text.count(words) == table.count(words) == 2 and "nan" not in text + table
    assert f"25.0 - - {words}" in text and f"25.0 | - | - | {words} |" in table
    write_tables(comparison, tmp_path)
    with (tmp_path / "compare.csv").open() as file:
        records = [record for record in csv.DictReader(file) if record["difference"] in ("0.25", "-0.25")]
    assert len(records) == 2 and all(r["p"] == r["p_corrected"] == r["difference_half"] == "" for r in records)


@pytest.mark.slow
def test_tasks_with_like_names_have_pictures_of_their_own(tmp_path):
    names = ("a b", "a_b", "a/b")
    comparison = made_up(tmp_path)
    columns = tuple(COLUMNS[0]._replace(task=name) for name in names)
    entries = tuple(e._replace(task=name) for name in names for e in comparison.entries if e.task == "text")
    write_report(comparison._replace(columns=columns, entries=entries), tmp_path)
    assert len(list((tmp_path / "plots").iterdir())) == 9


def test_rates_at_the_edge_of_the_search(tmp_path):
    """In the tables and on the page: a better one may lie beyond."""
    comparison = made_up(tmp_path)._replace(learning_rates=(0.01, 0.1, 1.0))
    rates = (0.01, 0.1, 1.0, None)
    entries = tuple(e._replace(learning_rate=rate) for e, rate in zip(comparison.entries, rates))
    comparison = comparison._replace(entries=entries + comparison.entries[len(rates) :])
    text, _ = read(write_report(comparison, tmp_path).read_text(encoding="utf-8"))
    for shown in (text, markdown(comparison)):
        assert "≤ 0.01" in shown and "≥ 1" in shown and "≤ 0.1 " not in shown and "≥ 0.1 " not in shown
        assert "a better one may lie beyond" in shown
    alone = markdown(comparison._replace(learning_rates=(0.01,)))
    assert "| 0.01 |" in alone and "| - |" in alone


@pytest.mark.parametrize("seeds", [0, 1])
def test_a_comparison_that_has_only_begun(tmp_path, seeds):
    comparison = made_up(tmp_path, seeds)._replace(seeds=3)
    text, _ = read(write_report(comparison, tmp_path).read_text(encoding="utf-8"))
    assert ("No run is finished yet" in text) == (seeds == 0)
    assert f"{6 * seeds} of 18 runs are done" in text and "nan" not in text


def test_curves_are_of_the_seeds_that_got_so_far(tmp_path):
    rows = [[(10, 1.0), (20, 3.0)], [(10, 2.0), (20, math.nan)], [(10, 6.0)]]
    for number, points in enumerate(rows):
        (tmp_path / str(number)).mkdir()
        lines = [json.dumps({"step": s, "eval/loss": v if v == v else "nan"}) + "\n" for s, v in points]
        (tmp_path / str(number) / "metrics.jsonl").write_text("".join(lines))
    steps, low, mean, high = _validation_curve([tmp_path / str(n) for n in range(4)], "eval/loss")
    assert (steps.tolist(), low.tolist(), mean.tolist(), high.tolist()) == ([10, 20], [1, 3], [3, 3], [6, 3])


@pytest.mark.slow
def test_runs_speak_for_themselves(tmp_path):
    """Predictions, samples and diagnoses of real runs, all from their folders."""
    text = tiny.write_text(tmp_path)
    changes = {"mixers__conv__taps": 2, "eval__every": 3, "train__steps": 3}
    answer = {"task__name": "answer", "data__path": "synthetic:parity", "data__mode": "padded", "eval__length": 12}
    comparison = made_up(tmp_path, seeds=0)._replace(rows=(Row("conv", True), Row("add", False)), seeds=1)
    entries = []
    for row, pattern in (("conv", "conv"), ("add", "add:conv+conv")):
        for column, more in zip(COLUMNS, ({}, answer)):
            folder = f"runs/{row}-{column.task}"
            if (row, column.task) == ("conv", "text"):
                entries.append(entry_of(row, column, np.random.default_rng(0), ()))
                continue
            train(tiny.tiny_config(text, **changes | more, model__pattern=pattern), tmp_path / folder)
            entries.append(entry_of(row, column, np.random.default_rng(0), (folder,)))
    comparison = comparison._replace(entries=tuple(entries))
    found, _ = read(write_report(comparison, tmp_path).read_text(encoding="utf-8"))
    assert "is no run" not in found and "0 add:conv+conv" in found
    diagnosis = json.loads((tmp_path / "runs/add-text/diagnosis.json").read_text())
    assert len(diagnosis["parts"]) == 3 and f"{diagnosis['loss']:.4f}" in found
    sample = (tmp_path / "runs/add-text/sample.txt").read_text()
    assert " ".join(sample.split()) in found
    folders = {row: tmp_path / f"runs/{row}-parity" for row in ("conv", "add")}
    examples = most_disputed(folders, 3)
    assert len(examples) == 3 and all(list(example.said) == ["conv", "add"] for example in examples)
    for example in examples:
        assert example.text in found
        for said in example.said.values():
            assert said.right == (said.words == example.truth) and said.words in found
            assert said.words.replace("[", "").replace("]", "").split().__len__() == len(example.truth.split())
