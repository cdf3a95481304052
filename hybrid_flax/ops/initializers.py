"""Initial values. Shapes are those of the layout [input, ..., output], whatever stands between."""

import jax
import jax.numpy as jnp

from hybrid_flax.typing import Array, Float

__all__ = ["fan_in_normal", "orthogonal_gates", "unit_interval_radius"]


def fan_in_normal(key: Array, shape: tuple[int, ...], fan_in: int | None = None) -> Float[Array, "..."]:
    """Normal of variance 1 / fan_in (LeCun et al. 1998, section 4.6); fan_in defaults to the first axis."""
    return jax.random.normal(key, shape) * (fan_in or shape[0]) ** -0.5


def orthogonal_gates(key: Array, shape: tuple[int, int, int]) -> Float[Array, "M gates N"]:
    """One orthogonal matrix per gate (Saxe et al. 2014) in a fused kernel [M, gates, N]."""
    rows, gates, columns = shape
    keys = jax.random.split(key, gates)
    matrices = [jax.nn.initializers.orthogonal()(gate_key, (rows, columns)) for gate_key in keys]
    return jnp.stack(matrices, axis=1)


def unit_interval_radius(key: Array, shape: tuple[int, ...], low: float, high: float) -> Float[Array, "N"]:
    """Radii in [low, high], uniform in area (Orvieto et al. 2023, lemma 3.2)."""
    return jnp.sqrt(jax.random.uniform(key, shape, minval=low**2, maxval=high**2))
