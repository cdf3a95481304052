"""Normalisation over the last axis, computed in at least float32."""

import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.broadcast import align
from hybrid_flax.typing import Array, Float, state_dtype

__all__ = ["layer_norm", "rms_norm"]


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, "*H D"], epsilon: float = 1e-6) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x²) + epsilon) * scale (Zhang & Sennrich 2019, equation 4)."""
    wide = x.astype(state_dtype(x.dtype))
    inverse = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * inverse * align(scale, wide)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "*H D"],
    bias: Float[Array, "*H D"] | float = 0.0,
    epsilon: float = 1e-6,
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias (Ba et al. 2016, equation 4)."""
    wide = x.astype(state_dtype(x.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return (centred * inverse * align(scale, wide) + align(bias, wide)).astype(x.dtype)
