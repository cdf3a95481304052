"""A parameter gets the rank of an array, by new axes in front, and its dtype."""

import jax.numpy as jnp
import numpy as np

from hybrid_flax.certify.checks import check_same
from hybrid_flax.ops.broadcast import align


def test_axes_and_dtype():
    x = jnp.zeros((2, 3, 4, 5), jnp.bfloat16)
    aligned = align(jnp.arange(20.0).reshape(4, 5), x)
    assert aligned.shape == (1, 1, 4, 5) and aligned.dtype == jnp.bfloat16
    check_same(np.asarray(aligned, np.float32)[0, 0], np.arange(20, dtype=np.float32).reshape(4, 5))
    assert align(0.5, x).shape == (1, 1, 1, 1)
