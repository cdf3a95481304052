"""Minimal gated cells, affine in their state, so that a whole sequence can be scanned in parallel."""

import jax
import jax.numpy as jnp

from hybrid_flax.cells.affine import make_affine_cell
from hybrid_flax.cells.inputs import linear
from hybrid_flax.typing import Cell, state_dtype

__all__ = ["mingru", "minlstm"]


def mingru(width: int, *, state_width: int | None = None) -> Cell:
    """minGRU (Feng et al. 2024, section 3.1, with the positive candidate of appendix A).

    z_t = σ(W_z x_t + b_z), h̃_t = g(W_h x_t + b_h);  h_t = (1 - z_t) h_tm1 + z_t h̃_t;  y_t = h_t.
    Input order: z, h̃.
    """
    state_width = state_width or width

    def coefficients(params, u):
        del params
        pre = u.astype(state_dtype(u.dtype))
        z = jax.nn.sigmoid(pre[..., 0, :])
        return 1.0 - z, z * _positive(pre[..., 1, :])

    return make_affine_cell(linear(width, (2, state_width)), coefficients, (state_width,))


def minlstm(width: int, *, state_width: int | None = None) -> Cell:
    """minLSTM (Feng et al. 2024, section 3.2, with the positive candidate of appendix A).

    f_t, i_t = σ(W x_t + b), normalised to f' = f / (f + i), i' = i / (f + i), h̃_t = g(W_h x_t + b_h);
    h_t = f' h_tm1 + i' h̃_t;  y_t = h_t. Input order: f, i, h̃. The normalisation is done in log space.
    """
    state_width = state_width or width

    def coefficients(params, u):
        del params
        pre = u.astype(state_dtype(u.dtype))
        log_ratio = jax.nn.log_sigmoid(pre[..., 0, :]) - jax.nn.log_sigmoid(pre[..., 1, :])
        return jax.nn.sigmoid(log_ratio), jax.nn.sigmoid(-log_ratio) * _positive(pre[..., 2, :])

    return make_affine_cell(linear(width, (3, state_width)), coefficients, (state_width,))


def _positive(x):
    """g(x) = x + 1/2 for x >= 0, σ(x) below: positive and continuous."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))
