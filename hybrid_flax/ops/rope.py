"""Rotary position embedding."""

import jax.numpy as jnp

from hybrid_flax.typing import Heads, TokenIds, state_dtype

__all__ = ["rope"]


def rope(x: Heads, positions: TokenIds, base: float = 10_000.0, rotated: int | None = None) -> Heads:
    """Rotate pairs (x_i, x_{i+K/2}) by positions * base^(-2i/K) (Su et al. 2021, equation 34).

    rotated: do so for the first `rotated` features in place of all K, and leave the others alone.
    Raises ValueError for an odd width.
    """
    if rotated is not None and rotated != x.shape[-1]:
        return jnp.concatenate([rope(x[..., :rotated], positions, base), x[..., rotated:]], axis=-1)
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rope needs an even head width, got {width}")
    dtype = state_dtype(x.dtype)
    frequency = jnp.asarray(base, dtype) ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle = positions.astype(dtype)[:, :, None, None] * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
