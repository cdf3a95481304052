"""A recurrence over blocks of positions, whose state is read and written by attention."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.mixers.memory import Ring, fresh_ring, remember
from hybrid_flax.ops.attention import attend, same_block
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract, project
from hybrid_flax.ops.norm import rms_norm
from hybrid_flax.ops.rope import rope
from hybrid_flax.ops.segments import in_chunks
from hybrid_flax.ranges import Count, Range
from hybrid_flax.typing import (
    Array,
    AttentionMask,
    Heads,
    Hidden,
    Mixer,
    Params,
    Segments,
    State,
    Traits,
    promote_state,
)

__all__ = ["blockrec"]

GATES = {"fixed": 1, "lstm": 3}  # maps of what the states have read


def blockrec(
    width: int,
    *,
    num_states: Count = 16,
    block: Annotated[int, Range(at_least=1, at_most=2**30)] = 64,
    num_heads: Count = 4,
    gate: Annotated[str, tuple(GATES)] = "fixed",
) -> Mixer:
    """Block-recurrent attention (Hutchins et al. 2022, section 3): M state vectors, written once a block of positions.

    Block n of a document is its positions n block to (n + 1) block - 1, C_n the states [M, D] before it, C_0 = 0,
    S_n = rms_norm(C_n + E) with learned state IDs E. A softmax each, results side by side:
    y_t = [attend(x_t; tokens of block n and n - 1 up to t); attend(x_t; S_n)] W_o;
    H = [attend(S_n; S_n); attend(S_n; tokens of block n)], after the last token of the block;
    gate "fixed": z = H W_z + b_z, g = σ(b_g), C_{n+1} = g ⊙ C_n + (1 - g) ⊙ z;
    gate "lstm": z = tanh(H W_z + b_z), i, f = σ(H W + b), C_{n+1} = f ⊙ C_n + i ⊙ z, order z, i, f.
    Tokens and states have one set of keys and values each for both directions. RoPE stands between tokens, for the
    relative bias of the paper; there is no position between tokens and states.
    Parameters: input.kernel and states.kernel [D, 4 H, K] (queries of the own kind and of the other, key, value),
    states.bias [M, D] (E), states.scale, output.kernel [2 H K, D], update.kernel [2 H K, gates, D], update.bias
    [gates, D], gate.bias [D] (b_g).
    State: states, and a ring of the last 2 block - 1 live tokens. Raises ValueError for sizes that do not fit.
    """
    if width % num_heads or width // num_heads % 2:
        raise ValueError(f"num_heads={num_heads} must divide the width {width} into heads of even width")
    head_width = width // num_heads

    def init(key: Array) -> Params:
        keys = dict(zip(("input", "states", "ids", "output", "update"), jax.random.split(key, 5)))
        heads, maps = (width, 4 * num_heads, head_width), (2 * width, GATES[gate], width)
        start = jnp.array([0.0, -1.0, 1.0])[: GATES[gate], None]
        params = {
            "input": {"kernel": fan_in_normal(keys["input"], heads)},
            "states": {
                "kernel": fan_in_normal(keys["states"], heads),
                "bias": jax.random.normal(keys["ids"], (num_states, width)),
                "scale": jnp.ones(width),
            },
            "output": {"kernel": fan_in_normal(keys["output"], (2 * width, width))},
            "update": {
                "kernel": fan_in_normal(keys["update"], maps),
                "bias": jnp.broadcast_to(start, maps[1:]),
            },
        }
        return params | ({"gate": {"bias": jnp.ones(width)}} if gate == "fixed" else {})

    def init_state(batch_size: int, capacity: int) -> State:
        del capacity
        heads = (num_heads, head_width)
        return {
            "states": jnp.zeros((batch_size, num_states, width), jnp.float32),
            "tokens": fresh_ring(batch_size, 2 * block - 1, {"key": heads, "value": heads}),
        }

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Hidden, State | None]:
        before = init_state(x.shape[0], 0) if state is None else lax.stop_gradient(state)
        before = promote_state(before, x.dtype)
        chunk = min(block, x.shape[1])
        heads = jnp.split(project(x, params["input"]["kernel"]), 4, axis=2)
        scanned = jax.tree.map(lambda leaf: in_chunks(leaf, chunk), (heads, segments))

        def step(carry: State, new: tuple[list[Array], Segments]) -> tuple[State, Array]:
            states, context, tokens = _advance(params, carry["states"], carry["tokens"], *new, block, gate)
            return {"states": states, "tokens": tokens}, context

        after, context = lax.scan(step, before, scanned)
        context = jnp.moveaxis(context, 0, 1).reshape(x.shape[0], -1, 2 * width)[:, : x.shape[1]]
        y = jnp.where((segments.ids > 0)[..., None], project(context, params["output"]["kernel"]), 0)
        return y, None if state is None else after

    return Mixer(init, init_state, apply, Traits(spec=("blockrec", num_states, block, gate)))


def _advance(
    params: Params, states: Array, ring: Ring, heads: list[Array], queries: Segments, block: int, gate: str
) -> tuple[Array, Array, Ring]:
    """At most `block` tokens a row, so that no row completes more than one block: (states, context, ring)."""
    query, state_query, key, value = heads
    seen = {name: ring["memory"][name].astype(key.dtype) for name in ("key", "value")}
    seen = {name: jnp.concatenate([seen[name], new], axis=1) for name, new in (("key", key), ("value", value))}
    keys = Segments(
        jnp.concatenate([ring["ids"], queries.ids], axis=1),
        jnp.concatenate([ring["positions"], queries.positions], axis=1),
    )
    mask = same_block(queries, keys, block=block, before=(0, 1))
    turned = rope(query, queries.positions), rope(seen["key"], keys.positions)
    scale = query.shape[-1] ** -0.5
    from_tokens = attend(*turned, seen["value"], mask, scale=scale)

    ends = (queries.ids > 0) & (queries.positions % block == block - 1)
    place = jnp.argmax(ends, axis=1)[:, None]
    last = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, place, axis=1), queries)
    ended = jnp.any(ends, axis=1)[:, None, None]
    old = jnp.where((last.positions >= block)[..., None], states, 0)
    mask = same_block(last, keys, block=block, before=(0, 0))
    new = lax.cond(
        jnp.any(ends), lambda: _write_states(params, old, seen, mask, gate), lambda: old
    )  # decoding writes once per block

    # Block 0 reads no states yet, tokens behind the end of a block the new ones, all others the old ones.
    behind = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends.astype(jnp.int32) > 0
    which = jnp.where(queries.positions < block, 0, jnp.where(behind, 2, 1))
    tables = jnp.stack([jnp.zeros_like(states), states, new], axis=1)
    *_, state_key, state_value = _state_heads(params, tables.reshape(len(states), -1, states.shape[-1]), query.dtype)
    mask = which[:, :, None] == jnp.repeat(jnp.arange(3), states.shape[1])[None, None]
    from_states = attend(state_query, state_key, state_value, mask & (queries.ids > 0)[..., None], scale=scale)
    context = jnp.concatenate([from_tokens, from_states], axis=2)
    context = context.reshape(*query.shape[:2], -1)
    return jnp.where(ended, new, states), context, remember(ring, {"key": key, "value": value}, queries)


def _state_heads(params: Params, states: Array, dtype: Any) -> list[Heads]:
    """Query for states, query for tokens, key and value of states[B, M or a multiple of it, D]."""
    names = params["states"]
    repeats = states.shape[1] // names["bias"].shape[0]
    read = rms_norm(states + jnp.tile(names["bias"].astype(states.dtype), (1, repeats, 1)), names["scale"])
    return jnp.split(project(read.astype(dtype), names["kernel"]), 4, axis=2)


def _write_states(params: Params, states: Array, tokens: dict[str, Array], mask: AttentionMask, gate: str) -> Array:
    """C_{n+1} from C_n and the tokens of the block, mask[B, 1, S]."""
    dtype = tokens["key"].dtype
    query, token_query, key, value = _state_heads(params, states, dtype)
    batch, num_states, num_heads, head_width = query.shape
    scale = head_width**-0.5
    all_states = jnp.ones((batch, num_states, num_states), bool)
    from_states = attend(query, key, value, all_states, scale=scale)
    mask = jnp.broadcast_to(mask, (batch, num_states, mask.shape[-1]))
    from_tokens = attend(token_query, tokens["key"], tokens["value"], mask, scale=scale)
    read = jnp.concatenate([from_states, from_tokens], axis=2).reshape(batch, num_states, -1)
    maps = contract(read, params["update"]["kernel"], dtype)
    maps = maps + align(params["update"]["bias"], maps)
    if gate == "fixed":
        g = jax.nn.sigmoid(align(params["gate"]["bias"], states))
        return g * states + (1 - g) * maps[:, :, 0].astype(states.dtype)
    z, i, f = jnp.moveaxis(maps, 2, 0)
    return jax.nn.sigmoid(f) * states + jax.nn.sigmoid(i) * jnp.tanh(z)
