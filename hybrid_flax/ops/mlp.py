"""Activations of the position-wise network."""

import jax
import jax.numpy as jnp

from hybrid_flax.ops.linear import project
from hybrid_flax.typing import Array, Float, Params

__all__ = ["MLPS", "mlp"]

MLPS = ("none", "relu2", "gelu", "swiglu")


def mlp(params: Params, x: Float[Array, "*B D"], kind: str) -> Float[Array, "*B D"]:
    """down(activation(up(x))): "relu2" (So et al. 2021), "gelu", or "swiglu" (Shazeer 2020, equation 6)."""
    hidden = project(x, params["up"]["kernel"])
    if kind == "relu2":
        hidden = jnp.square(jax.nn.relu(hidden))
    elif kind == "gelu":
        hidden = jax.nn.gelu(hidden)
    else:
        hidden = jax.nn.silu(project(x, params["gate"]["kernel"])) * hidden
    return project(hidden, params["down"]["kernel"])
