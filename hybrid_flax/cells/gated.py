"""Classical cells, whose state passes through a recurrent matrix and a nonlinearity at every step.

Each is a recurrent product `recur(params, state)` and an `update` around it, the split that
`ops.scan.unroll_deferred` needs for a backward pass without one small weight gradient per step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.cells.inputs import linear
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal, orthogonal_gates
from hybrid_flax.ops.linear import contract, contract_blocks
from hybrid_flax.ops.norm import layer_norm
from hybrid_flax.ops.scan import unroll_deferred
from hybrid_flax.ranges import Bias, Count, Width
from hybrid_flax.typing import Array, Cell, Float, Init, Mixer, Params, State, TokenMask

__all__ = ["elman", "gru", "lstm", "lstmp", "mgu", "slstm"]

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
_FORGET_GATES = {"sigmoid": jax.nn.log_sigmoid, "exp": lambda x: x}  # the logarithm of the gate
_LONG_AGO = -1e30  # log weight of what stands in a fresh memory


def elman(
    width: int, *, state_width: Width | None = None, activation: Annotated[str, tuple(_ACTIVATIONS)] = "tanh"
) -> Cell:
    """h_t = activation(W x_t + b + R h_tm1), y_t = h_t (Elman 1990); activation "tanh" or "relu".

    The ReLU cell starts from the identity matrix (Le et al. 2015), the tanh cell from an orthogonal one.
    """
    state_width = state_width or width
    activate = _ACTIVATIONS[activation]

    def init(key: Array) -> Params:
        if activation == "relu":
            return {"recurrent_kernel": jnp.eye(state_width)[:, None, :]}
        return {"recurrent_kernel": orthogonal_gates(key, (state_width, 1, state_width))}

    def update(params: Params, state: State, u_t: Array, product: Array) -> tuple[State, Array]:
        del params, state
        h = activate(u_t.astype(product.dtype) + product)[:, 0]
        return {"h": h}, h

    return _gated_cell(
        input=linear(width, (1, state_width)),
        init=init,
        state_shape={"h": (state_width,)},
        update=update,
        width=state_width,
    )


def lstm(
    width: int,
    *,
    state_width: Width | None = None,
    forget_bias: Bias = 1.0,
    peephole: bool = False,
    layer_norm: bool = False,
) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000). Gate order: i, f, g, o.

    i, f, o = σ(W x_t + b + R h_tm1), g = tanh(W x_t + b + R h_tm1);
    c_t = f c_tm1 + i g;  h_t = o tanh(c_t);  y_t = h_t.
    peephole: p_i ⊙ c_tm1, p_f ⊙ c_tm1 and p_o ⊙ c_t inside the σ of i, f and o (Gers & Schmidhuber 2000); the
    parameter peephole.scale is p, in this order. layer_norm: LN(W x_t) + LN(R h_tm1) + b, each gate by itself, and
    h_t = o tanh(LN(c_t)), with a gain for each LN and a shift for that of c (Ba et al. 2016, equations 20-22).
    """
    state_width = state_width or width

    def init(key: Array) -> Params:
        params: dict[str, Any] = {"recurrent_kernel": orthogonal_gates(key, (state_width, 4, state_width))}
        if peephole:
            params["peephole"] = {"scale": jnp.zeros((3, state_width))}
        if layer_norm:
            params["recurrent_norm"] = {"scale": jnp.ones((4, state_width))}
            params["memory_norm"] = {"scale": jnp.ones(state_width), "bias": jnp.zeros(state_width)}
        return params

    def update(params: Params, state: State, u_t: Array, product: Array) -> tuple[State, Array]:
        c, h = _lstm_gates(params, u_t.astype(product.dtype) + product, state["c"])
        return {"c": c, "h": h}, h

    return _gated_cell(
        input=linear(width, (4, state_width), bias=(0.0, forget_bias, 0.0, 0.0), normalised=layer_norm),
        init=init,
        state_shape={"c": (state_width,), "h": (state_width,)},
        update=update,
        width=state_width,
    )


def lstmp(
    width: int,
    *,
    state_width: Width | None = None,
    projection: Width | None = None,
    forget_bias: Bias = 1.0,
) -> Cell:
    """LSTM with recurrent projection (Sak et al. 2014, equations 1-6, without peepholes). Order: i, f, g, o.

    As `lstm` with h_t = P (o tanh(c_t)); h_t has `projection` entries, half of `state_width` by default.
    """
    state_width = state_width or width
    projection = projection or max(1, state_width // 2)

    def init(key: Array) -> Params:
        key_recurrent, key_projection = jax.random.split(key)
        return {
            "recurrent_kernel": fan_in_normal(key_recurrent, (projection, 4, state_width)),
            "kernel": fan_in_normal(key_projection, (state_width, projection)),
        }

    def update(params: Params, state: State, u_t: Array, product: Array) -> tuple[State, Array]:
        c, wide = _lstm_gates({}, u_t.astype(product.dtype) + product, state["c"])
        h = contract(wide, params["kernel"], u_t.dtype)
        return {"c": c, "h": h}, h

    return _gated_cell(
        input=linear(width, (4, state_width), bias=(0.0, forget_bias, 0.0, 0.0)),
        init=init,
        state_shape={"c": (state_width,), "h": (projection,)},
        update=update,
        width=projection,
    )


def gru(width: int, *, state_width: Width | None = None, reset_after: bool = True) -> Cell:
    """Gated recurrent unit (Cho et al. 2014, equations 5-8). Gate order: r, z, n.

    r, z = σ(W x_t + b + R h_tm1), n = tanh(W x_t + b + r (R h_tm1 + b_r));
    h_t = (1 - z) n + z h_tm1;  y_t = h_t.
    reset_after: False for the paper's own n = tanh(W x_t + b + R_n (r h_tm1)), a second product in every step with the
    parameter candidate.recurrent_kernel; True is the variant of cuDNN.
    """
    state_width = state_width or width

    def init(key: Array) -> Params:
        if not reset_after:
            return _two_stage_kernels(key, 2, state_width)
        return {
            "recurrent_kernel": orthogonal_gates(key, (state_width, 3, state_width)),
            "recurrent_bias": jnp.zeros(state_width),
        }

    def update(params: Params, state: State, u_t: Array, product: Array) -> tuple[State, Array]:
        r, z = _squash(u_t[:, :2].astype(product.dtype) + product[:, :2], (True, True))
        if reset_after:
            inner = r * (product[:, 2] + align(params["recurrent_bias"], r))
        else:
            inner = _recur(u_t.dtype, params["candidate"], {"h": r * state["h"]})[:, 0]
        n = jnp.tanh(u_t[:, 2].astype(inner.dtype) + inner)
        h = (1.0 - z) * n + z * state["h"]
        return {"h": h}, h

    return _gated_cell(
        input=linear(width, (3, state_width)),
        init=init,
        state_shape={"h": (state_width,)},
        update=update,
        width=state_width,
    )


def mgu(width: int, *, state_width: Width | None = None) -> Cell:
    """Minimal gated unit (Zhou et al. 2016, equations 7a-7c): one gate that forgets and resets. Gate order: f, n.

    f = σ(W x_t + b + R h_tm1), n = tanh(W x_t + b + R_n (f h_tm1));  h_t = (1 - f) h_tm1 + f n;  y_t = h_t.
    """
    state_width = state_width or width

    def init(key: Array) -> Params:
        return _two_stage_kernels(key, 1, state_width)

    def update(params: Params, state: State, u_t: Array, product: Array) -> tuple[State, Array]:
        f = jax.nn.sigmoid(u_t[:, 0].astype(product.dtype) + product[:, 0])
        inner = _recur(u_t.dtype, params["candidate"], {"h": f * state["h"]})[:, 0]
        n = jnp.tanh(u_t[:, 1].astype(inner.dtype) + inner)
        h = (1.0 - f) * state["h"] + f * n
        return {"h": h}, h

    return _gated_cell(
        input=linear(width, (2, state_width)),
        init=init,
        state_shape={"h": (state_width,)},
        update=update,
        width=state_width,
    )


def slstm(
    width: int,
    *,
    state_width: Width | None = None,
    num_heads: Count = 4,
    forget_gate: Annotated[str, tuple(_FORGET_GATES)] = "sigmoid",
    forget_bias: Bias = 1.0,
) -> Cell:
    """sLSTM, an LSTM with an exponential input gate (Beck et al. 2024, equations 8-17). Gate order: i, f, z, o.

    ĩ, f̃, z̃, õ = W x_t + b + R h_tm1, R block diagonal with a block per head;  z = tanh(z̃), o = σ(õ);
    i = exp(ĩ), f = σ(f̃) or, with forget_gate "exp", exp(f̃);  c_t = f c_tm1 + i z;  n_t = f n_tm1 + i;
    y_t = h_t = o c_t / n_t.
    c and n are kept divided by exp(m), m_t = max(log f + m_tm1, ĩ), so that no exponent is above 0 and n_t is at least
    1; what a smaller n would say, in a state of the caller's, is read as 1. A fresh m is -1e30. The paper normalises
    h_t per head: `output_norm` "layer".
    Raises ValueError where `num_heads` does not divide `state_width`.
    """
    state_width = state_width or width
    if state_width % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the state width {state_width}")
    head_width = state_width // num_heads

    def init(key: Array) -> Params:
        return {"recurrent_kernel": fan_in_normal(key, (head_width, num_heads, 4, head_width))}

    def recur(dtype: Any, params: Params, state: State) -> Array:
        return contract_blocks(state["h"], params["recurrent_kernel"], dtype)

    def update(params: Params, state: State, u_t: Array, product: Array) -> tuple[State, Array]:
        del params
        pre = u_t.astype(product.dtype) + product
        z, o = _squash(pre[:, 2:], (False, True))
        log_i, log_f = pre[:, 0], _FORGET_GATES[forget_gate](pre[:, 1]) + state["m"]
        # h_t is the same for every m, so that no gradient goes through it.
        m = lax.stop_gradient(jnp.maximum(log_f, log_i))
        i, f = jnp.exp(log_i - m), jnp.exp(log_f - m)
        c, n = f * state["c"] + i * z, f * state["n"] + i
        h = o * c / jnp.where(n < 1.0, 1.0, n)
        return {"c": c, "n": n, "m": m, "h": h}, h

    return _gated_cell(
        input=linear(width, (4, state_width), bias=(0.0, forget_bias, 0.0, 0.0)),
        init=init,
        state_shape={name: (state_width,) for name in ("c", "n", "m", "h")},
        update=update,
        width=state_width,
        recur=recur,
        start={"m": _LONG_AGO},
        heads=num_heads,
    )


def _lstm_gates(params: Params, pre: Array, c: Array) -> tuple[Array, Array]:
    """c_t and h_t from the gates' arguments and c_tm1."""
    if "peephole" in params:
        p_i, p_f, p_o = (align(scale, c) for scale in params["peephole"]["scale"])
        i, f, g = _squash(pre[:, :3] + jnp.stack([p_i * c, p_f * c, jnp.zeros_like(c)], axis=1), (True, True, False))
        c = f * c + i * g
        o = jax.nn.sigmoid(pre[:, 3] + p_o * c)
    else:
        i, f, g, o = _squash(pre, (True, True, False, True))
        c = f * c + i * g
    seen = layer_norm(c, **params["memory_norm"]) if "memory_norm" in params else c
    return c, o * jnp.tanh(seen)


def _squash(pre: Float[Array, "B gates N"], sigmoid: tuple[bool, ...]) -> Float[Array, "gates B N"]:
    """tanh of every gate of pre[B, gates, N], σ where `sigmoid` says so: [gates, B, N].

    σ(x) = (1 + tanh(x / 2)) / 2, and one vectorised tanh over all gates takes half the time of a function each.
    """
    half = align(jnp.where(jnp.asarray(sigmoid), 0.5, 1.0)[:, None], pre)
    return jnp.moveaxis(half * jnp.tanh(half * pre) + (1.0 - half), 1, 0)


def _two_stage_kernels(key: Array, gates: int, state_width: int) -> Params:
    """Kernels of a cell whose candidate reads a gated h_tm1, in a product of its own."""
    key_gates, key_candidate = jax.random.split(key)
    return {
        "recurrent_kernel": orthogonal_gates(key_gates, (state_width, gates, state_width)),
        "candidate": {"recurrent_kernel": orthogonal_gates(key_candidate, (state_width, 1, state_width))},
    }


def _recur(dtype: Any, params: Params, state: State) -> Array:
    """R h_tm1 for the state entry "h", in `dtype`, normalised where there is a gain for it."""
    product = contract(state["h"], params["recurrent_kernel"], dtype)
    return layer_norm(product, params["recurrent_norm"]["scale"]) if "recurrent_norm" in params else product


def _gated_cell(
    *,
    input: Mixer,
    init: Init,
    state_shape: Mapping[str, tuple[int, ...]],
    update: Callable[[Params, State, Any, Any], tuple[State, Array]],
    width: int,
    recur: Callable[[Any, Params, State], Array] = _recur,
    start: Mapping[str, float] = {},
    heads: int = 1,
) -> Cell:
    """A cell of update(params, state, u_t, recur(dtype, params, state)); state entries begin at `start`, else at 0."""

    def init_state(batch_size: int) -> State:
        return {
            name: jnp.full((batch_size, *shape), start.get(name, 0.0), jnp.float32)
            for name, shape in state_shape.items()
        }

    def step(params: Params, state: State, u_t: Any) -> tuple[State, Array]:
        return update(params, state, u_t, recur(u_t.dtype, params, state))

    def deferred(params: Params, u: Array, reset: TokenMask, hold: TokenMask, state: State) -> tuple[Array, State]:
        initial = jax.tree.map(lambda h, leaf: h.astype(leaf.dtype), init_state(u.shape[0]), state)
        return unroll_deferred(partial(recur, u.dtype), update, params, initial, state, u, reset, hold)

    return Cell(input, init, init_state, step, width, {"deferred": deferred}, heads)
