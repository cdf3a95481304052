"""Metrics of language modelling against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax.tasks.lm import make_language_modelling


def test_metrics_are_their_definitions():
    """Tokens of unequal numbers of characters and bytes, some of which do not count."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 5, 7)).astype(np.float32)
    targets, weights = rng.integers(0, 7, (3, 5)).astype(np.int32), (rng.random((3, 5)) < 0.7).astype(np.float32)
    chars = rng.integers(1, 4, (3, 5)).astype(np.int32) * weights.astype(np.int32)
    batch = tiny.asked(targets, weights, num_chars=chars, num_bytes=2 * chars)
    task = make_language_modelling()
    sums = jax.device_get(jax.jit(task.evaluate)(logits, jax.tree.map(jnp.asarray, batch)))
    found = task.measure({name: float(value) for name, value in sums.items()})
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    nats = -np.sum(np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0] * weights, dtype=np.float64)
    count = np.sum(weights)
    assert found == pytest.approx(
        {
            "loss": nats / count,
            "perplexity": math.exp(nats / count),
            "bits_per_char": nats / math.log(2) / np.sum(chars),
            "bits_per_byte": nats / math.log(2) / np.sum(2 * chars),
            "accuracy": np.sum((np.argmax(logits, axis=-1) == targets) * weights) / count,
        },
        rel=1e-5,
    )
