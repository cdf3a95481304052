"""The ways to attend agree, and a query that sees nothing gets zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.certify.checks import check_close, check_finite, check_zero
from hybrid_flax.certify.subjects import normal, segments_of
from hybrid_flax.ops.attention import alibi_bias, attend, visible

attend_jit = jax.jit(attend, static_argnames=("scale", "implementation"))


def inputs():
    rng = np.random.default_rng(0)
    query, key, value = normal(rng, 2, 3, 4, 6), normal(rng, 2, 5, 2, 6), normal(rng, 2, 5, 2, 6)
    mask = rng.uniform(size=(2, 3, 5)) < 0.5
    mask[:, 1] = False
    mask[:, 2, 0] = True
    return query, key, value, mask


def test_implementations_agree():
    """Each within 1e-5 of the one in float64; that a single side is used for both cannot happen: they are named."""
    arrays = inputs()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype != bool else leaf, arrays)
        wanted = np.asarray(attend_jit(*wide, scale=0.4, implementation="einsum"))
    assert wanted.dtype == np.float64
    for implementation in ("einsum", "xla", "auto"):
        check_close(attend_jit(*arrays, scale=0.4, implementation=implementation), wanted)


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(implementation):
    query, key, value, mask = inputs()

    def total(query, key, value):
        context = attend(query, key, value, mask_array, scale=1.0, implementation=implementation)
        return jnp.sum(context**2), context

    mask_array = jnp.asarray(mask)
    gradients, context = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(query, key, value)
    check_zero(np.asarray(context)[:, 1])
    check_zero(np.asarray(gradients[0])[:, 1])
    check_finite(gradients)


def test_values_may_have_a_width_of_their_own():
    query, key, value, mask = inputs()
    assert attend_jit(query, key, value[..., :2], mask, scale=1.0).shape == (2, 3, 4, 2)


@pytest.mark.parametrize(
    "options,wanted",
    [
        ({}, ["x.....", "xx....", "......", "...x..", "...xx.", "...xxx"]),
        ({"window": 2}, ["x.....", "xx....", "......", "...x..", "...xx.", "....xx"]),
        ({"causal": False}, ["xx....", "xx....", "......", "...xxx", "...xxx", "...xxx"]),
        ({"window": 1, "sinks": 1}, ["x.....", "xx....", "......", "...x..", "...xx.", "...x.x"]),
        ({"causal": False, "window": 2}, ["xx....", "xx....", "......", "...xx.", "...xxx", "....xx"]),
    ],
    ids=str,
)
def test_what_is_visible(options, wanted):
    """Two tokens, padding, and a document of three."""
    segments = segments_of(["..pn.."])
    mask = np.asarray(jax.jit(lambda a, b: visible(a, b, **options))(segments, segments))[0]
    assert ["".join("x" if seen else "." for seen in row) for row in mask] == wanted


def test_slopes_of_alibi():
    """Press et al. 2022, section 3: for 8 heads 1/2, 1/4, ..., 1/256."""
    segments = segments_of(["......"])
    bias = np.asarray(jax.jit(lambda s: alibi_bias(s, s, 8, jnp.float32))(segments))
    check_close(bias[0, :, 5, 2], -3.0 / 2.0 ** np.arange(1, 9), 1e-6)
    assert not np.any(np.diagonal(bias[0], axis1=1, axis2=2))


def test_a_soft_cap_bounds_the_scores():
    """Of two keys, one cannot outweigh the other by more than e^(2 c)."""
    query, key = np.full((1, 1, 1, 4), 100.0, np.float32), np.zeros((1, 2, 1, 4), np.float32)
    key[0, 0], key[0, 1] = 100.0, -100.0
    value = np.array([1.0, 0.0], np.float32).reshape(1, 2, 1, 1)
    mask = np.ones((1, 1, 2), bool)
    weight = jax.jit(functools.partial(attend, scale=1.0, soft_cap=2.0))(query, key, value, mask)
    check_close(np.asarray(weight).ravel(), np.array([1.0 / (1.0 + np.exp(-4.0))]))
