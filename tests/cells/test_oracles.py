"""Every cell against loops over time in float64, written from the equations of its paper."""

import functools

import jax
import numpy as np
import pytest
from cells.oracle import (
    BATCH,
    LENGTH,
    WIDTH,
    Oracle,
    block_diagonal,
    check_gradients,
    check_values,
    gates_of,
    gelu,
    recurrent_gates,
    sigmoid,
)

from hybrid_flax.cells.diagonal import rglru
from hybrid_flax.cells.gated import elman, gru, lstm, lstmp
from hybrid_flax.cells.inputs import conv
from hybrid_flax.cells.minimal import mingru, minlstm
from hybrid_flax.certify.compare import check_close, check_same
from hybrid_flax.certify.subjects import noise, normal
from hybrid_flax.mixers.recurrent import run_cell
from hybrid_flax.typing import Segments

STATE, PROJECTION, BLOCKS, TAPS = 8, 5, 2, 4


def elman_loop(activation):
    def loop(params, x, state):
        ((w, b),), (r,), h, ys = gates_of(params), recurrent_gates(params), state["h"], []
        for x_t in x:
            h = activation(x_t @ w + b + h @ r)
            ys.append(h)
        return ys, {"h": h}

    return loop


def lstm_loop(params, x, state):
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; with a projection, Sak et al. 2014."""
    (w_i, b_i), (w_f, b_f), (w_g, b_g), (w_o, b_o) = gates_of(params)
    r_i, r_f, r_g, r_o = recurrent_gates(params)
    projection = params["cell"].get("kernel")
    c, h, ys = state["c"], state["h"], []
    for x_t in x:
        i = sigmoid(w_i.T @ x_t + r_i.T @ h + b_i)
        f = sigmoid(w_f.T @ x_t + r_f.T @ h + b_f)
        o = sigmoid(w_o.T @ x_t + r_o.T @ h + b_o)
        c = f * c + i * np.tanh(w_g.T @ x_t + r_g.T @ h + b_g)
        h = o * np.tanh(c)
        if projection is not None:
            h = projection.T @ h
        ys.append(h)
    return ys, {"c": c, "h": h}


def gru_loop(params, x, state):
    """Cho et al. 2014, the candidate as in cuDNN: the reset gate multiplies R h + b."""
    (w_r, b_r), (w_z, b_z), (w_n, b_n) = gates_of(params)
    r_r, r_z, r_n = recurrent_gates(params)
    h, ys = state["h"], []
    for x_t in x:
        reset = sigmoid(x_t @ w_r + h @ r_r + b_r)
        update = sigmoid(x_t @ w_z + h @ r_z + b_z)
        candidate = np.tanh(x_t @ w_n + b_n + reset * (h @ r_n + params["cell"]["recurrent_bias"]))
        h = update * h + (1.0 - update) * candidate
        ys.append(h)
    return ys, {"h": h}


def positive(x):
    """Feng et al. 2024, appendix B.2.1: g."""
    return np.where(x >= 0, x + 0.5, sigmoid(x))


def mingru_loop(params, x, state):
    (w_z, b_z), (w_h, b_h) = gates_of(params)
    h, ys = state["h"], []
    for x_t in x:
        z = sigmoid(x_t @ w_z + b_z)
        h = (1.0 - z) * h + z * positive(x_t @ w_h + b_h)
        ys.append(h)
    return ys, {"h": h}


def minlstm_loop(params, x, state):
    (w_f, b_f), (w_i, b_i), (w_h, b_h) = gates_of(params)
    h, ys = state["h"], []
    for x_t in x:
        f, i = sigmoid(x_t @ w_f + b_f), sigmoid(x_t @ w_i + b_i)
        h = f / (f + i) * h + i / (f + i) * positive(x_t @ w_h + b_h)
        ys.append(h)
    return ys, {"h": h}


def rglru_loop(params, x, state):
    """De et al. 2024, figure 2 and equations 1 to 4; our `decay` is minus their Λ, so a = σ(-decay)."""
    filtered, gates = params["input"]["a"], params["input"]["b"]
    taps, tap_bias = filtered["b"]["depthwise_kernel"], filtered["b"]["bias"]
    projected = x @ filtered["a"]["kernel"] + filtered["a"]["bias"]
    w_r, w_i = (block_diagonal(gates["kernel"][:, :, gate]) for gate in (0, 1))
    b_r, b_i = gates["bias"]
    a = sigmoid(-params["cell"]["decay"])
    h, ys = state["h"], []
    for t in range(len(x)):
        x_t = tap_bias + sum(taps[j] * projected[t - j] for j in range(TAPS) if t >= j)
        r, i = sigmoid(x_t @ w_r + b_r), sigmoid(x_t @ w_i + b_i)
        a_t = a ** (8.0 * r)
        h = a_t * h + np.sqrt(1.0 - a_t**2) * (i * x_t)
        ys.append(h)
    branch = gelu(x @ params["gate"]["kernel"])
    return [y * g for y, g in zip(ys, branch)], {"h": h}


ORACLES = {
    "tanh": Oracle(elman(WIDTH, state_width=STATE), elman_loop(np.tanh)),
    "relu": Oracle(elman(WIDTH, state_width=STATE, activation="relu"), elman_loop(lambda x: np.maximum(x, 0.0))),
    "lstm": Oracle(lstm(WIDTH, state_width=STATE), lstm_loop),
    "lstmp": Oracle(lstmp(WIDTH, state_width=STATE, projection=PROJECTION), lstm_loop),
    "gru": Oracle(gru(WIDTH, state_width=STATE), gru_loop),
    "mingru": Oracle(mingru(WIDTH, state_width=STATE), mingru_loop),
    "minlstm": Oracle(minlstm(WIDTH, state_width=STATE), minlstm_loop),
    "rglru": Oracle(rglru(WIDTH, state_width=STATE, taps=TAPS, blocks=BLOCKS), rglru_loop, {"output_gate": "gelu"}),
}


@pytest.mark.parametrize("name", ORACLES)
def test_cell_equals_its_paper(name):
    check_values(ORACLES[name])


@pytest.mark.parametrize("name", ORACLES)
def test_gradient_equals_finite_differences(name):
    check_gradients(ORACLES[name])


def test_conv_equals_a_loop_over_taps():
    mixer = conv(WIDTH, taps=3)
    rng = np.random.default_rng(0)
    params = noise(mixer.init, rng)
    x = normal(rng, 1, LENGTH, WIDTH)
    ids = np.array([[1, 1, 0, 1, 1, 2, 2, 0, 2]], np.int32)
    y, _ = jax.jit(mixer.apply)(params, x, Segments(ids, ids), None)
    taps, bias = (np.asarray(params[name], np.float64) for name in ("depthwise_kernel", "bias"))
    wanted = np.zeros((LENGTH, WIDTH))
    for document in (1, 2):
        places = np.flatnonzero(ids[0] == document)
        for t, place in enumerate(places):
            wanted[place] = bias + sum(taps[j] * x[0, places[t - j]] for j in range(3) if t >= j)
    check_close(np.asarray(y)[0], wanted)


@pytest.mark.parametrize("name", ["mingru", "minlstm", "rglru"])
def test_zero_decay_is_no_memory(name):
    """A cell that forgets everything gives the same for any state that it is given."""
    cell = ORACLES[name].cell
    rng = np.random.default_rng(0)
    if name == "rglru":
        params = {"decay": np.full(STATE, 1e4, np.float32)}
        u = (normal(rng, BATCH, LENGTH, STATE), normal(rng, BATCH, LENGTH, 2, STATE))
    else:
        params, u = {}, normal(rng, BATCH, LENGTH, {"mingru": 2, "minlstm": 3}[name], STATE)
        u[:, :, 0] = {"mingru": 1e4, "minlstm": -1e4}[name]  # all of the update gate, none of the forget gate
    off = np.zeros((BATCH, LENGTH), bool)
    for form in ("sequential", "associative"):
        program = jax.jit(functools.partial(run_cell, cell, form))
        states = ({"h": size * normal(rng, BATCH, STATE)} for size in (0.0, 100.0))
        y, y_other = (program(params, u, off, off, state)[0] for state in states)
        assert np.all(np.asarray(y))
        check_same(y_other, y)


def test_initial_decay_of_rglru_lies_in_its_interval():
    """a^8 = σ(-decay)^8 in [0.9, 0.999]."""
    params = jax.jit(rglru(256).init)(jax.random.key(0))
    radius = sigmoid(-np.asarray(params["decay"], np.float64)) ** 8
    assert 0.9 - 1e-5 < radius.min() < 0.91 and 0.99 < radius.max() < 0.999 + 1e-5


@pytest.mark.parametrize("build", [lambda: rglru(WIDTH, blocks=4), lambda: conv(WIDTH, taps=1)], ids=["blocks", "taps"])
def test_wrong_sizes_are_refused(build):
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value)
