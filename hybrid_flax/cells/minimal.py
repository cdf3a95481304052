"""Minimal cells, without a matrix product inside the recurrence.

Those that are affine in their state scan a whole sequence in parallel.
"""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from hybrid_flax.cells.affine import make_affine_cell
from hybrid_flax.cells.inputs import keep, linear, window_linear
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ranges import Bias, Range, Width
from hybrid_flax.typing import Array, Cell, Params, State, state_dtype

__all__ = ["indrnn", "mingru", "minlstm", "qrnn", "sru"]


def mingru(width: int, *, state_width: Width | None = None) -> Cell:
    """minGRU (Feng et al. 2024, section 3.1, with the positive candidate of appendix A).

    z_t = σ(W_z x_t + b_z), h̃_t = g(W_h x_t + b_h);  h_t = (1 - z_t) h_tm1 + z_t h̃_t;  y_t = h_t.
    Input order: z, h̃.
    """
    state_width = state_width or width

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        del params
        pre = u.astype(state_dtype(u.dtype))
        z = jax.nn.sigmoid(pre[..., 0, :])
        return 1.0 - z, z * _positive(pre[..., 1, :])

    return make_affine_cell(linear(width, (2, state_width)), coefficients, (state_width,))


def minlstm(width: int, *, state_width: Width | None = None) -> Cell:
    """minLSTM (Feng et al. 2024, section 3.2, with the positive candidate of appendix A).

    f_t, i_t = σ(W x_t + b), normalised to f' = f / (f + i), i' = i / (f + i), h̃_t = g(W_h x_t + b_h);
    h_t = f' h_tm1 + i' h̃_t;  y_t = h_t. Input order: f, i, h̃. The normalisation is done in log space.
    """
    state_width = state_width or width

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        del params
        pre = u.astype(state_dtype(u.dtype))
        log_ratio = jax.nn.log_sigmoid(pre[..., 0, :]) - jax.nn.log_sigmoid(pre[..., 1, :])
        return jax.nn.sigmoid(log_ratio), jax.nn.sigmoid(-log_ratio) * _positive(pre[..., 2, :])

    return make_affine_cell(linear(width, (3, state_width)), coefficients, (state_width,))


def qrnn(
    width: int, *, state_width: Width | None = None, taps: Annotated[int, Range(at_least=1, at_most=256)] = 2
) -> Cell:
    """Quasi-recurrent network with fo-pooling (Bradbury et al. 2017, equations 1-4). Input order: z, f, o.

    z, f, o = tanh, σ, σ of W [x_t; x_{t-1}; ...] + b over the last `taps` tokens of the document;
    c_t = f c_tm1 + (1 - f) z;  y_t = o c_t.
    """
    state_width = state_width or width

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        del params
        pre = u.astype(state_dtype(u.dtype))
        return jax.nn.sigmoid(pre[..., 1, :]), jax.nn.sigmoid(-pre[..., 1, :]) * jnp.tanh(pre[..., 0, :])

    def readout(params: Params, c: Array, u: Any) -> Array:
        del params
        return jax.nn.sigmoid(u[..., 2, :].astype(c.dtype)) * c

    input = window_linear(width, (3, state_width), taps=taps)
    return make_affine_cell(input, coefficients, (state_width,), readout=readout)


def sru(width: int, *, state_width: Width | None = None, peephole: bool = True, highway_bias: Bias = 0.0) -> Cell:
    """Simple recurrent unit (Lei et al. 2018, equations 1-4). Input order: x̃, f, r, and x' where it is a map of x.

    x̃ = W x_t + b;  f, r = σ(W x_t + v ⊙ c_tm1 + b);  c_t = f c_tm1 + (1 - f) x̃;  y_t = r c_t + (1 - r) α x'_t.
    x' is x_t, or W x_t + b where `state_width` is another than the width. peephole: False for no v, which makes the
    cell affine in c (form "associative"); the parameter scale is v, in the order f, r. highway_bias: b of r at first,
    which also sets α = sqrt(1 + 2 exp(b)) (section 3.2).
    """
    state_width = state_width or width
    alpha = math.sqrt(1.0 + 2.0 * math.exp(highway_bias))
    features = 3 if state_width == width else 4
    input = linear(width, (features, state_width), bias=(0.0, 0.0, highway_bias, 0.0)[:features])
    input = keep(input) if features == 3 else input

    def split(u: Any) -> tuple[Array, Array, Array, Array]:
        x, pre = u if features == 3 else (u[..., 3, :], u)
        pre = pre.astype(state_dtype(pre.dtype))
        return x.astype(pre.dtype), pre[..., 0, :], pre[..., 1, :], pre[..., 2, :]

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        del params
        _, candidate, forget, _ = split(u)
        return jax.nn.sigmoid(forget), jax.nn.sigmoid(-forget) * candidate

    def readout(params: Params, c: Array, u: Any) -> Array:
        del params
        x, _, _, highway = split(u)
        return _between(highway, c, alpha * x)

    if not peephole:
        return make_affine_cell(input, coefficients, (state_width,), readout=readout)

    def init(key: Array) -> Params:
        del key
        return {"scale": jnp.zeros((2, state_width))}

    def init_state(batch_size: int) -> State:
        return {"c": jnp.zeros((batch_size, state_width), jnp.float32)}

    def step(params: Params, state: State, u_t: Any) -> tuple[State, Array]:
        x, candidate, forget, highway = split(u_t)
        v_f, v_r = (align(v, state["c"]) for v in params["scale"])
        c = _between(forget + v_f * state["c"], state["c"], candidate)
        return {"c": c}, _between(highway + v_r * state["c"], c, alpha * x)

    return Cell(input, init, init_state, step, state_width)


def indrnn(width: int, *, state_width: Width | None = None) -> Cell:
    """Independently recurrent network (Li et al. 2018, equation 2): h_t = relu(W x_t + b + v ⊙ h_tm1), y_t = h_t.

    The parameter scale is v, uniform in [0, 1] at first: no feature grows, and all lengths of memory are there.
    """
    state_width = state_width or width

    def init(key: Array) -> Params:
        return {"scale": jax.random.uniform(key, (state_width,))}

    def init_state(batch_size: int) -> State:
        return {"h": jnp.zeros((batch_size, state_width), jnp.float32)}

    def step(params: Params, state: State, u_t: Any) -> tuple[State, Array]:
        h = state["h"]
        h = jax.nn.relu(u_t.astype(h.dtype) + align(params["scale"], h) * h)
        return {"h": h}, h

    return Cell(linear(width, (state_width,)), init, init_state, step, state_width)


def _between(gate: Array, if_open: Array, if_shut: Array) -> Array:
    """σ(gate) a + (1 - σ(gate)) b."""
    return jax.nn.sigmoid(gate) * if_open + jax.nn.sigmoid(-gate) * if_shut


def _positive(x: Array) -> Array:
    """g(x) = x + 1/2 for x >= 0, σ(x) below: positive and continuous."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))
