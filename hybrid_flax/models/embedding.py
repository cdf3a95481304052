"""What a token is to the model: a row of a table, what its word is spelt like, or both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_flax.mixers.registry import make_mixer
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract
from hybrid_flax.ops.pool import pool
from hybrid_flax.ops.segments import document_positions
from hybrid_flax.typing import Array, Float, Hidden, Int, Params, Segments

__all__ = ["SPELLINGS", "Spelling", "embed", "init_embedding", "replace_rows"]

SPELLINGS = ("none", "cnn", "rnn", "ngrams")
_WINDOW = 3  # characters
_SIZES = (3, 4, 5)  # of n-grams, in characters
_BUCKETS = 2**14


class Spelling(NamedTuple):
    """How a word is read character by character.

    kind: "cnn", windows of three characters and their maximum over the word (Kim et al. 2016; Ma & Hovy 2016, section
    2.1), "rnn", the last states of an LSTM in either direction (Lample et al. 2016, section 4.1), or "ngrams", the mean
    of the vectors of all runs of three to five characters, ends of the word included, hashed into 16,384 buckets
    (Bojanowski et al. 2017, section 3.2). alphabet: ids of characters, 0 for none. length: W, characters of a word.
    width: features, and those of a character.
    """

    kind: str
    alphabet: int
    length: int
    width: int


def init_embedding(
    key: Array, vocab_size: int, width: int, embedding_width: int = 0, spelling: Spelling | None = None
) -> Params:
    """embedding [V, E]; kernel [E + features, D] unless E = D is all there is; spelling.* (`embed`)."""
    table_width = embedding_width or width
    key_table, key_kernel, key_spelling = jax.random.split(key, 3)
    if spelling is None and table_width == width:
        return {"embedding": fan_in_normal(key, (vocab_size, width), width)}
    params = {"embedding": fan_in_normal(key_table, (vocab_size, table_width), table_width)}
    features = 0
    if spelling is not None:
        params["spelling"] = _init_spelling(key_spelling, spelling)
        features = spelling.width
    return params | {"kernel": fan_in_normal(key_kernel, (table_width + features, width))}


def embed(
    params: Params,
    tokens: Int[Array, "B T *W"],
    spelling: Spelling | None,
    dtype: str,
    type_factors: Float[Array, "V"] | None = None,
) -> Hidden:
    """Vectors of tokens; with a spelling, tokens [B, T, 1 + W] are the word and its characters (0: none).

    type_factors: what the row of every word type is multiplied by.
    """
    words = tokens if spelling is None else tokens[..., 0]
    x = params["embedding"][words].astype(dtype)
    x = x if type_factors is None else x * type_factors[words][..., None].astype(x.dtype)
    if spelling is not None:
        x = jnp.concatenate([x, _spell(params["spelling"], tokens[..., 1:], spelling, dtype)], axis=-1)
    return contract(x, params["kernel"], dtype).astype(dtype) if "kernel" in params else x


def replace_rows(params: Params, places: Int[Array, "K"], rows: Float[Array, "K E"]) -> Params:
    """`init_embedding` with `rows` in its table; the other rows are scaled to their standard deviation."""
    table = params["embedding"]
    scaled = table * (jnp.std(rows) / jnp.std(table))
    return params | {"embedding": scaled.at[places].set(rows.astype(table.dtype))}


def _init_spelling(key, spelling):
    key_table, key_first, key_second = jax.random.split(key, 3)
    width = spelling.width
    if spelling.kind == "ngrams":
        return {"embedding": fan_in_normal(key_table, (_BUCKETS, width), width)}
    if spelling.kind == "cnn":
        kernel = fan_in_normal(key_first, (width, _WINDOW, width), _WINDOW * width)
        table = fan_in_normal(key_table, (spelling.alphabet, width), 1)
        return {"embedding": table, "kernel": kernel, "bias": jnp.zeros(width)}
    reader = _reader(spelling)
    table = fan_in_normal(key_table, (spelling.alphabet, width // 2), 1)
    return {"embedding": table, "forward": reader.init(key_first), "backward": reader.init(key_second)}


def _spell(params, characters, spelling, dtype):
    """Features [B, T, width] of words of characters [B, T, W]; zero for a word without any."""
    batch, time, length = characters.shape
    characters = characters.reshape(batch * time, length)
    if spelling.kind == "ngrams":
        features = _mean_of_ngrams(params, characters, spelling)
    else:
        features = (_convolve if spelling.kind == "cnn" else _recur)(params, characters, spelling, dtype)
    return features.reshape(batch, time, spelling.width).astype(dtype)


def _convolve(params, characters, spelling, dtype):
    """The maximum over every window that is centred at a character; beyond the word are zeros.

    What a character adds to each place of a window is computed once for the alphabet and looked up.
    """
    parts = contract(params["embedding"], params["kernel"], dtype).at[0].set(0.0)[characters]
    before, here, after = (parts[:, :, place] for place in range(_WINDOW))
    y = here.at[:, 1:].add(before[:, :-1]).at[:, :-1].add(after[:, 1:])
    return jnp.tanh(pool(y + align(params["bias"], y), characters > 0, "max"))


def _mean_of_ngrams(params, characters, spelling):
    """The mean over the n-grams of <word>; zero for a word without any character."""
    buckets, live = _hash_ngrams(characters, spelling.alphabet)
    rows = jnp.where(live[..., None], params["embedding"][buckets], 0.0)
    return jnp.sum(rows, axis=1) / jnp.maximum(jnp.sum(live, axis=1, keepdims=True), 1).astype(rows.dtype)


def _hash_ngrams(characters, end):
    """Buckets [N, n-grams] by the FNV-1a hash of character ids [N, W], and which of them there are.

    end: the id that stands before and after every word.
    """
    filled = characters > 0
    last = filled & ~jnp.pad(filled[:, 1:], ((0, 0), (0, 1)))
    word = jnp.pad(characters, ((0, 0), (1, 1))) + end * jnp.pad(last, ((0, 0), (2, 0))).astype(characters.dtype)
    word = word.at[:, 0].set(end * filled[:, 0].astype(word.dtype)).astype(jnp.uint32)
    buckets, live = [], []
    for size in _SIZES:
        if size > word.shape[1]:
            break
        count = word.shape[1] - size + 1
        parts = [word[:, start : start + count] for start in range(size)]
        code = jnp.full_like(parts[0], 2166136261)
        for part in parts:
            code = (code ^ part) * jnp.uint32(16777619)
        buckets.append(code % _BUCKETS)
        live.append(parts[-1] > 0)
    return jnp.concatenate(buckets, axis=1).astype(jnp.int32), jnp.concatenate(live, axis=1)


def _recur(params, characters, spelling, dtype):
    live = characters > 0
    x = jnp.where(live[..., None], params["embedding"][characters], 0.0).astype(dtype)
    reader, ends = _reader(spelling), []
    for name, step in (("forward", 1), ("backward", -1)):
        ids = live[:, ::step].astype(jnp.int32)
        y, _ = reader.apply(params[name], x[:, ::step], Segments(ids, document_positions(ids)))
        ends.append(pool(y, ids > 0, "last"))
    return jnp.concatenate(ends, axis=-1)


def _reader(spelling):
    return make_mixer("lstm", spelling.width // 2)
