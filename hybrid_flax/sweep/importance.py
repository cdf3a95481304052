"""How much each parameter has to do with whether a trial is one of the better ones."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from hybrid_flax.jobs.queue import Standing
from hybrid_flax.tasks.base import Metric

__all__ = ["is_log", "is_number", "is_numeric", "parameter_importances"]

_FEWEST = 4  # finished trials


def parameter_importances(standings: Sequence[Standing], keys: Sequence[str], metric: Metric) -> dict[str, float]:
    """The share of each of `keys`, largest first, in telling the better half of the finished trials from all of them.

    PED-ANOVA: the divergence between a parameter's distribution among those and among all, so that the shares add up
    to 1. A smaller part of the best would be noise: of sweeps the size of ours it does not find a planted category. A
    parameter that some trials do not set is judged where it is set.
    Raises ValueError in one sentence where the trials cannot tell.
    Watanabe, Bansal & Hutter 2023, arXiv:2304.10255; for conditional parameters arXiv:2601.20800.
    """
    done = [r for r in standings if r.state == "done" and r.value is not None and math.isfinite(r.value)]
    if len(done) < _FEWEST:
        raise ValueError(f"it takes at least {_FEWEST} finished trials, and there are {len(done)}")
    if len({one.value for one in done}) == 1:
        raise ValueError("all finished trials are equally good")
    spaces = {key: _space([one.values[key] for one in done if key in one.values]) for key in keys}
    if not any(spaces.values()):
        raise ValueError("no parameter differs among the finished trials")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if metric.lower_is_better else "maximize")
    study.add_trials([_trial(one, {key: space for key, space in spaces.items() if space}) for one in done])
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of parameters that a single trial sets, and leaves those trials out
        found = evaluator.evaluate(study)
    total = sum(found.values())
    if not total > 0.0:
        raise ValueError("the better of the finished trials have the same values as all of them")
    return {key: found.get(key, 0.0) / total for key in sorted(keys, key=lambda key: -found.get(key, 0.0))}


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether values are two or more different numbers."""
    return all(is_number(value) and math.isfinite(value) for value in values) and len(set(values)) > 1


def is_log(values: Sequence[int | float]) -> bool:
    """Whether numbers are to be told apart by their logarithm: they are positive and span a factor of 8."""
    return min(values) > 0 and max(values) >= 8 * min(values)


def _space(values: Sequence[Any]) -> BaseDistribution | None:
    """The distribution that values may be from, None where they do not differ."""
    if is_numeric(values):
        return FloatDistribution(min(values), max(values), log=is_log(values))
    options = sorted(set(map(str, values)))
    return CategoricalDistribution(options) if len(options) > 1 else None


def _trial(one, spaces):
    held = {key: space for key, space in spaces.items() if key in one.values}
    params = {
        key: one.values[key] if isinstance(space, FloatDistribution) else str(one.values[key])
        for key, space in held.items()
    }
    return optuna.trial.create_trial(value=one.value, params=params, distributions=held)
