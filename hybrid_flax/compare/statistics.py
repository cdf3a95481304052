"""Means with their intervals, and differences that hold against chance."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from hybrid_flax.compare.results import Comparison

__all__ = ["LEVEL", "Verdict", "best_rows", "holm", "mean_interval", "paired_difference", "reference_row", "verdicts"]

LEVEL = 0.95  # of intervals; differences count as such where the corrected p is below 1 - LEVEL
_ROUNDING = 1e-9  # of the values: a spread of differences that is no larger is none


class Verdict(NamedTuple):
    """A row against the reference of its task: the best single mechanism, chosen on the validation split.

    difference: mean over shared seeds of the test metric, above zero where the row is better, whatever the metric's
    direction. half: of its interval. p: of the paired t-test, two-sided. corrected: p by Holm over all rows and tasks.
    num_seeds: that are shared. half, p and corrected are NaN where `paired_difference` has no test.
    """

    row: str
    task: str
    reference: str
    difference: float
    half: float
    p: float
    corrected: float
    num_seeds: int

    def differs(self) -> bool:
        """Whether the difference holds after correction."""
        return self.corrected < 1.0 - LEVEL

    def word(self) -> str:
        """What one can say: better, worse, that no difference is shown, or why there was no test."""
        if math.isnan(self.p):
            return f"no test: {'a single seed' if self.num_seeds < 2 else 'the same difference at every seed'}"
        if not self.differs():
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its interval by Student's t); the half is NaN below two values."""
    count = len(values)
    if count < 2:
        return (float(values[0]) if count else math.nan), math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return float(np.mean(values)), error * float(special.stdtrit(count - 1, (1.0 + LEVEL) / 2))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """(mean of a - b, half its interval, two-sided p of Student's paired t-test).

    The last two are NaN below two pairs, and where all differences are the same but for rounding: without a spread
    there is nothing to hold them against. Rows that failed and always answer the same differ like that.
    """
    differences = np.subtract(a, b, dtype=np.float64)
    mean, half = mean_interval(differences.tolist())
    count = len(differences)
    if count < 2 or np.std(differences, ddof=1) <= _ROUNDING * np.max(np.abs([a, b])):
        return mean, math.nan, math.nan
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    return mean, half, 2.0 * float(special.stdtr(count - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being many (Holm 1979), in their order.

    NaN, where there was no test, stays NaN; it counts, so that no difference is the easier to show for it.
    """
    corrected = [math.nan] * len(p_values)
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    least = 0.0
    for rank, (p, place) in enumerate(tested):
        least = max(least, min(1.0, (len(p_values) - rank) * p))
        corrected[place] = least
    return corrected


def reference_row(comparison: Comparison, task: str) -> str | None:
    """The single mechanism with the best mean on the validation split; None where none has a finished run."""
    sign = _sign(comparison, task)
    names = [row.name for row in comparison.rows if row.single and comparison.entry(row.name, task).valid]
    return max(names, key=lambda name: sign * np.mean(comparison.entry(name, task).valid), default=None)


def verdicts(comparison: Comparison) -> dict[tuple[str, str], Verdict]:
    """By (row, task): every row that shares a seed with its task's reference, against it; the reference itself not."""
    found = []
    for column in comparison.columns:
        reference = reference_row(comparison, column.task)
        for row in comparison.rows if reference else ():
            verdict = _verdict(comparison, row.name, column.task, reference)
            if row.name != reference and verdict.num_seeds:
                found.append(verdict)
    corrected = holm([verdict.p for verdict in found])
    return {(v.row, v.task): v._replace(corrected=p) for v, p in zip(found, corrected)}


def best_rows(comparison: Comparison) -> dict[str, str]:
    """By task: the row with the best mean test metric, where that can be said at all.

    It must differ from the reference after correction; where it is the reference, the next best row must.
    """
    against, best = verdicts(comparison), {}
    for column in comparison.columns:
        sign, entries = (
            _sign(comparison, column.task),
            [e for e in comparison.entries if e.task == column.task and e.test],
        )
        ranked = sorted(entries, key=lambda entry: sign * np.mean(entry.test), reverse=True)
        telling = next((against[e.row, e.task] for e in ranked[:2] if (e.row, e.task) in against), None)
        if telling is not None and telling.differs():
            best[column.task] = ranked[0].row
    return best


def _verdict(comparison, row, task, reference):
    ours, theirs = (
        dict(zip(e.seeds, e.test)) for e in (comparison.entry(row, task), comparison.entry(reference, task))
    )
    shared, sign = sorted(ours.keys() & theirs.keys()), _sign(comparison, task)
    pairs = ([sign * ours[seed] for seed in shared], [sign * theirs[seed] for seed in shared])
    difference, half, p = paired_difference(*pairs)
    return Verdict(row, task, reference, difference, half, p, math.nan, len(shared))


def _sign(comparison, task):
    column = next(column for column in comparison.columns if column.task == task)
    return -1.0 if column.metric.lower_is_better else 1.0
