"""Attention primitives: how queries, keys and values are made of tokens, and how they meet."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from hybrid_flax.mixers.cached_attention import Attend, make_attention
from hybrid_flax.mixers.memory import Memory
from hybrid_flax.ops.attention import IMPLEMENTATIONS, alibi_bias
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract, project
from hybrid_flax.ops.norm import layer_norm, rms_norm
from hybrid_flax.ops.rope import rope
from hybrid_flax.ranges import Count, Positive, Range, Width
from hybrid_flax.typing import Array, AttentionMask, Heads, Hidden, Mixer, Params, Segments, TokenIds, state_dtype

__all__ = ["POSITIONS", "attention", "sha", "tanhdot"]

POSITIONS = ("rope", "alibi", "relative", "none")


def attention(
    width: int,
    *,
    num_heads: Count = 4,
    num_kv_heads: Count | None = None,
    head_width: Width | None = None,
    window: Count | None = None,
    sinks: Annotated[int, Range(at_least=0)] = 0,
    block: Count | None = None,
    memory_blocks: Count = 1,
    chunk: Count | None = None,
    position: Annotated[str, POSITIONS] = "rope",
    rope_base: Positive = 10_000.0,
    rope_fraction: Annotated[float, Range(above=0.0, at_most=1.0)] = 1.0,
    qk_norm: bool = False,
    soft_cap: Positive | None = None,
    causal: bool = True,
    implementation: Annotated[str, IMPLEMENTATIONS] = "auto",
) -> Mixer:
    """Multi-head attention (Vaswani et al. 2017); fewer key/value heads share them in groups (Ainslie et al. 2023).

    num_kv_heads: num_heads by default, 1 is multi-query. head_width: width / num_heads by default.
    window: read tokens less than `window` positions away; sinks: and the first ones of the document, wherever the
    window is (Xiao et al. 2024). block: read the tokens of the own block of positions (position // block) and of the
    `memory_blocks` before it, whose keys and values get no gradient (Transformer-XL, Dai et al. 2019, section 3.2).
    chunk: so many queries at a time, for memory that grows with T in place of T²; same numbers.
    position: "rope", over the first `rope_fraction` of each head (Su et al. 2021; Black et al. 2022); "alibi" (Press
    et al. 2022); "relative" (Dai et al. 2019, section 3.3, with sinusoids as wide as a head); or "none".
    qk_norm: RMS-normalise queries and keys per head (Henry et al. 2020). soft_cap: scores c tanh(score / c) (Gemma
    Team 2024). implementation: see `ops.attention`.
    Parameters: input.kernel [D, H + 2G, K] (queries, keys, values), output.kernel [H K, D]; for "relative"
    relative.kernel [K, H, K] (cosines, then sines), content.bias (u) and relative.bias (v) [H, K].
    Raises ValueError for sizes that do not divide and options that do not go together.
    """
    groups = num_kv_heads or num_heads
    if head_width is None and width % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the width {width}, or head_width be given")
    if num_heads % groups:
        raise ValueError(f"num_kv_heads={groups} must divide num_heads={num_heads}")
    head_width = head_width or width // num_heads
    if position in ("rope", "relative") and head_width % 2:
        raise ValueError(f"{position} needs an even head width, got {head_width} (width {width}, {num_heads} heads)")
    rotated = 2 * int(rope_fraction * head_width / 2)
    _check_scores(position, rope_fraction, rotated, soft_cap, implementation)
    relative = position == "relative"

    def init(key: Array) -> Params:
        key_input, key_output, key_relative = jax.random.split(key, 3)
        params = {
            "input": {"kernel": fan_in_normal(key_input, (width, num_heads + 2 * groups, head_width))},
            "output": {"kernel": fan_in_normal(key_output, (num_heads * head_width, width))},
        }
        if qk_norm:
            params |= {name: {"scale": jnp.ones(head_width)} for name in ("query_norm", "key_norm")}
        if relative:
            zeros = jnp.zeros((num_heads, head_width))
            kernel = fan_in_normal(key_relative, (head_width, num_heads, head_width))
            params |= {"relative": {"kernel": kernel, "bias": zeros}, "content": {"bias": zeros}}
        return params

    def read(params: Params, x: Hidden, positions: TokenIds) -> tuple[Array, Memory]:
        heads = project(x, params["input"]["kernel"])
        query, key, value = jnp.split(heads, (num_heads, num_heads + groups), axis=2)
        if qk_norm:
            query = rms_norm(query, params["query_norm"]["scale"])
            key = rms_norm(key, params["key_norm"]["scale"])
        if position == "rope":
            query, key = (rope(heads, positions, rope_base, rotated) for heads in (query, key))
        if relative:
            query = _relative_query(params, query, positions, rope_base)
        return query, {"key": key, "value": value}

    def write(
        params: Params,
        query: Array,
        memory: Memory,
        queries: Segments,
        keys: Segments,
        mask: AttentionMask,
        attend: Attend,
    ) -> Hidden:
        key, bias = memory["key"], None
        if relative:
            key = _relative_key(key, keys.positions, rope_base)
        if position == "alibi":
            bias = alibi_bias(queries, keys, num_heads, state_dtype(query.dtype))
        context = attend(
            query,
            key,
            memory["value"],
            mask,
            scale=head_width**-0.5,
            bias=bias,
            soft_cap=soft_cap,
            implementation=implementation,
        )
        return project(context.reshape(*context.shape[:2], -1), params["output"]["kernel"])

    shapes: dict[str, tuple[int, ...]] = {"key": (groups, head_width), "value": (groups, head_width)}
    reach: dict[str, Any] = {"window": window, "sinks": sinks, "block": block, "memory_blocks": memory_blocks}
    return make_attention(init, read, write, shapes, causal=causal, chunk=chunk, **reach)


def tanhdot(width: int, *, causal: bool = True, implementation: Annotated[str, IMPLEMENTATIONS] = "auto") -> Mixer:
    """Dot attention with a tanh query: softmax(tanh(x_t W)·x_s) x_s, the tokens their own keys and values.

    One head, no scale, no output map: the score of Luong et al. 2015 (section 3.1, "dot") with a nonlinear query.
    Parameters: kernel [D, D].
    """

    def init(key: Array) -> Params:
        return {"kernel": fan_in_normal(key, (width, width))}

    def read(params: Params, x: Hidden, positions: TokenIds) -> tuple[Array, Memory]:
        del positions
        return jnp.tanh(project(x, params["kernel"]))[:, :, None], {"value": x[:, :, None]}

    def write(
        params: Params,
        query: Array,
        memory: Memory,
        queries: Segments,
        keys: Segments,
        mask: AttentionMask,
        attend: Attend,
    ) -> Hidden:
        del params, queries, keys
        value = memory["value"]
        return attend(query, value, value, mask, scale=1.0, implementation=implementation)[:, :, 0]

    return make_attention(init, read, write, {"value": (1, width)}, causal=causal)


def sha(width: int, *, window: Count = 256, implementation: Annotated[str, IMPLEMENTATIONS] = "auto") -> Mixer:
    """Single-headed attention of SHA-RNN (Merity 2019) over the states that come in, as far as `window`.

    q = σ(q_s) ⊙ LN(LN_q(h) W + b), k = σ(k_s) ⊙ LN_m(h), v = v_s' ⊙ LN_m(h), y = softmax(q·k / √D) v. The query alone
    passes through a matrix; keys and values are the states under gates of one vector each, that of the values
    over-parameterised: v_s' = σ(f) ⊙ tanh(c), c, f = σ(v_s) W_v + b_v. The state keeps LN_m(h) alone.
    Parameters: query.kernel [D, D], query.bias; query_norm, state_norm and memory_norm (LN, LN_q, LN_m); gates.bias
    [3, D] (q_s, k_s, v_s); value.kernel [D, 2, D] (c, f), value.bias.
    """

    def init(key: Array) -> Params:
        key_query, key_value = jax.random.split(key)
        norms = ("query_norm", "state_norm", "memory_norm")
        return {
            "query": {"kernel": fan_in_normal(key_query, (width, width)), "bias": jnp.zeros(width)},
            "gates": {"bias": jnp.zeros((3, width))},
            "value": {"kernel": fan_in_normal(key_value, (width, 2, width)), "bias": jnp.zeros((2, width))},
        } | {name: {"scale": jnp.ones(width), "bias": jnp.zeros(width)} for name in norms}

    def read(params: Params, x: Hidden, positions: TokenIds) -> tuple[Array, Memory]:
        del positions
        dtype = state_dtype(x.dtype)
        query_gate, key_gate, _ = jax.nn.sigmoid(params["gates"]["bias"].astype(dtype))
        memory = layer_norm(x, **params["memory_norm"])
        pre = contract(layer_norm(x, **params["state_norm"]), params["query"]["kernel"], x.dtype)
        query = layer_norm(pre + align(params["query"]["bias"], pre), **params["query_norm"])
        gates = align(query_gate * key_gate, query)  # (σ(q_s) q)·(σ(k_s) m) with both gates on q
        query = (query * gates).astype(x.dtype)
        return query[:, :, None], {"value": memory[:, :, None]}

    def write(
        params: Params,
        query: Array,
        memory: Memory,
        queries: Segments,
        keys: Segments,
        mask: AttentionMask,
        attend: Attend,
    ) -> Hidden:
        del queries, keys
        states = memory["value"]
        context = attend(query, states, states, mask, scale=width**-0.5, implementation=implementation)[:, :, 0]
        context = context.astype(state_dtype(context.dtype))
        return (context * align(_value_gate(params), context)).astype(query.dtype)

    return make_attention(init, read, write, {"value": (1, width)}, window=window)


def _value_gate(params: Params) -> Array:
    gate = jax.nn.sigmoid(params["gates"]["bias"][2])
    c, f = contract(gate, params["value"]["kernel"], gate.dtype) + params["value"]["bias"]
    return jax.nn.sigmoid(f) * jnp.tanh(c)


def _relative_query(params: Params, query: Heads, positions: TokenIds, base: float) -> Array:
    """[q + u; (q + v) W_R turned by the query's position]: against `_relative_key` (q + u)·k + (q + v)·W_R r_{i-j}."""
    dtype = query.dtype
    content = query + align(params["content"]["bias"], query)
    turned = jnp.einsum(
        "bthk,rhk->bthr",
        query + align(params["relative"]["bias"], query),
        params["relative"]["kernel"].astype(dtype),
        preferred_element_type=jnp.dtype(state_dtype(dtype)),
    )
    cosines, sines = jnp.split(turned, 2, axis=-1)
    turned = rope(jnp.concatenate([cosines, -sines], axis=-1), positions, base)
    return jnp.concatenate([content, turned.astype(dtype)], axis=-1)


def _relative_key(key: Array, positions: TokenIds, base: float) -> Array:
    """[k; cosines and sines of the key's position]."""
    half = jnp.zeros((*key.shape[:2], 1, key.shape[-1] // 2), state_dtype(key.dtype))
    turned = rope(jnp.concatenate([half + 1, half], axis=-1), positions, base)
    return jnp.concatenate([key, jnp.broadcast_to(turned, key.shape).astype(key.dtype)], axis=-1)


def _check_scores(
    position: str, rope_fraction: float, rotated: int, soft_cap: float | None, implementation: str
) -> None:
    if position == "rope" and not rotated:
        raise ValueError(f"rope_fraction={rope_fraction} must leave at least 2 features to rotate")
    if soft_cap is not None and implementation not in ("auto", "einsum"):
        raise ValueError(f"soft_cap={soft_cap} needs implementation einsum or auto, not {implementation}")
