"""Cells with a diagonal, input-dependent decay."""

import jax
import jax.numpy as jnp

from hybrid_flax.cells.affine import make_affine_cell
from hybrid_flax.cells.inputs import block_linear, chain, conv, keep, linear
from hybrid_flax.ops.initializers import unit_interval_radius
from hybrid_flax.typing import Cell, state_dtype

__all__ = ["rglru"]

_DECAY_POWER = 8.0  # c in equation 3


def rglru(width: int, *, state_width: int | None = None, taps: int = 4, blocks: int = 4) -> Cell:
    """Real-gated linear recurrent unit behind a linear map and a short convolution (De et al. 2024, eq. 1-4).

    r_t, i_t = σ(W x_t + b), log a_t = -8 softplus(Λ) r_t;  h_t = a_t h_tm1 + sqrt(1 - a_t²) (i_t x_t);  y_t = h_t.
    `decay` holds Λ, drawn so that a^8 is uniform in area in [0.9, 0.999]. W is block diagonal.
    Gate order: r, i. Raises ValueError where `blocks` does not divide `state_width`.
    """
    state_width = state_width or width

    def init(key):
        radius = unit_interval_radius(key, (state_width,), 0.9, 0.999)
        return {"decay": jnp.log(jnp.expm1(-jnp.log(radius) / _DECAY_POWER))}

    def coefficients(params, u):
        x, gates = u
        dtype = state_dtype(x.dtype)
        r, i = jnp.moveaxis(jax.nn.sigmoid(gates.astype(dtype)), -2, 0)
        log_a = -_DECAY_POWER * jax.nn.softplus(params["decay"].astype(dtype)) * r
        # The floor keeps the gradient of the root finite where a gate is shut so far that a = 1.
        variance = jnp.maximum(-jnp.expm1(2.0 * log_a), jnp.finfo(dtype).tiny)
        return jnp.exp(log_a), jnp.sqrt(variance) * (i * x.astype(dtype))

    gates = keep(block_linear(state_width, (2, state_width), blocks))
    filtered = chain(linear(width, (state_width,)), conv(state_width, taps=taps))
    return make_affine_cell(chain(filtered, gates), coefficients, (state_width,), init)
