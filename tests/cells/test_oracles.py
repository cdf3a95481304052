"""Every cell against loops over time in float64, written from the equations of its paper."""

import functools

import jax
import jax.numpy as jnp
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
    compare_gradients,
    gates_of,
    gelu,
    recurrent_gates,
    sigmoid,
    standardise,
    widen,
)

from hybrid_flax.cells.diagonal import rglru
from hybrid_flax.cells.gated import elman, gru, lstm, lstmp, mgu, slstm
from hybrid_flax.cells.inputs import conv, shift, window_linear
from hybrid_flax.cells.minimal import indrnn, mingru, minlstm, qrnn, sru
from hybrid_flax.certify.checks import check_close, check_same
from hybrid_flax.certify.subjects import noise, normal
from hybrid_flax.mixers.recurrent import run_cell
from hybrid_flax.mixers.registry import make_mixer
from hybrid_flax.typing import Segments

STATE, PROJECTION, BLOCKS, HEADS, TAPS = 8, 5, 2, 2, 4


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


def peephole_lstm_loop(params, x, state):
    """Gers & Schmidhuber 2000, section 2: the memory enters i and f as it was, o as it is."""
    (w_i, b_i), (w_f, b_f), (w_g, b_g), (w_o, b_o) = gates_of(params)
    r_i, r_f, r_g, r_o = recurrent_gates(params)
    p_i, p_f, p_o = params["cell"]["peephole"]["scale"]
    c, h, ys = state["c"], state["h"], []
    for x_t in x:
        i = sigmoid(x_t @ w_i + h @ r_i + p_i * c + b_i)
        f = sigmoid(x_t @ w_f + h @ r_f + p_f * c + b_f)
        c = f * c + i * np.tanh(x_t @ w_g + h @ r_g + b_g)
        h = sigmoid(x_t @ w_o + h @ r_o + p_o * c + b_o) * np.tanh(c)
        ys.append(h)
    return ys, {"c": c, "h": h}


def normalised_lstm_loop(params, x, state):
    """Ba et al. 2016, equations 20 to 22, each gate normalised by itself."""
    kernels, biases, gains = (params["input"][name] for name in ("kernel", "bias", "scale"))
    cell = params["cell"]
    c, h, ys = state["c"], state["h"], []
    for x_t in x:
        i, f, g, o = (
            standardise(x_t @ kernels[:, k]) * gains[k]
            + standardise(h @ cell["recurrent_kernel"][:, k]) * cell["recurrent_norm"]["scale"][k]
            + biases[k]
            for k in range(4)
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(standardise(c) * cell["memory_norm"]["scale"] + cell["memory_norm"]["bias"])
        ys.append(h)
    return ys, {"c": c, "h": h}


def slstm_loop(forget):
    """Beck et al. 2024, equations 8 to 14: without a stabiliser, which float64 does not need here."""

    def loop(params, x, state):
        (w_i, b_i), (w_f, b_f), (w_z, b_z), (w_o, b_o) = gates_of(params)
        kernel = params["cell"]["recurrent_kernel"]
        r_i, r_f, r_z, r_o = (block_diagonal(kernel[:, :, gate]) for gate in range(4))
        c, n, h = (state[name] for name in "cnh")
        c, n, m, ys = c * np.exp(state["m"]), n * np.exp(state["m"]), state["m"], []
        for x_t in x:
            log_i, f = x_t @ w_i + h @ r_i + b_i, forget(x_t @ w_f + h @ r_f + b_f)
            z, o = np.tanh(x_t @ w_z + h @ r_z + b_z), sigmoid(x_t @ w_o + h @ r_o + b_o)
            c, n = f * c + np.exp(log_i) * z, f * n + np.exp(log_i)
            h = o * c / n
            m = np.maximum(np.log(f) + m, log_i)
            ys.append(h)
        return ys, {"c": c / np.exp(m), "n": n / np.exp(m), "m": m, "h": h}

    return loop


def reached(params, state):
    """A normaliser is at least 1 in every state that the cell can be in."""
    return params, state | {"n": 1.0 + np.abs(state["n"])}


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


def original_gru_loop(params, x, state):
    """Cho et al. 2014, equations 5 to 8: the reset gate multiplies h."""
    (w_r, b_r), (w_z, b_z), (w_n, b_n) = gates_of(params)
    r_r, r_z = recurrent_gates(params)
    r_n = params["cell"]["candidate"]["recurrent_kernel"][:, 0]
    h, ys = state["h"], []
    for x_t in x:
        reset = sigmoid(x_t @ w_r + h @ r_r + b_r)
        update = sigmoid(x_t @ w_z + h @ r_z + b_z)
        h = update * h + (1.0 - update) * np.tanh(x_t @ w_n + b_n + (reset * h) @ r_n)
        ys.append(h)
    return ys, {"h": h}


def mgu_loop(params, x, state):
    """Zhou et al. 2016, equations 7a to 7c."""
    (w_f, b_f), (w_h, b_h) = gates_of(params)
    (r_f,) = recurrent_gates(params)
    r_h = params["cell"]["candidate"]["recurrent_kernel"][:, 0]
    h, ys = state["h"], []
    for x_t in x:
        f = sigmoid(x_t @ w_f + h @ r_f + b_f)
        h = (1.0 - f) * h + f * np.tanh(x_t @ w_h + (f * h) @ r_h + b_h)
        ys.append(h)
    return ys, {"h": h}


def qrnn_loop(params, x, state):
    """Bradbury et al. 2017, equations 1 to 4 with a filter of two tokens."""
    (w_z, b_z), (w_f, b_f), (w_o, b_o) = gates_of(params)
    c, ys = state["h"], []
    before = np.zeros(x.shape[1])
    for x_t in x:
        both = np.concatenate([x_t, before])
        z, f, o = np.tanh(both @ w_z + b_z), sigmoid(both @ w_f + b_f), sigmoid(both @ w_o + b_o)
        c = f * c + (1.0 - f) * z
        ys.append(o * c)
        before = x_t
    return ys, {"h": c}


def sru_loop(params, x, state):
    """Lei et al. 2018, equations 1 to 4 and the scaling of section 3.2 (b = -1 below where the highway is mapped)."""
    (w, b), (w_f, b_f), (w_r, b_r), *mapped = gates_of(params)
    v_f, v_r = params["cell"].get("scale", np.zeros((2, b.size)))
    ((name, c),) = state.items()
    alpha, ys = np.sqrt(1.0 + 2.0 * np.exp(-1.0 if mapped else 0.0)), []
    for x_t in x:
        f = sigmoid(x_t @ w_f + v_f * c + b_f)
        r = sigmoid(x_t @ w_r + v_r * c + b_r)
        c = f * c + (1.0 - f) * (x_t @ w + b)
        highway = x_t @ mapped[0][0] + mapped[0][1] if mapped else x_t
        ys.append(r * c + (1.0 - r) * highway * alpha)
    return ys, {name: c}


def indrnn_loop(params, x, state):
    """Li et al. 2018, equation 2."""
    h, ys = state["h"], []
    for x_t in x:
        h = np.maximum(x_t @ params["input"]["kernel"] + params["input"]["bias"] + params["cell"]["scale"] * h, 0.0)
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
    "peephole": Oracle(lstm(WIDTH, state_width=STATE, peephole=True), peephole_lstm_loop),
    "layer_norm": Oracle(lstm(WIDTH, state_width=STATE, layer_norm=True), normalised_lstm_loop),
    "gru": Oracle(gru(WIDTH, state_width=STATE), gru_loop),
    "reset_before": Oracle(gru(WIDTH, state_width=STATE, reset_after=False), original_gru_loop),
    "mgu": Oracle(mgu(WIDTH, state_width=STATE), mgu_loop),
    "slstm": Oracle(slstm(WIDTH, state_width=STATE, num_heads=HEADS), slstm_loop(sigmoid), prepare=reached),
    "slstm_exp": Oracle(
        slstm(WIDTH, state_width=STATE, num_heads=HEADS, forget_gate="exp"), slstm_loop(np.exp), prepare=reached
    ),
    "mingru": Oracle(mingru(WIDTH, state_width=STATE), mingru_loop),
    "minlstm": Oracle(minlstm(WIDTH, state_width=STATE), minlstm_loop),
    "qrnn": Oracle(qrnn(WIDTH, state_width=STATE), qrnn_loop),
    "sru": Oracle(sru(WIDTH), sru_loop),
    "sru_mapped": Oracle(sru(WIDTH, state_width=STATE, highway_bias=-1.0), sru_loop),
    "sru_affine": Oracle(sru(WIDTH, peephole=False), sru_loop),
    "indrnn": Oracle(indrnn(WIDTH, state_width=STATE), indrnn_loop),
    "rglru": Oracle(rglru(WIDTH, state_width=STATE, taps=TAPS, blocks=BLOCKS), rglru_loop, {"output_gate": "gelu"}),
}


@pytest.mark.parametrize("name", ORACLES)
def test_cell_equals_its_paper(name):
    check_values(ORACLES[name])


@pytest.mark.parametrize("name", ORACLES)
def test_gradient_equals_finite_differences(name):
    check_gradients(ORACLES[name])


def conv_loop(params, tokens):
    return params["bias"] + sum(tap * token for tap, token in zip(params["depthwise_kernel"], tokens))


def window_loop(params, tokens):
    return np.tensordot(np.concatenate(tokens[:3]), params["kernel"], 1) + params["bias"]


def shift_loop(params, tokens):
    """Peng et al. 2023, equations 11 to 13, with μ the share of the token before."""
    return np.stack([(1.0 - mu) * tokens[0] + mu * tokens[1] for mu in params["scale"]])


WINDOWS = {
    "conv": (conv(WIDTH, taps=4), conv_loop),
    "window_linear": (window_linear(WIDTH, (2, STATE), taps=3), window_loop),
    "shift": (shift(WIDTH, 2), shift_loop),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_window_equals_a_loop_over_its_tokens(name):
    """loop(params, [x_t, x_{t-1}, ...]), zeros where the document has none; values and gradients."""
    mixer, loop = WINDOWS[name]
    rng = np.random.default_rng(0)
    params, x = noise(mixer.init, rng), normal(rng, 1, LENGTH, WIDTH)
    ids = np.array([[1, 1, 0, 1, 1, 2, 2, 0, 2]], np.int32)
    live = (ids > 0)[0]

    def run(params, x):
        return mixer.apply(params, x, Segments(jnp.asarray(ids), jnp.asarray(ids)), None)[0]

    def run_loop(params, x):
        ys = {}
        for document in (1, 2):
            places = np.flatnonzero(ids[0] == document)
            for t, place in enumerate(places):
                past = list(x[0, places[t::-1]]) + [np.zeros(WIDTH)] * 3
                ys[int(place)] = loop(params, past)
        return np.stack([ys[place] for place in np.flatnonzero(live)])

    y = np.asarray(jax.jit(run)(params, x))[0, live]
    check_close(y, run_loop(*widen((params, x))))
    dy = rng.standard_normal(y.shape)
    compare_gradients(
        lambda params, x: jnp.vdot(run(params, x)[0][live], dy),
        lambda params, x: np.vdot(run_loop(params, x), dy),
        (params, x),
        rng,
    )


@pytest.mark.parametrize("build", [lstm, lstmp, slstm])
def test_the_forget_gate_is_open_at_first(build):
    """Its bias, the second of the gates in the order i, f, g, o (z and o for sLSTM), is 1, and the others are 0."""
    cell = build(WIDTH, state_width=STATE)
    bias = np.asarray(jax.jit(cell.input.init)(jax.random.key(0))["bias"])
    wanted = np.zeros((4, STATE), np.float32)
    wanted[1] = 1.0
    assert np.array_equal(bias.reshape(4, -1), wanted)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_starts_from_nothing(forget_gate):
    """With a memory that no weight speaks for, h_1 = o z, whatever the gates; n_t is 1 or more ever after."""
    cell = slstm(WIDTH, state_width=STATE, num_heads=HEADS, forget_gate=forget_gate)
    rng = np.random.default_rng(0)
    u = 30.0 * normal(rng, BATCH, LENGTH, 4, STATE)
    params, off = noise(cell.init, rng), np.zeros((BATCH, 1), bool)
    run = jax.jit(functools.partial(run_cell, cell, "sequential"))
    state, wide = cell.init_state(BATCH), u.astype(np.float64)
    for t in range(LENGTH):
        y, state = run(params, u[:, t : t + 1], off, off, state)
        assert np.all(np.asarray(state["n"]) >= 1.0)
        if t == 0:
            check_close(np.asarray(y)[:, 0], np.tanh(wide[:, 0, 2]) * sigmoid(wide[:, 0, 3]))


@pytest.mark.parametrize("name", ["mingru", "minlstm", "qrnn", "rglru"])
def test_zero_decay_is_no_memory(name):
    """A cell that forgets everything gives the same for any state that it is given."""
    cell = ORACLES[name].cell
    rng = np.random.default_rng(0)
    if name == "rglru":
        params = {"decay": np.full(STATE, 1e4, np.float32)}
        u = (normal(rng, BATCH, LENGTH, STATE), normal(rng, BATCH, LENGTH, 2, STATE))
    else:
        gates, gate, value = {"mingru": (2, 0, 1e4), "minlstm": (3, 0, -1e4), "qrnn": (3, 1, -1e4)}[name]
        params, u = {}, normal(rng, BATCH, LENGTH, gates, STATE)
        u[:, :, gate] = value  # all of the update gate, none of the forget gate
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


@pytest.mark.parametrize(
    "build",
    [
        lambda: make_mixer("rglru", WIDTH, blocks=4),
        lambda: make_mixer("conv", WIDTH, taps=1),
        lambda: make_mixer("qrnn", WIDTH, taps=0),
        lambda: make_mixer("slstm", WIDTH, num_heads=4),
        lambda: make_mixer("slstm", WIDTH, num_heads=1, forget_gate="relu"),
        lambda: make_mixer("tanh", WIDTH, activation="sine"),
    ],
)
def test_wrong_options_are_refused(build):
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value)
