"""Losses against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.certify.checks import check_close, check_same
from hybrid_flax.certify.subjects import normal
from hybrid_flax.ops.losses import cross_entropy, squared_error

SHAPE, VOCABULARY = (2, 3), 5


def inputs():
    rng = np.random.default_rng(0)
    logits = 3.0 * normal(rng, *SHAPE, VOCABULARY)
    return logits, rng.integers(0, VOCABULARY, SHAPE).astype(np.int32)


def formula(logits, targets, label_smoothing, z_loss):
    """-sum_v q(v) log p(v) with q = (1 - s) onehot + s / V, plus z log(Z)²."""
    log_z = np.log(np.sum(np.exp(logits.astype(np.float64)), axis=-1))
    log_p = logits - log_z[..., None]
    q = (1.0 - label_smoothing) * np.eye(VOCABULARY)[targets] + label_smoothing / VOCABULARY
    return -np.sum(q * log_p, axis=-1) + z_loss * log_z**2


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("traced", [False, True])
def test_cross_entropy(label_smoothing, z_loss, traced):
    logits, targets = inputs()
    if traced:
        loss = jax.jit(cross_entropy)(logits, targets, np.float32(label_smoothing), np.float32(z_loss))
    else:
        loss = jax.jit(lambda *arrays: cross_entropy(*arrays, label_smoothing, z_loss))(logits, targets)
    check_close(loss, formula(logits, targets, label_smoothing, z_loss), 1e-6)


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    loss = jax.jit(cross_entropy)(np.zeros((4, VOCABULARY), np.float32), np.arange(4, dtype=np.int32))
    check_close(loss, np.full(4, np.log(VOCABULARY)), 1e-6)


def test_gradient_is_the_difference_of_probabilities():
    logits, targets = inputs()
    gradient = jax.jit(jax.grad(lambda logits, targets: jnp.sum(cross_entropy(logits, targets))))(logits, targets)
    p = np.exp(logits.astype(np.float64))
    check_close(gradient, p / p.sum(-1, keepdims=True) - np.eye(VOCABULARY)[targets])


def test_large_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    loss = jax.jit(cross_entropy)(np.repeat(logits, 2, axis=0), np.array([0, 1], np.int32))
    check_close(loss, np.array([0.0, 2e4]), 1e-6)


def test_losses_are_float32_at_least():
    logits, targets = inputs()
    narrow = jnp.asarray(logits, jnp.bfloat16)
    loss = jax.jit(cross_entropy)(narrow, targets)
    assert loss.dtype == jnp.float32
    check_close(loss, formula(np.asarray(narrow, np.float64), targets, 0.0, 0.0), 1e-6)
    assert jax.jit(squared_error)(narrow, narrow).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jax.jit(cross_entropy)(logits.astype(np.float64), targets).dtype == np.float64


def test_squared_error():
    check_same(jax.jit(squared_error)(np.array([1.0, 5.0], "f"), np.array([3.0, 4.0], "f")), np.array([4.0, 1.0], "f"))
