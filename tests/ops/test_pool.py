"""Pooling reads live tokens alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.ops.pool import POOLINGS, pool


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_is_that_of_the_live_tokens(kind):
    rng = np.random.default_rng(0)
    x, scores = rng.standard_normal((4, 5, 3)).astype(np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    live = np.array([list("....."), list("p..p."), list("pp.pp"), list("ppppp")]) == "."
    dirty = np.where(live[..., None], x, np.float32(1e4))
    arguments = jax.tree.map(jnp.asarray, (dirty, live, np.where(live, scores, np.float32(1e4))))
    found = np.asarray(pool(*arguments[:2], kind, arguments[2]))
    for b in range(3):
        inside, weights = x[b, live[b]], np.exp(scores[b, live[b]])
        wanted = {
            "last": lambda inside=inside: inside[-1],
            "mean": lambda inside=inside: inside.mean(axis=0),
            "max": lambda inside=inside: inside.max(axis=0),
            "attention": lambda inside=inside, weights=weights: weights @ inside / weights.sum(),
        }[kind]()
        assert np.allclose(found[b], wanted, rtol=1e-5, atol=1e-6)
    assert not found[3].any()
