"""Diagonal cells against loops over time in float64, written from the equations of their papers."""

import jax
import numpy as np
import pytest
from cells.oracle import WIDTH, Oracle, check_gradients, check_values, gates_of, sigmoid, silu, softplus

from hybrid_flax.cells.diagonal import hgrn, lru, s5, s6
from hybrid_flax.mixers.registry import make_mixer

STATE, STATE_SIZE, TAPS, RANK = 4, 3, 2, 2


def lru_loop(params, x, state):
    """Orvieto et al. 2023, section 3: x_k = Λ x_{k-1} + γ (B u_k), y_k = Re(C x_k) + D u_k."""
    cell = params["cell"]
    nu, theta, gamma = np.exp(cell["timescale"]), np.exp(cell["phase"]), np.exp(cell["scale"])
    eigenvalues = np.exp(-nu + 1j * theta)
    b, c = complex_matrices(params)
    h, ys = state["h"], []
    for x_t in x:
        h = eigenvalues * h + gamma * (b @ x_t)
        ys.append((c @ h).real + cell["skip"]["scale"] * x_t)
    return ys, {"h": h}


def s5_loop(params, x, state):
    """Smith et al. 2023, equations 1 and 6 and section 3.2, both conjugate halves of the state written out."""
    cell = params["cell"]
    b, twice_c = complex_matrices(params)
    half = -np.exp(cell["decay"]) + 1j * cell["phase"]
    eigenvalues = np.concatenate([half, half.conj()])
    step = np.tile(np.exp(cell["timescale"]), 2)
    b_full = np.concatenate([b, b.conj()])
    c_full = np.concatenate([twice_c, twice_c.conj()], axis=1) / 2.0
    a_bar = np.exp(eigenvalues * step)
    b_bar = ((a_bar - 1.0) / eigenvalues)[:, None] * b_full
    h, ys = np.concatenate([state["h"], state["h"].conj()]), []
    for x_t in x:
        h = a_bar * h + b_bar @ x_t
        y = c_full @ h
        ys.append(y.real + cell["skip"]["scale"] * x_t)
    return ys, {"h": h[: len(half)]}


def complex_matrices(params):
    """B [N, D] and C [D, N]."""
    parts, readout = params["input"]["kernel"], params["cell"]["kernel"]
    num = len(readout) // 2
    return (parts[:, 0] + 1j * parts[:, 1]).T, (readout[:num] - 1j * readout[num:]).T


def hgrn_loop(lower_bound):
    """Qin et al. 2023, section 3.2; with real states where there is no phase."""

    def loop(params, x, state):
        (w_mu, b_mu), *candidates = gates_of(params)
        rotation = np.exp(1j * params["cell"]["phase"]) if "phase" in params["cell"] else 1.0
        h, ys = state["h"], []
        for x_t in x:
            decay = lower_bound + (1.0 - lower_bound) * sigmoid(x_t @ w_mu + b_mu)
            parts = [silu(x_t @ w + b) for w, b in candidates]
            c = parts[0] + 1j * parts[1] if len(parts) == 2 else parts[0]
            h = decay * rotation * h + (1.0 - decay) * c
            ys.append(np.concatenate([h.real, h.imag]) if len(parts) == 2 else h)
        return ys, {"h": h}

    return loop


def s6_loop(params, x, state):
    """Gu & Dao 2023, algorithm 2 and figure 3, channel by channel, with B discretised by Δ B."""
    branch, maps = params["input"]["a"]["a"], params["input"]["b"]
    cell = params["cell"]
    taps, tap_bias = branch["b"]["depthwise_kernel"], branch["b"]["bias"]
    projected = x @ branch["a"]["kernel"]
    a = -np.exp(cell["decay"])
    h, ys = state["h"].copy(), []
    for t in range(len(x)):
        u = silu(tap_bias + sum(taps[j] * projected[t - j] for j in range(TAPS) if t >= j))
        step = softplus(u @ maps["a"]["a"]["kernel"] @ maps["a"]["b"]["kernel"] + cell["timescale"])
        b, c = u @ maps["b"]["kernel"][:, 0], u @ maps["b"]["kernel"][:, 1]
        y = []
        for d in range(len(u)):
            h[d] = np.exp(step[d] * a[d]) * h[d] + step[d] * b * u[d]
            y.append(c @ h[d] + cell["scale"][d] * u[d])
        ys.append(np.array(y) * silu(x[t] @ params["gate"]["kernel"]))
    return ys, {"h": h}


ORACLES = {
    "lru": Oracle(lru(WIDTH, state_width=STATE), lru_loop),
    "s5": Oracle(s5(WIDTH, state_width=STATE), s5_loop),
    "hgrn": Oracle(hgrn(WIDTH, state_width=STATE), hgrn_loop(0.0)),
    "hgrn_bounded": Oracle(hgrn(WIDTH, state_width=STATE, lower_bound=0.4), hgrn_loop(0.4)),
    "hgrn_real": Oracle(hgrn(WIDTH, state_width=STATE, use_phase=False), hgrn_loop(0.0)),
    "s6": Oracle(
        s6(WIDTH, expansion=2, state_size=STATE_SIZE, taps=TAPS, rank=RANK, chunk=4), s6_loop, {"output_gate": "silu"}
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_cell_equals_its_paper(name):
    check_values(ORACLES[name])


@pytest.mark.parametrize("name", ORACLES)
def test_gradient_equals_finite_differences(name):
    check_gradients(ORACLES[name])


@pytest.mark.parametrize("blocks", [1, 2])
def test_s5_starts_from_the_normal_part_of_hippo(blocks):
    """Eigenvalues of HiPPO-LegS plus its rank-one part (Gu et al. 2022, section 3), one of each conjugate pair."""
    state_width = 8
    size = 2 * state_width // blocks
    n, k = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    legs = -np.where(n > k, np.sqrt((2 * n + 1) * (2 * k + 1)), np.where(n == k, n + 1.0, 0.0))
    normal_part = legs + 0.5 * np.sqrt(np.outer(2 * np.arange(size) + 1, 2 * np.arange(size) + 1))
    wanted = np.linalg.eigvals(normal_part)
    wanted = np.repeat(sorted(wanted[wanted.imag > 0], key=np.imag), blocks)
    params = jax.device_get(jax.jit(s5(3, state_width=state_width, blocks=blocks).init)(jax.random.key(0)))
    found = sorted(-np.exp(params["decay"]) + 1j * params["phase"], key=np.imag)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_lru_starts_on_its_ring():
    """|λ| in the interval, phases from 0 to the largest, and γ² + |λ|² = 1."""
    params = jax.device_get(jax.jit(lru(4, state_width=512, max_phase=0.5).init)(jax.random.key(0)))
    radius = np.exp(-np.exp(params["timescale"].astype(np.float64)))
    assert 0.9 - 1e-5 < radius.min() < 0.91 and 0.99 < radius.max() < 0.999 + 1e-5
    assert 0.0 < np.exp(params["phase"]).min() < 0.01 and 0.49 < np.exp(params["phase"]).max() <= 0.5 + 1e-6
    np.testing.assert_allclose(np.exp(2.0 * params["scale"]) + radius**2, 1.0, rtol=1e-5)


def test_s6_starts_with_real_s4d_decays_and_small_steps():
    params = jax.device_get(jax.jit(s6(64).init)(jax.random.key(0)))
    np.testing.assert_allclose(np.exp(params["decay"]), np.tile(np.arange(1.0, 17.0), (128, 1)), rtol=1e-6)
    steps = softplus(params["timescale"].astype(np.float64))
    assert 1e-3 * 0.999 < steps.min() < 2e-3 and 5e-2 < steps.max() < 1e-1 * 1.001


@pytest.mark.parametrize(
    "build",
    [
        lambda: make_mixer("hgrn", WIDTH, lower_bound=1.0),
        lambda: make_mixer("lru", WIDTH, min_radius=0.9, max_radius=0.8),
        lambda: make_mixer("lru", WIDTH, max_phase=0.0),
        lambda: make_mixer("s5", WIDTH, state_width=STATE, blocks=3),
        lambda: make_mixer("s5", WIDTH, min_step=0.0),
        lambda: make_mixer("s6", WIDTH, state_size=0),
        lambda: make_mixer("s6", WIDTH, chunk=0),
    ],
    ids=["bound", "radii", "phase", "blocks", "steps", "sizes", "chunk"],
)
def test_wrong_sizes_are_refused(build):
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value)
