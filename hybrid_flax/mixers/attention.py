"""Attention primitives: queries of this call over a memory of live tokens of the same document."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.attention import IMPLEMENTATIONS, attend, visible
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import project
from hybrid_flax.ops.norm import rms_norm
from hybrid_flax.ops.rope import rope
from hybrid_flax.ops.segments import FRESH
from hybrid_flax.typing import Mixer, Segments, Traits, promote_state

__all__ = ["attention", "make_attention", "tanhdot"]


def attention(
    width: int,
    *,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    head_width: int | None = None,
    window: int | None = None,
    position: str = "rope",
    rope_base: float = 10_000.0,
    qk_norm: bool = False,
    causal: bool = True,
    implementation: str = "auto",
) -> Mixer:
    """Multi-head attention (Vaswani et al. 2017); fewer key/value heads share them in groups (Ainslie et al. 2023).

    num_kv_heads: num_heads by default, 1 is multi-query. head_width: width / num_heads by default.
    window: read tokens less than `window` positions away. position: "rope" or "none".
    qk_norm: RMS-normalise queries and keys per head (Henry et al. 2020). implementation: see `ops.attention`.
    Parameters: input.kernel [D, H + 2G, K] (queries, keys, values), output.kernel [H K, D].
    Raises ValueError for sizes that do not divide and for unknown choices.
    """
    groups = num_kv_heads or num_heads
    if head_width is None and width % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the width {width}, or head_width be given")
    if num_heads % groups:
        raise ValueError(f"num_kv_heads={groups} must divide num_heads={num_heads}")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1")
    if position not in ("rope", "none"):
        raise ValueError(f"position={position!r} is none of rope, none")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    head_width = head_width or width // num_heads
    if position == "rope" and head_width % 2:
        raise ValueError(f"rope needs an even head width, got {head_width} (width {width}, {num_heads} heads)")

    def init(key):
        key_input, key_output = jax.random.split(key)
        params = {
            "input": {"kernel": fan_in_normal(key_input, (width, num_heads + 2 * groups, head_width))},
            "output": {"kernel": fan_in_normal(key_output, (num_heads * head_width, width))},
        }
        if qk_norm:
            params |= {name: {"scale": jnp.ones(head_width)} for name in ("query_norm", "key_norm")}
        return params

    def read(params, x, positions):
        heads = project(x, params["input"]["kernel"])
        query, key, value = jnp.split(heads, (num_heads, num_heads + groups), axis=2)
        if qk_norm:
            query = rms_norm(query, params["query_norm"]["scale"])
            key = rms_norm(key, params["key_norm"]["scale"])
        if position == "rope":
            query, key = rope(query, positions, rope_base), rope(key, positions, rope_base)
        return query, {"key": key, "value": value}

    def write(params, query, memory, mask):
        context = attend(
            query,
            memory["key"],
            memory["value"],
            mask,
            scale=head_width**-0.5,
            implementation=implementation,
        )
        return project(context.reshape(*context.shape[:2], -1), params["output"]["kernel"])

    shapes = {"key": (groups, head_width), "value": (groups, head_width)}
    return make_attention(init, read, write, shapes, causal=causal, window=window)


def tanhdot(width: int, *, causal: bool = True, implementation: str = "auto") -> Mixer:
    """Dot attention with a tanh query: softmax(tanh(x_t W)·x_s) x_s, the tokens their own keys and values.

    One head, no scale, no output map: the score of Luong et al. 2015 (section 3.1, "dot") with a nonlinear query.
    Parameters: kernel [D, D].
    """

    def init(key):
        return {"kernel": fan_in_normal(key, (width, width))}

    def read(params, x, positions):
        del positions
        return jnp.tanh(project(x, params["kernel"]))[:, :, None], {"value": x[:, :, None]}

    def write(params, query, memory, mask):
        del params
        value = memory["value"]
        return attend(query, value, value, mask, scale=1.0, implementation=implementation)[:, :, 0]

    return make_attention(init, read, write, {"value": (1, width)}, causal=causal, window=None)


def make_attention(
    init: Callable,
    read: Callable,
    write: Callable,
    memory_shapes: dict[str, tuple[int, ...]],
    *,
    causal: bool,
    window: int | None,
) -> Mixer:
    """Any attention from what it reads and writes; documents, padding, masks and the cache are done here.

    read: (params, x, positions) -> (query[B,T,...], memory), memory a dict of [B,T,*shape].
    write: (params, query, memory with S for T, mask[B,T,S]) -> y[B,T,D].
    State: memory, ids and positions of up to `capacity` (or `window`, if less) live tokens a row in a ring, and
    count, the live tokens seen. Tokens beyond a capacity smaller than the window make the row NaN.
    """

    def init_state(batch_size, capacity):
        if not causal:
            raise ValueError("attention that is not causal reads the future and has no state to carry")
        slots = capacity if window is None else min(window, capacity)
        return {
            "memory": {
                name: jnp.zeros((batch_size, slots, *shape), jnp.float32) for name, shape in memory_shapes.items()
            },
            "ids": jnp.full((batch_size, slots), FRESH, jnp.int32),
            "positions": jnp.zeros((batch_size, slots), jnp.int32),
            "count": jnp.zeros((batch_size,), jnp.int32),
        }

    def apply(params, x, segments, state=None):
        live = (segments.ids > 0)[..., None]
        query, memory = read(params, x, segments.positions)
        if state is None:
            mask = visible(segments, segments, causal=causal, window=window)
            return jnp.where(live, write(params, query, memory, mask), 0), None
        if not causal:
            raise ValueError("attention that is not causal reads the future and takes no state")
        before = lax.stop_gradient(state)
        after = _remember(before, memory, segments)
        if x.shape[1] == 1:
            seen, sources = after["memory"], Segments(after["ids"], after["positions"])
        else:
            # One call's tokens may push out of the ring what its first queries still read.
            seen = jax.tree.map(
                lambda old, new: jnp.concatenate([old.astype(new.dtype), new], axis=1),
                before["memory"],
                memory,
            )
            sources = Segments(
                jnp.concatenate([before["ids"], segments.ids], axis=1),
                jnp.concatenate([before["positions"], segments.positions], axis=1),
            )
        seen = jax.tree.map(lambda leaf: leaf.astype(x.dtype), seen)
        y = write(params, query, seen, visible(segments, sources, causal=causal, window=window))
        y = jnp.where(live, y, 0)
        slots = after["ids"].shape[1]
        if window is None or slots < window:
            overflow = (after["count"] > slots)[:, None, None]
            y = jnp.where(overflow & live, jnp.nan, y)
        return y, after

    return Mixer(init, init_state, apply, Traits(causal, (), ("attention", window)))


def _remember(state, memory, segments):
    """Write the live tokens of this call into each row's ring, the last `slots` of them."""
    slots = state["ids"].shape[1]
    live = segments.ids > 0
    rank = jnp.cumsum(live, axis=1, dtype=jnp.int32) - 1
    num_live = rank[:, -1:] + 1
    kept = live & (rank >= num_live - slots)
    place = jnp.where(kept, (state["count"][:, None] + rank) % slots, slots)
    rows = jnp.arange(live.shape[0], dtype=jnp.int32)[:, None]

    def put(ring, new):
        return ring.at[rows, place].set(new, mode="drop")

    dtype = jnp.result_type(*jax.tree.leaves(memory))
    return {
        "memory": jax.tree.map(put, promote_state(state["memory"], dtype), promote_state(memory, dtype)),
        "ids": put(state["ids"], segments.ids),
        "positions": put(state["positions"], segments.positions),
        "count": state["count"] + num_live[:, 0],
    }
