"""What training hides at random: activations, words, word types and recurrent weights.

Masks of a row are a function of (key, step, global row), those of parameters and of word types one of (key, step): so
none changes with the number of devices or of accumulated parts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_flax.models.model import Dropout
from hybrid_flax.training.state import TrainState
from hybrid_flax.typing import Array, Batch, Float, Int, Key, Params, RowIds, Scalar

__all__ = [
    "NO_NOISE",
    "Noise",
    "Noisy",
    "apply_noise",
    "drop_recurrent_weights",
    "drop_words",
    "has_recurrent_weights",
    "row_keys",
]

# Folded into the key of a step, where rows are counted from 0, and into that of a row, where sites of dropout are.
_WEIGHTS, _TYPES = 2**32 - 1, 2**32 - 2
_WORDS = 2**32 - 1


class Noise(NamedTuple):
    """Which kinds there are; their rates are data, in `Hparams`.

    dropout: `Dropout`, or `LockedDropout` for one mask a row for all time steps (Gal & Ghahramani 2016). word_types:
    whether the embeddings of whole word types are dropped (ibid.; Merity et al. 2018). recurrent: whether entries of
    recurrent kernels are, DropConnect (Wan et al. 2013; Merity et al. 2018). unknown_id: the token that takes the
    place of dropped words (Bowman et al. 2016).
    """

    dropout: type[Dropout] | None = None
    word_types: bool = False
    recurrent: bool = False
    unknown_id: int | None = None


NO_NOISE = Noise()


class Noisy(NamedTuple):
    """Parameters and tokens with what was dropped; dropout: of activations; factors: of every type of word, or None."""

    params: Params
    tokens: Int[Array, "B T *W"]
    dropout: Dropout | None
    factors: Float[Array, "V"] | None


def apply_noise(noise: Noise, state: TrainState, params: Params, batch: Batch, vocab_size: int) -> Noisy:
    """What the model reads and is in the next step of `state`."""
    hparams, tokens = state.hparams, batch.tokens
    step_key = jax.random.fold_in(state.key, state.step)
    keys = row_keys(state.key, state.step, batch.row)
    if noise.unknown_id is not None:
        tokens = drop_words(tokens, keys, hparams.word_dropout, noise.unknown_id)
    if noise.recurrent:
        key = jax.random.fold_in(step_key, _WEIGHTS)
        params = drop_recurrent_weights(params, key, hparams.recurrent_dropout)
    factors = None
    if noise.word_types:
        factors = _keep(jax.random.fold_in(step_key, _TYPES), hparams.embedding_dropout, (vocab_size,))
    dropout = None if noise.dropout is None else noise.dropout(keys, hparams.dropout)
    return Noisy(params, tokens, dropout, factors)


def row_keys(key: Key[Array, ""], step: Int[Array, ""], rows: RowIds) -> Key[Array, "B"]:
    """A key for every row of a step, the same whatever device the row is on."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(rows)


def drop_words(
    tokens: Int[Array, "B T *W"], keys: Key[Array, "B"], rate: Scalar | float, unknown_id: int
) -> Int[Array, "B T *W"]:
    """Tokens, each with probability `rate` replaced by the unknown one; a word that is spelt keeps its characters."""

    def drop_row(key):
        return jax.random.bernoulli(jax.random.fold_in(key, _WORDS), rate, tokens.shape[1:2])

    dropped, unknown = jax.vmap(drop_row)(keys), jnp.asarray(unknown_id, tokens.dtype)
    if tokens.ndim == 2:
        return jnp.where(dropped, unknown, tokens)
    return tokens.at[..., 0].set(jnp.where(dropped, unknown, tokens[..., 0]))


def drop_recurrent_weights(params: Params, key: Key[Array, ""], rate: Scalar | float) -> Params:
    """Parameters whose leaves `recurrent_kernel` have lost entries; the others are scaled by 1 / (1 - rate)."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    dropped = [
        leaf * _keep(jax.random.fold_in(key, place), rate, leaf.shape).astype(leaf.dtype) if _recurs(path) else leaf
        for place, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, dropped)


def has_recurrent_weights(params: Params) -> bool:
    """Whether `drop_recurrent_weights` has anything to drop."""
    return any(_recurs(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])


def _keep(key, rate, shape):
    """0 with probability `rate`, else 1 / (1 - rate)."""
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, shape), 1.0 / (1.0 - rate), 0.0)


def _recurs(path):
    return path[-1].key == "recurrent_kernel"
