"""What every task says of its metrics is what it measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax.errors import ConfigError
from hybrid_flax.tasks.answer import make_answering
from hybrid_flax.tasks.base import describe, find_metric
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.tasks.regress import make_regression
from hybrid_flax.tasks.tag import make_tagging

RNG = np.random.default_rng(0)
CHARS = RNG.integers(1, 4, (4, 6))
SYMBOLS = (4, 6, 5), RNG.integers(0, 5, (4, 6)), RNG.random((4, 6)) < 0.8
ROWS = np.arange(9) < 7

# (task, shape of the outputs, targets, weights), and its line for these values in per cent where they are shares.
CASES = {
    "lm": (
        (make_language_modelling(), *SYMBOLS),
        "loss 0.1000 nats/token  perplexity 0.200  0.3000 bits/char  0.4000 bits/byte  accuracy 50.00 %",
    ),
    "answer": (
        (make_answering(), *SYMBOLS),
        "loss 0.1000 nats  accuracy 20.00 % of targets, 30.00 % of rows without error",
    ),
    "classify": (
        (make_classification(), (9, 4), RNG.integers(0, 4, 9), ROWS),
        "loss 0.1000 nats  accuracy 20.00 %  F1 macro 30.00 micro 40.00 weighted 50.00",
    ),
    "multilabel": (
        (make_classification(multi_label=True), (9, 4), (RNG.random((9, 4)) < 0.5).astype(np.float32), ROWS),
        "loss 0.1000 nats  accuracy 20.00 %  F1 macro 30.00 micro 40.00 weighted 50.00",
    ),
    "regress": (
        (make_regression(), (9, 1), RNG.standard_normal(9).astype(np.float32), ROWS),
        "mean squared error 0.2000  Pearson r 0.3000  sign 40.00 %",
    ),
    "spans": (
        (make_tagging(("O", "B-LOC", "I-LOC", "B-PER", "I-PER")), *SYMBOLS),
        "loss 0.1000 nats/token  accuracy 20.00 %  spans: precision 30.00  recall 40.00  f1 50.00",
    ),
    "plain tags": (
        (make_tagging(("A", "B", "C", "D", "E")), *SYMBOLS),
        "loss 0.1000 nats/token  accuracy 20.00 %  F1 macro 30.00 micro 40.00 weighted 50.00",
    ),
}


def measured(case, outputs):
    task, _, targets, weights = case
    targets = jnp.asarray(targets, jnp.float32 if targets.dtype == np.float32 else jnp.int32)
    chars = jnp.asarray(CHARS, jnp.int32)
    batch = tiny.asked(targets, jnp.asarray(weights, jnp.float32), num_chars=chars, num_bytes=chars)
    sums = jax.jit(task.evaluate)(jnp.asarray(outputs, jnp.float32), batch)
    return task.measure({name: np.asarray(value, np.float64) for name, value in sums.items()})


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_what_is_measured(name):
    """By name, in order and in range; nearly right outputs are better than random ones."""
    case = task, shape, targets, _ = CASES[name][0]
    one_hot = targets if targets.shape == shape else None if name == "regress" else np.eye(shape[-1])[targets]
    right = targets[:, None] if one_hot is None else 8 * one_hot - 4
    good, bad = (measured(case, outputs) for outputs in (right + RNG.normal(0, 0.1, shape), RNG.normal(size=shape)))
    assert list(good) == [metric.name for metric in task.metrics] and task.metrics[0].name == "loss"
    for metric in task.metrics:
        assert find_metric(task, metric.name) is metric
        better, worse = good[metric.name], bad[metric.name]
        assert better < worse if metric.lower_is_better else better > worse, metric.name
        assert not metric.share or 0.0 <= worse < better <= 1.0


@pytest.mark.parametrize("name", CASES)
def test_the_line_for_people(name):
    (task, *_), line = CASES[name]
    assert describe(task, {metric.name: place / 10 for place, metric in enumerate(task.metrics, start=1)}) == line


def test_a_metric_that_is_none():
    with pytest.raises(ConfigError, match=r"^eval\.metric='f1' is none of loss, accuracy, exact, which this task has$"):
        find_metric(make_answering(), "f1")
    assert find_metric(CASES["spans"][0][0], "f1/PER").share
