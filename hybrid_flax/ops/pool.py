"""One vector of a row from the vectors of its live tokens."""

import jax
import jax.numpy as jnp

from hybrid_flax.typing import Array, Float, Hidden, TokenMask, state_dtype

__all__ = ["POOLINGS", "pool"]

POOLINGS = ("last", "mean", "max", "attention")


def pool(x: Hidden, live: TokenMask, kind: str, scores: Float[Array, "B T"] | None = None) -> Float[Array, "B D"]:
    """The last live token of each row, the mean or the maximum of all, or their mean weighted by softmax(scores).

    A row without live tokens gives zero. scores: for "attention" (Yang et al. 2016, section 2.2, its last step).
    """
    if kind == "last":
        place = jnp.max(jnp.where(live, jnp.arange(x.shape[1], dtype=jnp.int32), 0), axis=1)
        pooled = jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
    elif kind == "max":
        pooled = jnp.max(jnp.where(live[..., None], x, jnp.finfo(x.dtype).min), axis=1)
    else:
        dtype = state_dtype(x.dtype)
        if kind == "mean":
            scores = jnp.zeros(live.shape, dtype)
        else:
            assert scores is not None, "attention needs scores"
            scores = scores.astype(dtype)
        weights = jax.nn.softmax(jnp.where(live, scores, jnp.finfo(dtype).min), axis=1)
        pooled = jnp.einsum("bt,btd->bd", weights, jnp.where(live[..., None], x, 0).astype(dtype)).astype(x.dtype)
    return jnp.where(jnp.any(live, axis=1)[:, None], pooled, jnp.zeros_like(pooled))
