"""Documents and padding as index arithmetic on `Segments.ids`: 0 is padding, -1 is "nothing came before"."""

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Array, RowIds, Shaped, TokenIds, TokenMask

__all__ = [
    "FRESH",
    "compaction",
    "document_positions",
    "in_chunks",
    "last_live_id",
    "permute",
    "previous_ids",
    "resets",
]

FRESH = -1  # the document id of a state that has seen no live token


def previous_ids(ids: TokenIds, carried: RowIds) -> TokenIds:
    """Document of the last live token before each token; `carried` where there is none in this call."""
    length = ids.shape[1]
    places = jnp.where(ids > 0, jnp.arange(length, dtype=jnp.int32)[None, :], -1)
    latest = lax.cummax(places, axis=1)
    before = jnp.concatenate([jnp.full_like(latest[:, :1], -1), latest[:, :-1]], axis=1)
    found = jnp.take_along_axis(ids, jnp.maximum(before, 0), axis=1)
    return jnp.where(before >= 0, found, carried[:, None])


def last_live_id(ids: TokenIds, carried: RowIds) -> RowIds:
    """Document of the last live token of each row; `carried` for a row of padding."""
    place = jnp.max(jnp.where(ids > 0, jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :], -1), axis=1)
    found = jnp.take_along_axis(ids, jnp.maximum(place, 0)[:, None], axis=1)[:, 0]
    return jnp.where(place >= 0, found, carried)


def resets(ids: TokenIds, carried: RowIds) -> TokenMask:
    """Live tokens that open a document other than the one before; the first after a fresh state does not."""
    before = previous_ids(ids, carried)
    return (ids > 0) & (ids != before) & (before != FRESH)


def document_positions(ids: TokenIds) -> TokenIds:
    """Place of each live token inside its document, when every document starts inside the row."""
    rank = jnp.cumsum(ids > 0, axis=1, dtype=jnp.int32) - 1
    opens = (ids > 0) & (ids != previous_ids(ids, jnp.full(ids.shape[:1], FRESH, ids.dtype)))
    start = lax.cummax(jnp.where(opens, rank, 0), axis=1)
    return jnp.where(ids > 0, rank - start, 0)


def compaction(live: TokenMask) -> tuple[TokenIds, TokenIds]:
    """The permutation that moves live tokens to the front of each row, order kept, and its inverse."""
    num_live = jnp.sum(live, axis=1, dtype=jnp.int32, keepdims=True)
    live_rank = jnp.cumsum(live, axis=1, dtype=jnp.int32) - 1
    dead_rank = num_live + jnp.cumsum(~live, axis=1, dtype=jnp.int32) - 1
    inverse = jnp.where(live, live_rank, dead_rank)
    order = jnp.argsort(~live, axis=1, stable=True).astype(jnp.int32)
    return order, inverse


@jax.custom_vjp
def permute(x: Shaped[Array, "B T *rest"], order: TokenIds, inverse: TokenIds) -> Shaped[Array, "B T *rest"]:
    """x[b, order[b, t]] for a permutation of each row; the gradient is the inverse gather, not a scatter."""
    return _gather(x, order)


def in_chunks(x: Shaped[Array, "B T *rest"], chunk: int) -> Shaped[Array, "chunks B C *rest"]:
    """x[B, T, ...] in pieces of `chunk` tokens, zeros behind the last."""
    missing = -x.shape[1] % chunk
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _gather(x: Array, order: TokenIds) -> Array:
    return jax.vmap(lambda row, places: row[places])(x, order)


permute.defvjp(
    lambda x, order, inverse: (_gather(x, order), inverse),
    lambda inverse, dy: (_gather(dy, inverse), None, None),
)
