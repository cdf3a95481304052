"""What training hides: how much of it, where, and for how long a mask stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.models.model import Dropout, LockedDropout
from hybrid_flax.training.noise import drop_recurrent_weights, drop_words, has_recurrent_weights, row_keys
from hybrid_flax.typing import Segments

KEYS = row_keys(jax.random.key(0), jnp.asarray(4, jnp.int32), jnp.arange(8, dtype=jnp.int32))


def assert_share(found, rate, count):
    """A mean of `count` coins of probability `rate`, to four standard deviations."""
    assert abs(found - rate) < 4 * np.sqrt(max(rate * (1 - rate), 1e-9) / count)


def test_every_row_of_every_step_has_a_key_of_its_own():
    rows = jnp.arange(8, dtype=jnp.int32)
    keys = [row_keys(jax.random.key(seed), jnp.int32(step), rows) for seed in (0, 1) for step in (0, 1, 4)]
    data = np.concatenate([np.asarray(jax.random.key_data(some)) for some in keys])
    assert len(np.unique(data, axis=0)) == 6 * 8


@pytest.mark.parametrize("kind", [Dropout, LockedDropout])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout(kind, rate):
    """Locked: the same for all time steps; in either kind other masks for other rows and sites."""
    x = jax.random.uniform(jax.random.key(1), (8, 30, 200), minval=1.0)
    first, second = (np.asarray(kind(KEYS, jnp.asarray(rate))(x, site)) for site in (1, 2))
    gone = first == 0
    masks = gone[:, :1] if kind is LockedDropout else gone
    assert (gone == masks).all()
    assert_share(np.mean(masks), rate, masks.size)
    np.testing.assert_allclose(first[~gone], np.asarray(x)[~gone] / (1 - rate), rtol=1e-6)
    if rate:
        count = masks.size
        assert_share(np.mean(masks & (second == 0)[:, : masks.shape[1]]), rate**2, count)
        assert_share(np.mean(masks[1:] & masks[:-1]), rate**2, count)
        over_time = np.mean(gone[:, 1:] & gone[:, :-1])
        assert_share(over_time, rate if kind is LockedDropout else rate**2, count)


def test_words():
    tokens = jax.random.randint(jax.random.key(1), (8, 500), 1, 9)
    dropped = np.asarray(drop_words(tokens, KEYS, jnp.asarray(0.2), 0))
    gone = dropped == 0
    assert_share(np.mean(gone), 0.2, gone.size)
    assert_share(np.mean(gone[1:] & gone[:-1]), 0.04, gone.size)
    assert (dropped == np.where(gone, 0, tokens)).all()
    part = drop_words(tokens[5:2:-1], KEYS[5:2:-1], jnp.asarray(0.2), 0)
    assert (np.asarray(part) == dropped[5:2:-1]).all()


def test_recurrent_weights():
    """Of every layer, scanned ones too, and of nothing else."""
    model = make_model(vocab_size=5, width=16, depth=5, pattern="cascade:lstm+swa")
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 1.0, params)
    dropped = drop_recurrent_weights(params, jax.random.key(2), jnp.asarray(0.25))
    masks = []
    for (path, leaf), after in zip(jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(dropped)):
        if path[-1].key != "recurrent_kernel":
            assert after is leaf
            continue
        gone = np.asarray(after) == 0
        np.testing.assert_allclose(after[~gone], leaf[~gone] / 0.75, rtol=1e-6)
        masks += list(gone) if path[1].key == "repeats" else [gone]
    masks = np.stack(masks)
    assert len(masks) == 5
    assert_share(np.mean(masks), 0.25, masks.size)
    assert_share(np.mean(masks[1:] & masks[:-1]), 0.0625, masks.size)
    assert has_recurrent_weights(params) and not has_recurrent_weights(params["embed"])


def test_word_types():
    """A type that is dropped is a zero embedding wherever it stands; tied outputs keep theirs."""
    model = make_model(vocab_size=5, width=8, depth=1, pattern="tanh", tied=True)
    tokens = jnp.asarray([[1, 2, 1, 3], [3, 1, 2, 4]])
    segments = Segments.single(2, 4)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    factors = jnp.asarray([1.0, 0.0, 2.0, 1.0, 1.0])

    @jax.jit
    def outputs(table, factors):
        x = params | {"embed": {"embedding": table}}
        return model.apply({"params": x}, tokens, segments, None, None, factors)[0]

    table = params["embed"]["embedding"]
    found = outputs(table, factors)
    head = {"kernel": table.T, "bias": jnp.zeros(5)}
    untied = make_model(vocab_size=5, width=8, depth=1, pattern="tanh", tied=False)
    scaled = params | {"embed": {"embedding": table * factors[:, None]}, "head": head}
    np.testing.assert_allclose(found, untied.apply({"params": scaled}, tokens, segments)[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, outputs(table, jnp.ones(5)))
