"""Scaled dot-product attention and the masks it runs under."""

from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from hybrid_flax.typing import Array, AttentionMask, AttentionScores, Float, Heads, HeadValues, Segments, state_dtype

__all__ = ["IMPLEMENTATIONS", "alibi_bias", "attend", "attention_weights", "same_block", "visible"]

IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn")


def visible(
    queries: Segments, keys: Segments, *, causal: bool = True, window: int | None = None, sinks: int = 0
) -> AttentionMask:
    """Which keys each query may read: live ones of its own document, by position.

    causal: keys at or before the query's position only. window: keys less than `window` positions away, and the
    first `sinks` of the document.
    """
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    mask = (queries.ids[:, :, None] == keys.ids[:, None, :]) & (queries.ids[:, :, None] > 0)
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= (jnp.abs(distance) < window) | (keys.positions < sinks)[:, None, :]
    return mask


def same_block(queries: Segments, keys: Segments, *, block: int, before: tuple[int, int]) -> AttentionMask:
    """Causal keys whose block of positions is from before[0] to before[1] blocks ahead of the query's: [B, T, S]."""
    apart = queries.positions[:, :, None] // block - keys.positions[:, None, :] // block
    return visible(queries, keys) & (apart >= before[0]) & (apart <= before[1])


def alibi_bias(queries: Segments, keys: Segments, num_heads: int, dtype: Any) -> AttentionScores:
    """-m_h |i - j| with slopes m_h = 2^(-8 h / H), h = 1 to H (Press et al. 2022, section 3)."""
    slopes = 2.0 ** (-8.0 * jnp.arange(1, num_heads + 1, dtype=dtype) / num_heads)
    distance = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :]).astype(dtype)
    return -slopes[None, :, None, None] * distance[:, None]


def attend(
    query: Heads,
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G N"],
    mask: AttentionMask,
    *,
    scale: float,
    bias: AttentionScores | None = None,
    soft_cap: float | None = None,
    implementation: str = "auto",
) -> HeadValues:
    """softmax(scale q·k + bias) v (Vaswani et al. 2017, equation 1), H a multiple of G; 0 for a query that sees no key.

    soft_cap: scores c tanh(scale q·k / c) before the bias (Gemma Team 2024, section 2). implementation: "xla" and
    "cudnn" are those of `jax.nn.dot_product_attention`, "einsum" is written out here, keeps the precision of its
    inputs and knows soft_cap, "auto" takes "einsum" where it has to and "xla" otherwise.
    """
    if implementation == "auto":
        fits = query.dtype != jnp.float64 and key.shape == value.shape and soft_cap is None
        implementation = "xla" if fits else "einsum"
    if implementation == "einsum":
        context = _attend_einsum(query, key, value, mask, scale, bias, soft_cap)
    else:
        library = cast(Literal["xla", "cudnn"], implementation)  # jax refuses other names
        # Of bfloat16 it asks for the dtype in common with float32, which there is not under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            context = jax.nn.dot_product_attention(
                query, key, value, bias, mask[:, None], scale=scale, implementation=library
            )
    seen = jnp.any(mask, axis=-1)[:, :, None, None]
    return jnp.where(seen, context, jnp.zeros_like(context))


def attention_weights(query: Heads, key: Float[Array, "B S G K"], mask: AttentionMask, **how: Any) -> AttentionScores:
    """What `attend` weighs the values with, other arguments as there; 0 for a query that sees no key."""
    one_hot = jnp.broadcast_to(jnp.eye(key.shape[1], dtype=query.dtype)[:, None], (*key.shape[:3], key.shape[1]))
    return jnp.swapaxes(attend(query, key, one_hot, mask, **how | {"implementation": "einsum"}), 1, 2)


def _attend_einsum(
    query: Heads,
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G N"],
    mask: AttentionMask,
    scale: float,
    bias: AttentionScores | None,
    soft_cap: float | None,
) -> HeadValues:
    dtype = state_dtype(query.dtype)
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("btghk,bsgk->bghts", query, key, preferred_element_type=dtype) * scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + bias.reshape(logits.shape).astype(dtype)
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    context = jnp.einsum("bghts,bsgn->btghn", weights, value)
    return context.reshape(batch, length, heads, value.shape[-1])
