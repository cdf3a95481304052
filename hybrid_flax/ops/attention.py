"""Scaled dot-product attention and the masks it runs under."""

import jax
import jax.numpy as jnp

from hybrid_flax.typing import Array, Bool, Float, Segments, state_dtype

__all__ = ["IMPLEMENTATIONS", "attend", "visible"]

IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn")


def visible(
    queries: Segments, keys: Segments, *, causal: bool = True, window: int | None = None
) -> Bool[Array, "B T S"]:
    """Which keys each query may read: live ones of its own document, by position.

    causal: keys at or before the query's position only. window: keys less than `window` positions away.
    """
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    mask = (queries.ids[:, :, None] == keys.ids[:, None, :]) & (queries.ids[:, :, None] > 0)
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= jnp.abs(distance) < window
    return mask


def attend(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G N"],
    mask: Bool[Array, "B T S"],
    *,
    scale: float,
    implementation: str = "auto",
) -> Float[Array, "B T H N"]:
    """softmax(scale q·k) v (Vaswani et al. 2017, equation 1), H a multiple of G; a query that sees no key gets 0.

    implementation: "xla" and "cudnn" are those of `jax.nn.dot_product_attention`, "einsum" is written out
    here and keeps the precision of its inputs, "auto" takes "einsum" for float64 and "xla" otherwise.
    """
    if implementation == "auto":
        fits = query.dtype != jnp.float64 and key.shape == value.shape
        implementation = "xla" if fits else "einsum"
    if implementation == "einsum":
        context = _attend_einsum(query, key, value, mask, scale)
    else:
        context = jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None], scale=scale, implementation=implementation
        )
    seen = jnp.any(mask, axis=-1)[:, :, None, None]
    return jnp.where(seen, context, jnp.zeros_like(context))


def _attend_einsum(query, key, value, mask, scale):
    dtype = state_dtype(query.dtype)
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("btghk,bsgk->bghts", query, key, preferred_element_type=dtype) * scale
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    context = jnp.einsum("bghts,bsgn->btghn", weights, value)
    return context.reshape(batch, length, heads, value.shape[-1])
