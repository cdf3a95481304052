"""What attention remembers of the tokens of earlier calls: the last live tokens of every row, and the first ones."""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from hybrid_flax.ops.segments import FRESH, last_live_id
from hybrid_flax.typing import Array, Segments, TokenIds, promote_state

__all__ = ["Memory", "Ring", "fresh_ring", "remember", "remember_sinks"]

# What attention keeps of tokens: [B,S,...] by name.
Memory: TypeAlias = dict[str, Array]
# The memory, ids and positions of the last tokens of each row, and their count: see `fresh_ring`.
Ring: TypeAlias = dict[str, Any]


def fresh_ring(batch_size: int, slots: int, memory_shapes: dict[str, tuple[int, ...]]) -> Ring:
    """A ring of `slots` live tokens a row that holds none yet."""
    return {
        "memory": {name: jnp.zeros((batch_size, slots, *shape), jnp.float32) for name, shape in memory_shapes.items()},
        "ids": jnp.full((batch_size, slots), FRESH, jnp.int32),
        "positions": jnp.zeros((batch_size, slots), jnp.int32),
        "count": jnp.zeros((batch_size,), jnp.int32),
    }


def remember(ring: Ring, memory: Memory, segments: Segments) -> Ring:
    """Write the live tokens of this call into each row's ring, the last `slots` of them."""
    slots = ring["ids"].shape[1]
    live = segments.ids > 0
    rank = jnp.cumsum(live, axis=1, dtype=jnp.int32) - 1
    num_live = rank[:, -1:] + 1
    kept = live & (rank >= num_live - slots)
    place = jnp.where(kept, (ring["count"][:, None] + rank) % slots, slots)
    put = partial(_put, place=place)
    return {
        "memory": _put_memory(ring["memory"], memory, place),
        "ids": put(ring["ids"], segments.ids),
        "positions": put(ring["positions"], segments.positions),
        "count": ring["count"] + num_live[:, 0],
    }


def remember_sinks(first: Ring, memory: Memory, segments: Segments) -> Ring:
    """Write the first live tokens of each row's last document, which stand at the place of their position."""
    slots = first["ids"].shape[1]
    last = last_live_id(segments.ids, jnp.full(segments.ids.shape[:1], FRESH, jnp.int32))
    kept = (segments.ids > 0) & (segments.ids == last[:, None]) & (segments.positions < slots)
    place = jnp.where(kept, segments.positions, slots)
    ids = _put(first["ids"], segments.ids, place)
    stale = (ids != last[:, None]) & (last[:, None] != FRESH)  # of a document that has ended

    def forget(leaf: Array) -> Array:
        return jnp.where(stale.reshape(*stale.shape, *[1] * (leaf.ndim - 2)), 0, leaf)

    written = _put_memory(first["memory"], memory, place)
    return {"memory": jax.tree.map(forget, written), "ids": jnp.where(stale, FRESH, ids)}


def _put_memory(old: Memory, new: Memory, place: TokenIds) -> Memory:
    dtype = jnp.result_type(*jax.tree.leaves(new))
    return jax.tree.map(partial(_put, place=place), promote_state(old, dtype), promote_state(new, dtype))


def _put(slots: Array, new: Array, place: TokenIds) -> Array:
    """slots[b, place[b, t]] = new[b, t]; a place beyond the last is none."""
    rows = jnp.arange(place.shape[0], dtype=jnp.int32)[:, None]
    return slots.at[rows, place].set(new, mode="drop")
