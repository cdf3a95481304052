"""Intervals, tests and corrections, against scipy; references and verdicts on comparisons whose outcome is known."""

import math

import numpy as np
import pytest
from metrics import ACCURACY, LOSS
from scipy import stats

from hybrid_flax.compare.results import Budget, Column, Comparison, Cost, Entry, Row
from hybrid_flax.compare.statistics import best_rows, holm, mean_interval, paired_difference, reference_row, verdicts

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_intervals_and_p_values_are_those_of_scipy(count):
    a, b = RNG.normal(1.0, 0.3, count), RNG.normal(1.2, 0.2, count)
    mean, half = mean_interval(a.tolist())
    low, high = stats.t.interval(0.95, count - 1, loc=a.mean(), scale=stats.sem(a))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-9)
    difference, half, p = paired_difference(a.tolist(), b.tolist())
    result = stats.ttest_rel(a, b)
    interval = result.confidence_interval(0.95)
    assert p == pytest.approx(result.pvalue, rel=1e-9)
    assert (difference - half, difference + half) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_intervals_cover_as_often_as_they_say():
    trials = RNG.normal(0.0, 1.0, (4000, 4))
    covered = np.mean([abs(mean) <= half for mean, half in map(mean_interval, trials.tolist())])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_too_few_values_have_no_interval():
    assert mean_interval([2.0])[0] == 2.0 and math.isnan(mean_interval([2.0])[1])
    assert math.isnan(mean_interval([])[0])
    assert np.isnan(paired_difference([2.0], [1.0])[1:]).all()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 1.0], [1.0, 1.0]),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.1 + 0.2, 0.3, 0.7], [0.1, 0.1, 0.5]),  # 0.2, 0.2 and 0.2 but for rounding
        ([1e6, 2e6 + 1e-4, 3e6], [0.0, 1e6, 2e6]),
    ],
)
def test_the_same_difference_at_every_seed_is_no_test(a, b):
    mean, half, p = paired_difference(a, b)
    assert mean == pytest.approx(a[0] - b[0]) and math.isnan(half) and math.isnan(p)


def test_a_small_spread_is_a_test():
    assert paired_difference([1.0, 1.0 + 1e-6], [0.0, 0.0])[2] < 1e-5


def test_holm_by_its_definition():
    """Sorted p_(k) is rejected at α exactly where (m - j) p_(j) <= α for every j up to k, counted from 0."""
    for _ in range(50):
        p_values = RNG.random(7) ** 3
        order = np.argsort(p_values)
        corrected = np.array(holm(p_values.tolist()))
        for alpha in (0.01, 0.05, 0.2):
            rejected, alive = set(), True
            for rank, place in enumerate(order):
                alive = alive and (7 - rank) * p_values[place] <= alpha
                rejected |= {int(place)} if alive else set()
            assert set(np.flatnonzero(corrected <= alpha).tolist()) == rejected
    assert holm([0.01, math.nan, 0.04])[::2] == [0.03, 0.08] and math.isnan(holm([0.01, math.nan])[1])
    assert holm([]) == [] and max(holm([0.9, 0.8])) == 1.0


def comparison(higher: bool, **values: tuple[list[float], list[float]]) -> Comparison:
    """Rows with (validation, test) metrics on one task; a row with a "_" in its name is a fusion."""
    column = Column("task", "classify", ACCURACY if higher else LOSS, Budget("parameters", 1e4), 10, 8)
    cost = Cost(1, 1.0, None)
    entries = tuple(
        Entry(name, "task", name, 8, 1e-3, (), tuple(range(len(test))), tuple(valid), tuple(test), (), cost)
        for name, (valid, test) in values.items()
    )
    return Comparison("t", tuple(Row(n, "_" not in n) for n in values), (column,), entries, (1e-3,), 3, "cpu")


def test_the_reference_is_chosen_on_validation_among_single_mechanisms():
    made = comparison(True, attn=([0.5, 0.6], [0.9, 0.9]), lstm=([0.7, 0.6], [0.5, 0.6]), a_b=([0.9, 0.9], [0.8, 0.7]))
    assert reference_row(made, "task") == "lstm"
    lower = comparison(False, attn=([0.5, 0.6], [0.9, 0.9]), lstm=([0.7, 0.6], [0.5, 0.6]), a_b=([0.9], [0.8]))
    assert reference_row(lower, "task") == "attn"
    assert reference_row(comparison(True, a_b=([0.9], [0.8])), "task") is None
    assert reference_row(comparison(True, attn=([], [])), "task") is None


@pytest.mark.parametrize("higher", [True, False])
def test_verdicts_are_better_above_zero_whatever_the_direction(higher):
    sign = 1.0 if higher else -1.0
    test = {"lstm": [0.50, 0.52, 0.48], "a_b": [0.60, 0.63, 0.58], "a_c": [0.50, 0.51, 0.49], "attn": [0.1, 0.1, 0.1]}
    made = comparison(higher, **{n: ([sign * v for v in vs], [sign * v for v in vs]) for n, vs in test.items()})
    found = verdicts(made)
    assert found.keys() == {("a_b", "task"), ("a_c", "task"), ("attn", "task")}
    assert {verdict.reference for verdict in found.values()} == {"lstm"}
    better = found["a_b", "task"]
    assert better.difference == pytest.approx(np.mean([0.10, 0.11, 0.10])) and better.num_seeds == 3
    assert better.differs() and not found["a_c", "task"].differs() and found["attn", "task"].difference < -0.3
    raw = [stats.ttest_rel(test[name], test["lstm"]).pvalue for name in ("a_b", "a_c", "attn")]
    assert [found[name, "task"].p for name in ("a_b", "a_c", "attn")] == pytest.approx(raw)
    assert [found[name, "task"].corrected for name in ("a_b", "a_c", "attn")] == holm(raw)
    assert best_rows(made) == {"task": "a_b"}


def test_only_shared_seeds_are_paired():
    made = comparison(True, lstm=([0.5] * 3, [0.5, 0.6, 0.7]), a_b=([0.9] * 2, [0.6, 0.7]))
    made = made._replace(entries=(made.entries[0], made.entries[1]._replace(seeds=(1, 2))))
    verdict = verdicts(made)["a_b", "task"]
    assert verdict.num_seeds == 2 and verdict.difference == pytest.approx(0.0)
    none = made._replace(entries=(made.entries[0], made.entries[1]._replace(seeds=(7, 8))))
    assert verdicts(none) == {}


def test_failed_rows_that_always_answer_the_same_are_not_better():
    """0 at every seed against 1 at every seed, on a fixed test set: two accuracies without any chance in them."""
    made = comparison(True, lstm=([0.4] * 3, [0.4] * 3), a_b=([0.6] * 3, [0.6] * 3), a_c=([0.5] * 3, [0.5, 0.7, 0.6]))
    found = verdicts(made)
    assert not found["a_b", "task"].differs() and math.isnan(found["a_b", "task"].corrected)
    assert found["a_b", "task"].word() == "no test: the same difference at every seed"
    assert found["a_c", "task"].corrected == pytest.approx(2 * found["a_c", "task"].p), "it still counts in the table"
    assert best_rows(made) == {}


def test_words():
    test = {"lstm": [0.50, 0.52, 0.48], "a_b": [0.60, 0.63, 0.58], "a_c": [0.50, 0.51, 0.49], "attn": [0.1, 0.1, 0.1]}
    words = {
        row: v.word() for (row, _), v in verdicts(comparison(True, **{n: (v, v) for n, v in test.items()})).items()
    }
    assert words == {"a_b": "better", "a_c": "no difference shown", "attn": "worse"}
    single = verdicts(comparison(True, lstm=([0.5], [0.5]), a_b=([0.5], [0.6])))
    assert single["a_b", "task"].word() == "no test: a single seed"


def test_the_best_row_is_named_where_it_can_be():
    same = {"lstm": ([0.5] * 3, [0.50, 0.60, 0.40]), "a_b": ([0.5] * 3, [0.52, 0.58, 0.43])}
    assert best_rows(comparison(True, **same)) == {}
    ahead = {"lstm": ([0.9] * 3, [0.90, 0.91, 0.92]), "a_b": ([0.5] * 3, [0.50, 0.52, 0.51])}
    assert best_rows(comparison(True, **ahead)) == {"task": "lstm"}
