"""Words by their characters, against loops over the words; rows of a table from vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.mixers.registry import make_mixer
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.models.embedding import Spelling, embed, init_embedding, replace_rows
from hybrid_flax.typing import Segments

KEY = jax.random.key(1)
VOCABULARY, WIDTH, TABLE = 7, 6, 5


spelt_out = jax.jit(embed, static_argnums=(2, 3))


def example(kind, length=5, width=4):
    """Jittered parameters, and tokens [2, 3, 1 + W] of words of 0, 3 and W characters."""
    rng = np.random.default_rng(0)
    spelling = Spelling(kind, 9, length, width)
    params = jax.device_get(
        jax.jit(init_embedding, static_argnums=(1, 2, 3, 4))(KEY, VOCABULARY, WIDTH, TABLE, spelling)
    )
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.3) * rng.standard_normal(leaf.shape, np.float32), params)
    sizes = np.array([[length, 3, 3], [0, length, 3]])
    characters = rng.integers(1, 9, (2, 3, length)) * (np.arange(length) < sizes[..., None])
    tokens = np.concatenate([rng.integers(0, VOCABULARY, (2, 3, 1)), characters], axis=-1).astype(np.int32)
    return spelling, params, jnp.asarray(tokens)


def expected(params, tokens, features_of_word):
    spelt = params["spelling"]
    y = np.zeros((2, 3, WIDTH))
    for b, t in np.ndindex(2, 3):
        ids = [i for i in tokens[b, t, 1:].tolist() if i]
        x = np.concatenate([params["embedding"][tokens[b, t, 0]], features_of_word(spelt, ids)])
        y[b, t] = np.asarray(x, np.float64) @ np.asarray(params["kernel"], np.float64)
    return y


def test_windows_of_three_characters():
    spelling, params, tokens = example("cnn")

    def features(spelt, ids):
        table, kernel = np.asarray(spelt["embedding"], np.float64), np.asarray(spelt["kernel"], np.float64)
        x = np.stack([np.zeros(4), *(table[i] for i in ids), np.zeros(4)])
        y = [sum(x[i + k] @ kernel[:, k] for k in range(3)) + spelt["bias"] for i in range(len(ids))]
        return np.tanh(np.max(y, axis=0)) if ids else np.zeros(4)

    y = spelt_out(params, tokens, spelling, "float32")
    np.testing.assert_allclose(y, expected(params, tokens, features), atol=1e-5)


def test_last_states_in_either_direction():
    spelling, params, tokens = example("rnn")
    read = jax.jit(lambda params, x: make_mixer("lstm", 2).apply(params, x, Segments.single(1, x.shape[1]))[0][0, -1])

    def features(spelt, ids):
        if not ids:
            return np.zeros(4)
        ends = []
        for name, order in (("forward", ids), ("backward", ids[::-1])):
            x = spelt["embedding"][jnp.asarray(order)][None]
            ends.append(read(spelt[name], x))
        return np.concatenate(ends)

    y = spelt_out(params, tokens, spelling, "float32")
    np.testing.assert_allclose(y, expected(params, tokens, features), atol=1e-5)


def test_mean_of_hashed_ngrams():
    spelling, params, tokens = example("ngrams")

    def hashed(ids):
        code = 0x811C9DC5
        for i in ids:
            code = (code ^ i) * 0x01000193 % 2**32
        return code % 2**14

    def features(spelt, ids):
        word = [9, *ids, 9]
        buckets = [hashed(word[i : i + n]) for n in (3, 4, 5) for i in range(len(word) - n + 1)]
        return np.mean(np.asarray(spelt["embedding"], np.float64)[buckets], axis=0) if ids else np.zeros(4)

    y = spelt_out(params, tokens, spelling, "float32")
    np.testing.assert_allclose(y, expected(params, tokens, features), atol=1e-5)


@pytest.mark.parametrize("kind", ["cnn", "rnn", "ngrams"])
def test_room_for_longer_words_changes_nothing(kind):
    spelling, params, tokens = example(kind)
    wide = jnp.pad(tokens, ((0, 0), (0, 0), (0, 3)))
    y = spelt_out(params, tokens, spelling, "float32")
    np.testing.assert_allclose(spelt_out(params, wide, spelling._replace(length=8), "float32"), y, atol=1e-6)
    halved = jax.eval_shape(lambda p, t: embed(p, t, spelling, "bfloat16"), params, tokens)
    assert halved.dtype == jnp.bfloat16


def test_without_characters():
    tokens = jnp.array([[3, 0, 6]])
    plain = init_embedding(jax.random.key(0), VOCABULARY, WIDTH)
    assert plain.keys() == {"embedding"}
    np.testing.assert_array_equal(embed(plain, tokens, None, "float32")[0], plain["embedding"][tokens[0]])
    narrow = init_embedding(jax.random.key(0), VOCABULARY, WIDTH, TABLE)
    wanted = narrow["embedding"][tokens[0]] @ narrow["kernel"]
    np.testing.assert_allclose(embed(narrow, tokens, None, "float32")[0], wanted, atol=1e-6)
    factors = jnp.arange(VOCABULARY, dtype=jnp.float32) / 3.0
    np.testing.assert_allclose(
        embed(narrow, tokens, None, "float32", factors)[0], wanted * factors[tokens[0]][:, None], atol=1e-6
    )


def test_rows_from_vectors():
    params = init_embedding(jax.random.key(0), 200, WIDTH, TABLE)
    rows = 3.0 * np.random.default_rng(0).standard_normal((50, TABLE)).astype(np.float32)
    places = np.arange(50) * 2 + 1
    table = np.asarray(replace_rows(params, jnp.asarray(places), jnp.asarray(rows))["embedding"])
    np.testing.assert_array_equal(table[places], rows)
    assert np.delete(table, places, axis=0).std() == pytest.approx(rows.std(), rel=0.1)


def test_models_that_do_not_fit():
    sizes = {"vocab_size": 9, "width": 8, "depth": 1, "pattern": "tanh", "num_outputs": 2, "tied": False}
    for options, wanted in (
        ({"characters": "bytes"}, "model.characters='bytes' is none of none, cnn, rnn, ngrams"),
        ({"characters": "rnn", "character_width": 5}, "must be even"),
        ({"tied": True, "num_outputs": None, "embedding_width": 4}, "set model.embedding_width=0, not 4"),
    ):
        with pytest.raises(ValueError, match=wanted):
            make_model(**sizes | options)
    model = make_model(**sizes, characters="cnn", character_width=4, num_characters=5, word_length=3, embedding_width=4)
    assert model.token_shape(2, 7) == (2, 7, 4)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert params["embed"]["kernel"].shape == (8, 8)
