"""Rotary positions: a rotation whose scores depend on the distance alone."""

import functools

import jax
import numpy as np
import pytest

from hybrid_flax.certify.checks import check_close, check_same
from hybrid_flax.certify.subjects import normal
from hybrid_flax.ops.rope import rope

WIDTH = 8
rotate = jax.jit(rope)


def scores(query, key, positions):
    """q_m · k_n in one head, for the positions m and n of one token each."""
    m, n = (np.full((1, 1), position, np.int32) for position in positions)
    return float(np.vdot(rotate(query, m), rotate(key, n)))


@pytest.mark.parametrize("shift", [1, 5, 1000])
def test_only_the_distance_counts(shift):
    with jax.enable_x64(True):
        query, key = np.random.default_rng(0).standard_normal((2, 1, 1, 1, WIDTH))
        near = scores(query, key, (3, 1))
        assert abs(scores(query, key, (3 + shift, 1 + shift)) - near) < 1e-10
        assert abs(scores(query, key, (3 + shift, 1)) - near) > 1e-2
        assert abs(scores(query, key, (1, 3)) - near) > 1e-2


def test_position_zero_leaves_a_vector_as_it_is():
    x = normal(np.random.default_rng(0), 2, 3, 2, WIDTH)
    check_same(rotate(x, np.zeros((2, 3), np.int32)), x)


def test_lengths_stay():
    x = normal(np.random.default_rng(0), 2, 3, 2, WIDTH)
    y = rotate(x, np.arange(6, dtype=np.int32).reshape(2, 3))
    check_close(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), 1e-6)


def test_a_pair_turns_by_its_frequency():
    """base = 4 and K = 4: pair 0 turns by p, pair 1 by p / 2."""
    x = np.array([1.0, 1.0, 0.0, 0.0], np.float32).reshape(1, 1, 1, 4)
    y = np.asarray(jax.jit(lambda x, positions: rope(x, positions, 4.0))(x, np.full((1, 1), 3, np.int32))).ravel()
    check_close(y, np.array([np.cos(3.0), np.cos(1.5), np.sin(3.0), np.sin(1.5)]), 1e-6)


def test_dtype_stays_and_angles_are_wide():
    """bfloat16 cannot count past 256; the angle of position 1001 is made in float32."""
    x = normal(np.random.default_rng(0), 1, 1, 1, WIDTH)
    position = np.full((1, 1), 1001, np.int32)
    y = rotate(jax.numpy.asarray(x, jax.numpy.bfloat16), position)
    assert y.dtype == jax.numpy.bfloat16
    check_close(y.astype(np.float32), np.asarray(rotate(x, position)), 0.02)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even head width, got 3"):
        rotate(np.zeros((1, 1, 1, 3), np.float32), np.zeros((1, 1), np.int32))


def test_partial_rotation_leaves_the_other_features_alone():
    """The first ones are rotated as if they were the whole head."""
    x = normal(np.random.default_rng(0), 1, 3, 2, 6)
    positions = np.array([[0, 1, 5]], np.int32)
    y = np.asarray(jax.jit(functools.partial(rope, rotated=4))(x, positions))
    check_same(y[..., 4:], x[..., 4:])
    check_same(y[..., :4], rotate(x[..., :4], positions))
