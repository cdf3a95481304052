"""What every cell of the form h_t = a_t h_tm1 + b_t has in common: one step and one parallel form."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from hybrid_flax.ops.scan import affine_scan
from hybrid_flax.typing import Cell, Mixer, Params

__all__ = ["make_affine_cell"]


def make_affine_cell(
    input: Mixer,
    coefficients: Callable[[Params, Any], tuple[Any, Any]],
    state_shape: tuple[int, ...],
    init: Callable[..., Params] = lambda key: {},
    *,
    readout: Callable[[Params, Any, Any], Any] = lambda params, h, u: h,
) -> Cell:
    """A cell from `coefficients(params, u) -> (decay, increment)`, which treats leading axes of u alike.

    y_t = readout(params, h_t, u_t), one vector of state_shape[-1]; leading axes as for `coefficients`.
    Forms: "associative".
    """

    def init_state(batch_size):
        return {"h": jnp.zeros((batch_size, *state_shape), jnp.float32)}

    def step(params, state, u_t):
        decay, increment = coefficients(params, u_t)
        h = decay * state["h"] + increment
        return {"h": h}, readout(params, h, u_t)

    def associative(params, u, reset, hold, state):
        decay, increment = coefficients(params, u)
        initial = init_state(reset.shape[0])["h"].astype(state["h"].dtype)
        h = affine_scan(decay, increment, reset, hold, initial, state["h"])
        return readout(params, h, u), {"h": h[:, -1]}

    return Cell(input, init, init_state, step, state_shape[-1], {"associative": associative})
