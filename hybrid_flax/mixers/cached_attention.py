"""Attention to the tokens of this call, and to the live tokens that a state carries from earlier ones.

Documents, padding, windows, sinks, blocks, caches and the computation in chunks are done here, once, for every kind.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.mixers.memory import Memory, Ring, fresh_ring, remember, remember_sinks
from hybrid_flax.ops.attention import attend, attention_weights, same_block, visible
from hybrid_flax.ops.segments import compaction, in_chunks, permute
from hybrid_flax.typing import (
    Array,
    AttentionMask,
    Hidden,
    Init,
    Mixer,
    Params,
    Segments,
    State,
    TokenIds,
    Traits,
    promote_state,
)

__all__ = ["Attend", "make_attention"]

# `ops.attention.attend`, or one that is watched.
Attend: TypeAlias = Callable[..., Array]
# Memory, its tokens, and the rule by which (queries, keys) are masked.
_Source: TypeAlias = tuple[Memory, Segments, Callable[[Segments, Segments], AttentionMask]]


def make_attention(
    init: Init,
    read: Callable[[Params, Hidden, TokenIds], tuple[Array, Memory]],
    write: Callable[..., Hidden],
    memory_shapes: dict[str, tuple[int, ...]],
    *,
    causal: bool = True,
    window: int | None = None,
    sinks: int = 0,
    block: int | None = None,
    memory_blocks: int = 1,
    chunk: int | None = None,
    watch: Callable[..., None] | None = None,
) -> Mixer:
    """Any attention from what it reads and writes.

    read: (params, x, positions) -> (query[B,T,...], memory), memory a dict of [B,T,*shape].
    write: (params, query, memory with S for T, queries, keys, mask[B,T,S], attend) -> y[B,T,D]; queries and keys:
    Segments; attend: that of `ops.attention`, or one that is watched (see `Traits`).
    window: tokens less than `window` positions away; sinks: the first ones of the document as well. block: tokens of
    the query's own block of positions and of the `memory_blocks` before it, which get no gradient.
    chunk: so many queries at a time, recomputed in the backward pass: memory grows with T in place of T². Under a
    window or block without sinks, each chunk of queries meets only the keys in its reach.
    State: memory, ids and positions of up to `capacity` (or the reach, if less) live tokens a row in a ring, and
    count, the live tokens seen; with sinks, the first tokens of the document. Tokens beyond a capacity smaller than
    the reach make the row NaN. Raises ValueError for options that do not go together.
    """
    _check(causal, window, sinks, block, memory_blocks, chunk)
    reach = window if block is None else (memory_blocks + 1) * block
    near = partial(visible, causal=causal, window=window)
    if block is not None:
        near = partial(same_block, block=block, before=(0, memory_blocks))

    def init_state(batch_size: int, capacity: int) -> State:
        if not causal:
            raise ValueError("attention that is not causal reads the future and has no state to carry")
        state = fresh_ring(batch_size, capacity if reach is None else min(reach, capacity), memory_shapes)
        if sinks:
            first = fresh_ring(batch_size, sinks, memory_shapes)
            state["sinks"] = {"memory": first["memory"], "ids": first["ids"]}
        return state

    def written(memory: Memory, segments: Segments) -> list[_Source]:
        """The tokens of this call as sources of keys."""
        if block is None:
            return [(memory, segments, partial(near, sinks=sinks) if sinks else near)]
        own = partial(same_block, block=block, before=(0, 0))
        earlier = partial(same_block, block=block, before=(1, memory_blocks))
        return [(memory, segments, own), (lax.stop_gradient(memory), segments, earlier)]

    def carried(state: Ring) -> list[_Source]:
        """What stands in a state as sources of keys; a sink counts where it has left the ring's window."""
        sources: list[_Source] = [(state["memory"], Segments(state["ids"], state["positions"]), near)]
        if sinks:
            ids = state["sinks"]["ids"]
            positions = jnp.broadcast_to(jnp.arange(sinks, dtype=jnp.int32), ids.shape)
            sources.append((state["sinks"]["memory"], Segments(ids, positions), partial(_beyond, window=window)))
        return sources

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Hidden, State | None]:
        if state is not None and not causal:
            raise ValueError("attention that is not causal reads the future and takes no state")
        live = (segments.ids > 0)[..., None]
        length = x.shape[1]
        banded = chunk is not None and length > chunk and reach is not None and causal and not sinks
        if banded:  # without padding between them, tokens in reach stand side by side
            order, inverse = compaction(segments.ids > 0)
            x, segments = jax.tree.map(lambda leaf: permute(leaf, order, inverse), (x, segments))
        query, memory = read(params, x, segments.positions)
        before = lax.stop_gradient(state)
        after: Ring | None = None
        if before is not None:
            after = remember(before, memory, segments)
            if sinks:
                after["sinks"] = remember_sinks(before["sinks"], memory, segments)

        def mix(query: Array, queries: Segments, sources: list[_Source]) -> Hidden:
            keys = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *(keys for _, keys, _ in sources))
            mask = jnp.concatenate([rule(queries, keys) for _, keys, rule in sources], axis=2)
            cast = [jax.tree.map(lambda leaf: leaf.astype(x.dtype), memory) for memory, _, _ in sources]
            seen = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *cast)
            see = attend if watch is None else partial(_attend_watched, watch, queries, keys)
            return write(params, query, seen, queries, keys, mask, see)

        if banded:
            assert chunk is not None and reach is not None
            bands = _bands(before, memory, segments, chunk, -(-(reach - 1) // chunk))
            y = _chunkwise(lambda query, queries, band: mix(query, queries, written(*band)), chunk, length)(
                (query, segments), bands
            )
            y = permute(y, inverse, order)
        else:
            if before is None or after is None:
                sources = written(memory, segments)
            elif length == 1:
                sources = carried(after)
            else:  # one call's tokens may push out of the ring what its first queries still read
                sources = carried(before) + written(memory, segments)
            if chunk is None or length <= chunk:
                y = mix(query, segments, sources)
            else:
                wide = [(promote_state(memory, x.dtype), keys, rule) for memory, keys, rule in sources]
                y = _chunkwise(lambda query, queries: mix(query, queries, wide), chunk, length)((query, segments))
        y = jnp.where(live, y, 0)
        if after is None:
            return y, None
        slots = after["ids"].shape[1]
        if reach is None or slots < reach:
            overflow = (after["count"] > slots)[:, None, None]
            y = jnp.where(overflow & live, jnp.nan, y)
        return y, after

    def watched(watch: Callable[..., None]) -> Mixer:
        """In one piece, whose weights are there to be seen."""
        where: dict[str, Any] = {"window": window, "sinks": sinks, "block": block, "memory_blocks": memory_blocks}
        return make_attention(init, read, write, memory_shapes, causal=causal, **where, watch=watch)

    return Mixer(init, init_state, apply, Traits(causal, (), ("attention", reach), watched=watched))


def _attend_watched(
    watch: Callable[..., None],
    queries: Segments,
    keys: Segments,
    query: Array,
    key: Array,
    value: Array,
    mask: AttentionMask,
    **how: Any,
) -> Array:
    watch(attention_weights(query, key, mask, **how), queries, keys)
    return attend(query, key, value, mask, **how)


def _beyond(queries: Segments, keys: Segments, *, window: int | None) -> AttentionMask:
    return visible(queries, keys) & ~visible(queries, keys, window=window)


def _bands(
    ring: Ring | None, memory: Memory, segments: Segments, chunk: int, num_before: int
) -> tuple[Memory, Segments]:
    """For each chunk of queries, the tokens of that chunk and of `num_before` chunks before it: [T/C, B, L, ...].

    The ring, oldest token first, stands in front of the call's tokens, which have no padding among them.
    """
    front = num_before * chunk

    def stack(new: Array, old: Array | None = None) -> Array:
        if old is None or ring is None:
            old = jnp.zeros((new.shape[0], front, *new.shape[2:]), new.dtype)
        else:
            oldest = (ring["count"][:, None] + jnp.arange(old.shape[1], dtype=jnp.int32)[None]) % old.shape[1]
            old = jax.vmap(lambda row, places: row[places])(old, oldest).astype(new.dtype)[:, -front or old.shape[1] :]
            old = jnp.pad(old, [(0, 0), (front - old.shape[1], 0)] + [(0, 0)] * (old.ndim - 2))
        blocks = in_chunks(jnp.concatenate([old, new], axis=1), chunk)
        num_blocks = blocks.shape[0] - num_before
        return jnp.concatenate([blocks[k : k + num_blocks] for k in range(num_before + 1)], axis=2)

    if ring is None:
        return jax.tree.map(stack, (memory, segments))
    return jax.tree.map(stack, (memory, segments), (ring["memory"], Segments(ring["ids"], ring["positions"])))


def _chunkwise(mix: Callable[..., Hidden], chunk: int, length: int) -> Callable[..., Hidden]:
    """`mix` over chunks of queries one after another; nothing but its arguments is kept for the backward pass."""

    def run(queries: Any, *bands: Any) -> Hidden:
        blocks = jax.tree.map(lambda leaf: in_chunks(leaf, chunk), queries)
        body = jax.checkpoint(lambda arguments: mix(*arguments[0], *arguments[1:]), prevent_cse=False)
        y = jnp.moveaxis(lax.map(body, (blocks, *bands)), 0, 1)
        return y.reshape(y.shape[0], -1, y.shape[-1])[:, :length]

    return run


def _check(
    causal: bool, window: int | None, sinks: int, block: int | None, memory_blocks: int, chunk: int | None
) -> None:
    if sinks and (window is None or not causal):
        raise ValueError(f"sinks={sinks} must be 0, or stand beside a window of causal attention")
    if block is not None and (window is not None or not causal):
        raise ValueError(f"block={block} needs causal attention without a window")
