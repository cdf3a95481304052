"""Classical cells, whose state passes through a recurrent matrix and a nonlinearity at every step.

Each is a recurrent product `recur(params, state)` and an `update` around it, the split that
`ops.scan.unroll_deferred` needs for a backward pass without one small weight gradient per step.
"""

from functools import partial

import jax
import jax.numpy as jnp

from hybrid_flax.cells.inputs import linear
from hybrid_flax.ops.initializers import fan_in_normal, orthogonal_gates
from hybrid_flax.ops.linear import contract
from hybrid_flax.ops.scan import unroll_deferred
from hybrid_flax.typing import Cell

__all__ = ["elman", "gru", "lstm", "lstmp"]


def elman(width: int, *, state_width: int | None = None, activation: str = "tanh") -> Cell:
    """h_t = activation(W x_t + b + R h_tm1), y_t = h_t (Elman 1990); activation "tanh" or "relu".

    The ReLU cell starts from the identity matrix (Le et al. 2015), the tanh cell from an orthogonal one.
    """
    state_width = state_width or width
    activate = {"tanh": jnp.tanh, "relu": jax.nn.relu}[activation]

    def init(key):
        if activation == "relu":
            return {"recurrent_kernel": jnp.eye(state_width)[:, None, :]}
        return {"recurrent_kernel": orthogonal_gates(key, (state_width, 1, state_width))}

    def update(params, state, u_t, product):
        del params, state
        h = activate(u_t + product)[:, 0]
        return {"h": h}, h

    return _gated_cell(
        input=linear(width, (1, state_width)),
        init=init,
        state_shape={"h": (state_width,)},
        update=update,
        width=state_width,
    )


def lstm(width: int, *, state_width: int | None = None, forget_bias: float = 1.0) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000). Gate order: i, f, g, o.

    i, f, o = σ(W x_t + b + R h_tm1), g = tanh(W x_t + b + R h_tm1);
    c_t = f c_tm1 + i g;  h_t = o tanh(c_t);  y_t = h_t.
    """
    state_width = state_width or width

    def init(key):
        return {"recurrent_kernel": orthogonal_gates(key, (state_width, 4, state_width))}

    def update(params, state, u_t, product):
        del params
        c, h = _lstm_gates(u_t + product, state["c"])
        return {"c": c, "h": h}, h

    return _gated_cell(
        input=linear(width, (4, state_width), bias=(0.0, forget_bias, 0.0, 0.0)),
        init=init,
        state_shape={"c": (state_width,), "h": (state_width,)},
        update=update,
        width=state_width,
    )


def lstmp(
    width: int,
    *,
    state_width: int | None = None,
    projection: int | None = None,
    forget_bias: float = 1.0,
) -> Cell:
    """LSTM with recurrent projection (Sak et al. 2014, equations 1-6, without peepholes). Order: i, f, g, o.

    As `lstm` with h_t = P (o tanh(c_t)); h_t has `projection` entries, half of `state_width` by default.
    """
    state_width = state_width or width
    projection = projection or max(1, state_width // 2)

    def init(key):
        key_recurrent, key_projection = jax.random.split(key)
        return {
            "recurrent_kernel": fan_in_normal(key_recurrent, (projection, 4, state_width)),
            "kernel": fan_in_normal(key_projection, (state_width, projection)),
        }

    def update(params, state, u_t, product):
        c, wide = _lstm_gates(u_t + product, state["c"])
        h = contract(wide, params["kernel"], u_t.dtype)
        return {"c": c, "h": h}, h

    return _gated_cell(
        input=linear(width, (4, state_width), bias=(0.0, forget_bias, 0.0, 0.0)),
        init=init,
        state_shape={"c": (state_width,), "h": (projection,)},
        update=update,
        width=projection,
    )


def gru(width: int, *, state_width: int | None = None) -> Cell:
    """Gated recurrent unit (Cho et al. 2014), the reset gate applied after the recurrent product as in cuDNN.

    r, z = σ(W x_t + b + R h_tm1), n = tanh(W x_t + b + r (R h_tm1 + b_r));
    h_t = (1 - z) n + z h_tm1;  y_t = h_t. Gate order: r, z, n.
    """
    state_width = state_width or width

    def init(key):
        return {
            "recurrent_kernel": orthogonal_gates(key, (state_width, 3, state_width)),
            "recurrent_bias": jnp.zeros(state_width),
        }

    def update(params, state, u_t, product):
        r, z = _squash(u_t[:, :2] + product[:, :2], (True, True))
        n = jnp.tanh(u_t[:, 2] + r * (product[:, 2] + params["recurrent_bias"]))
        h = (1.0 - z) * n + z * state["h"]
        return {"h": h}, h

    return _gated_cell(
        input=linear(width, (3, state_width)),
        init=init,
        state_shape={"h": (state_width,)},
        update=update,
        width=state_width,
    )


def _lstm_gates(pre, c):
    i, f, g, o = _squash(pre, (True, True, False, True))
    c = f * c + i * g
    return c, o * jnp.tanh(c)


def _squash(pre, sigmoid):
    """tanh of every gate of pre[B, gates, N], σ where `sigmoid` says so: [gates, B, N].

    σ(x) = (1 + tanh(x / 2)) / 2, and one vectorised tanh over all gates takes half the time of a function each.
    """
    half = jnp.where(jnp.asarray(sigmoid), 0.5, 1.0).astype(pre.dtype)[:, None]
    return jnp.moveaxis(half * jnp.tanh(half * pre) + (1.0 - half), 1, 0)


def _gated_cell(*, input, init, state_shape, update, width) -> Cell:
    """A cell whose recurrent product is R h_tm1 for the state entry "h", in the dtype of its inputs."""

    def recur(dtype, params, state):
        return contract(state["h"], params["recurrent_kernel"], dtype)

    def init_state(batch_size):
        return {name: jnp.zeros((batch_size, *shape), jnp.float32) for name, shape in state_shape.items()}

    def step(params, state, u_t):
        return update(params, state, u_t, recur(u_t.dtype, params, state))

    def deferred(params, u, reset, hold, state):
        initial = jax.tree.map(lambda h, leaf: h.astype(leaf.dtype), init_state(u.shape[0]), state)
        return unroll_deferred(partial(recur, u.dtype), update, params, initial, state, u, reset, hold)

    return Cell(input, init, init_state, step, width, {"deferred": deferred})
