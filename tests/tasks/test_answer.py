"""The metrics of answering count scored targets and whole rows."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax.tasks.answer import make_answering
from hybrid_flax.tasks.base import describe


def test_metrics_count_scored_targets_and_rows():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 5, 3)).astype(np.float32)
    targets = rng.integers(0, 3, (4, 5)).astype(np.int32)
    weights = (rng.random((4, 5)) < 0.6).astype(np.float32)
    weights[1] = 0.0  # a row of padding
    logits[2, np.arange(5), targets[2]] += 20.0  # a row without error
    batch = tiny.asked(jnp.asarray(targets), jnp.asarray(weights))
    task = make_answering()
    found = task.measure({name: float(value) for name, value in task.evaluate(jnp.asarray(logits), batch).items()})
    scored = weights > 0
    right = np.argmax(logits, axis=-1) == targets
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    nll = -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    rows = scored.any(axis=1)
    assert found["accuracy"] == pytest.approx(right[scored].mean())
    assert found["loss"] == pytest.approx(nll[scored].mean(), rel=1e-5)
    assert found["exact"] == pytest.approx((right | ~scored).all(axis=1)[rows].mean())
    assert 0 < found["exact"] < 1 and "\n" not in describe(task, found)
    sums = task.loss(jnp.asarray(logits), batch)
    assert float(sums["loss"]) == pytest.approx(nll[scored].sum(), rel=1e-5) and float(sums["count"]) == scored.sum()
