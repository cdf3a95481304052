"""Matrix-state cells against loops over time in float64, written from the equations of their papers."""

import jax
import numpy as np
import pytest
from cells.oracle import Oracle, check_gradients, check_values, sigmoid, silu, softplus, standardise
from sampling import sampled

from hybrid_flax.cells.delta import deltanet, gdn, rwkv7
from hybrid_flax.cells.inputs import rotary
from hybrid_flax.cells.linear_attention import gla, hgrn2, linattn, mlstm, retnet, ssd
from hybrid_flax.certify.checks import check_close
from hybrid_flax.certify.subjects import normal
from hybrid_flax.mixers.registry import make_mixer
from hybrid_flax.typing import Segments

WIDTH, HEADS, KEYS, VALUES, TAPS, CHUNK = 6, 2, 4, 3, 3, 4
SIZES = {"num_heads": HEADS, "key_width": KEYS, "head_width": VALUES, "chunk": CHUNK}


def per_head(step, state, tokens):
    """y_1, ... and the last state where step(head, state of a head, token) -> (state, y of the head)."""
    ys = []
    for token in tokens:
        pairs = [step(h, jax.tree.map(lambda leaf, h=h: leaf[h], state), token) for h in range(HEADS)]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *(after for after, _ in pairs))
        ys.append(np.concatenate([y for _, y in pairs]))
    return ys, state


def head_maps(projected, h, *widths):
    """The maps of head h of one token, in order."""
    return np.split(projected[h], np.cumsum(widths)[:-1])


def normed(ys, params, norm):
    """Every head normalised by itself, with the gain and bias of each feature."""
    scale, bias, out = params["norm"]["scale"], params["norm"].get("bias", 0.0), []
    for y in ys:
        heads = np.split(y, HEADS)
        heads = [standardise(h) if norm == "layer" else h / np.sqrt(np.mean(h**2) + 1e-6) for h in heads]
        out.append(np.concatenate(heads) * scale + bias)
    return out


def gated(ys, params, x, activation):
    return [y * activation(x_t @ params["gate"]["kernel"]) for y, x_t in zip(ys, x)]


def project(x, kernel):
    return np.tensordot(x, kernel, (-1, 0))


def filtered(params, x):
    """silu of the short convolution of x W, zeros before the first token."""
    projected, taps = x @ params["a"]["kernel"], params["b"]["depthwise_kernel"]
    rows = [sum(taps[j] * projected[t - j] for j in range(len(taps)) if t >= j) for t in range(len(x))]
    return silu(np.stack(rows) + params["b"]["bias"])


def linattn_loop(params, x, state):
    """Katharopoulos et al. 2020, equations 16 to 20."""

    def phi(x):
        return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1) + 1

    def step(h, state, token):
        q, k, v = head_maps(token, h, KEYS, KEYS, VALUES)
        s, z = state["s"][:, :-1], state["s"][:, -1]
        s, z = s + np.outer(phi(k), v), z + phi(k)
        return {"s": np.column_stack([s, z])}, phi(q) @ s / (phi(q) @ z + 1e-6)

    return per_head(step, state, project(x, params["input"]["kernel"]))


def positive_normaliser(params, state):
    s = state["s"].copy()
    s[..., -1] = np.abs(s[..., -1])
    return params, {"s": s}


def rotated(x, position):
    """Su et al. 2021, equation 34: pairs (i, i + K/2)."""
    half = len(x) // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    left, right = x[:half], x[half:]
    return np.concatenate([left * np.cos(angle) - right * np.sin(angle), left * np.sin(angle) + right * np.cos(angle)])


def retnet_loop(params, x, state):
    """Sun et al. 2023, equations 6 and 8."""

    def step(h, state, token):
        t, maps = token
        q, k, v = head_maps(maps, h, KEYS, KEYS, VALUES)
        s = (1 - 2.0 ** (-5 - h)) * state["s"] + np.outer(rotated(k, t) / np.sqrt(KEYS), v)
        return {"s": s}, rotated(q, t) @ s

    ys, state = per_head(step, state, list(enumerate(project(x, params["input"]["a"]["kernel"]))))
    return gated(normed(ys, params, "layer"), params, x, silu), state


def gla_loop(params, x, state):
    """Yang et al. 2024, equation 3 and section 4.4."""
    low_rank = params["input"]["b"]
    gates = project(x @ low_rank["a"]["kernel"], low_rank["b"]["kernel"]) + low_rank["b"]["bias"]

    def step(h, state, token):
        maps, gate = token
        q, k, v = head_maps(maps, h, KEYS, KEYS, VALUES)
        s = (sigmoid(gate[h]) ** (1 / 16))[:, None] * state["s"] + np.outer(k, v)
        return {"s": s}, q @ s / np.sqrt(KEYS)

    ys, state = per_head(step, state, list(zip(project(x, params["input"]["a"]["kernel"]), gates)))
    return gated(normed(ys, params, "layer"), params, x, silu), state


def hgrn2_loop(lower_bound):
    """Qin et al. 2024, section 3."""

    def loop(params, x, state):
        def step(h, state, token):
            o, f, i = head_maps(token, h, KEYS, KEYS, VALUES)
            forget = lower_bound + (1 - lower_bound) * sigmoid(f)
            s = forget[:, None] * state["s"] + np.outer(1 - forget, silu(i))
            return {"s": s}, sigmoid(o) @ s

        maps = project(x, params["input"]["kernel"]) + params["input"]["bias"]
        ys, state = per_head(step, state, maps)
        return normed(ys, params, "rms"), state

    return loop


def ssd_loop(groups):
    """Dao & Gu 2024, section 7 and listing 1: the recurrence h = exp(ΔA) h + Δ B x, y = C h + D x."""

    def loop(params, x, state):
        channels = filtered(params["input"]["a"], x)
        rates = softplus(x @ params["input"]["b"]["kernel"] + params["cell"]["timescale"])

        def step(h, state, token):
            channel, rate = token
            inner, b, c = np.split(channel, np.cumsum([HEADS * VALUES, groups * KEYS]))
            inner = inner.reshape(HEADS, VALUES)[h]
            b, c = (part.reshape(groups, KEYS)[h * groups // HEADS] for part in (b, c))
            decay = np.exp(-rate[h] * np.exp(params["cell"]["decay"][h]))
            s = decay * state["s"] + rate[h] * np.outer(b, inner)
            return {"s": s}, c @ s + params["cell"]["scale"][h] * inner

        ys, state = per_head(step, state, list(zip(channels, rates)))
        return gated(normed(ys, params, "rms"), params, x, silu), state

    return loop


def mlstm_loop(params, x, state):
    """Beck et al. 2024, equations 19 to 27 without the stabiliser; the state is divided by exp(m) of equation 15."""
    maps, gates = (project(x, part["kernel"]) + part["bias"] for part in (params["input"]["a"], params["input"]["b"]))

    def step(h, state, token):
        q, k, v = head_maps(token[0], h, KEYS, KEYS, VALUES)
        i, f = token[1][:, h]
        c, n = (state[name] * np.exp(state["m"]) for name in ("c", "n"))
        k = k / np.sqrt(KEYS)
        c = sigmoid(f) * c + np.exp(i) * np.outer(k, v)
        n = sigmoid(f) * n + np.exp(i) * k
        m = max(np.log(sigmoid(f)) + state["m"], i)
        return {"c": c * np.exp(-m), "n": n * np.exp(-m), "m": m}, q @ c / max(abs(n @ q), 1.0)

    ys, state = per_head(step, state, list(zip(maps, gates)))
    return gated(ys, params, x, sigmoid), state


def unit(x):
    return x / np.sqrt(x @ x + 1e-6)


def deltanet_loop(largest, taps):
    """Yang et al. 2024b, equations 1 and 2 of section 2: S = S (I - β k kᵀ) + β v kᵀ, here transposed."""

    def loop(params, x, state):
        features, rates = params["input"]["a"], params["input"]["b"]["kernel"]
        maps = filtered(features, x) if taps else silu(x @ features["kernel"])

        def step(h, state, token):
            q, k, v = head_maps(token[0].reshape(HEADS, -1), h, KEYS, KEYS, VALUES)
            q, k, beta = unit(q), unit(k), largest * sigmoid(token[1][h])
            s = (np.eye(KEYS) - beta * np.outer(k, k)) @ state["s"] + beta * np.outer(k, v)
            return {"s": s}, q @ s

        ys, state = per_head(step, state, list(zip(maps, x @ rates)))
        return normed(ys, params, "rms"), state

    return loop


def gdn_loop(largest):
    """Yang et al. 2025, equation 10."""

    def loop(params, x, state):
        gates = project(x, params["input"]["b"]["kernel"])

        def step(h, state, token):
            q, k, v = head_maps(token[0].reshape(HEADS, -1), h, KEYS, KEYS, VALUES)
            q, k, beta = unit(q), unit(k), largest * sigmoid(token[1][1, h])
            rate = softplus(token[1][0, h] + params["cell"]["timescale"][h])
            alpha = np.exp(-np.exp(params["cell"]["decay"][h]) * rate)
            s = alpha * (np.eye(KEYS) - beta * np.outer(k, k)) @ state["s"] + beta * np.outer(k, v)
            return {"s": s}, q @ s

        ys, state = per_head(step, state, list(zip(filtered(params["input"]["a"], x), gates)))
        return gated(normed(ys, params, "rms"), params, x, silu), state

    return loop


def rwkv7_loop(params, x, state):
    """Peng et al. 2025, section 4.1, with the state transposed."""
    mu, maps, cell = params["input"]["a"]["scale"], params["input"]["b"], params["cell"]
    full, down, up = (maps[name]["kernel"] for name in ("full", "down", "up"))
    bias_d, bias_a = maps["up"]["bias"]
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])

    def step(h, state, token):
        x_t, x_before = token
        x_r, x_k, x_v, x_d, x_a, x_g = (x_t + mu[i] * (x_before - x_t) for i in range(6))
        r, k, v = x_r @ full[:, 0], x_k @ full[:, 1], x_v @ full[:, 2]
        d = np.tanh(x_d @ down[:, 0]) @ up[:, 0] + bias_d
        a = sigmoid(x_a @ down[:, 1] @ up[:, 1] + bias_a)
        g = sigmoid(x_g @ down[:, 2]) @ up[:, 2]
        r, k, v, d, a, g = (part.reshape(HEADS, VALUES)[h] for part in (r, k, v, d, a, g))
        w = np.exp(-np.exp(-0.5) * sigmoid(d))
        removal = unit(k * cell["removal"]["scale"][h])
        replacement = k * (1 + cell["replacement"]["scale"][h] * (a - 1))
        s = (np.diag(w) - np.outer(a * removal, removal)) @ state["s"] + np.outer(replacement, v)
        scale, bias = (params["norm"][name].reshape(HEADS, VALUES)[h] for name in ("scale", "bias"))
        o = standardise(r @ s) * scale + bias
        return {"s": s}, g * (o + (r @ (cell["bonus"]["scale"][h] * replacement)) * v)

    return per_head(step, state, list(zip(x, before)))


LAYER_SILU = {"output_norm": "layer", "output_gate": "silu"}
SIGMOID = {"output_gate": "sigmoid"}  # a norm would take out what n does
RMS, RMS_SILU = {"output_norm": "rms"}, {"output_norm": "rms", "output_gate": "silu"}
SSD = {"num_heads": HEADS, "head_width": VALUES, "state_width": KEYS, "taps": TAPS, "chunk": CHUNK}
NEGATIVE = {"negative_eigenvalues": True}

CASES = {
    "linattn": (linattn, SIZES, linattn_loop, {}),
    "retnet": (retnet, SIZES, retnet_loop, LAYER_SILU),
    "gla": (gla, SIZES | {"gate_rank": 2}, gla_loop, LAYER_SILU),
    "hgrn2": (hgrn2, SIZES, hgrn2_loop(0.0), RMS),
    "hgrn2-bound": (hgrn2, SIZES | {"lower_bound": 0.3}, hgrn2_loop(0.3), RMS),
    "ssd": (ssd, SSD, ssd_loop(1), RMS_SILU),
    "ssd-groups": (ssd, SSD | {"groups": 2}, ssd_loop(2), RMS_SILU),
    "mlstm": (mlstm, SIZES | {"forget_bias": 1.0}, mlstm_loop, SIGMOID),
    "deltanet": (deltanet, SIZES | {"taps": TAPS}, deltanet_loop(1.0, TAPS), RMS),
    "deltanet-negative": (deltanet, SIZES | NEGATIVE | {"taps": None}, deltanet_loop(2.0, None), RMS),
    "gdn": (gdn, SIZES | {"taps": TAPS}, gdn_loop(1.0), RMS_SILU),
    "gdn-negative": (gdn, SIZES | NEGATIVE | {"taps": TAPS}, gdn_loop(2.0), RMS_SILU),
    "rwkv7": (
        rwkv7,
        {"num_heads": HEADS, "head_width": VALUES, "rank": 2, "chunk": CHUNK},
        rwkv7_loop,
        {"output_norm": "layer"},
    ),
}


def oracle(name, form):
    build, options, loop, mixing = CASES[name]
    made = Oracle(build(WIDTH, **options), loop, mixing | {"form": form})
    return made._replace(prepare=positive_normaliser) if name == "linattn" else made


@pytest.mark.parametrize("form", ["sequential", "chunked"])
@pytest.mark.parametrize("name", CASES)
def test_cell_equals_its_paper(name, form):
    check_values(oracle(name, form))


@pytest.mark.parametrize("form", sampled(["sequential", "chunked"], ["chunked"]))
@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name, form):
    check_gradients(oracle(name, form))


def test_rotations_are_by_position():
    """Queries and keys turn, values do not."""
    rng = np.random.default_rng(0)
    x = normal(rng, 1, 3, HEADS, 2 * KEYS + VALUES)
    places = np.array([[5, 0, 11]], np.int32)
    y, _ = jax.jit(rotary(KEYS).apply)({}, x, Segments(1 + 0 * places, places))
    for t, place in enumerate(places[0]):
        for h in range(HEADS):
            q, k, v = np.split(x[0, t, h].astype(np.float64), (KEYS, 2 * KEYS))
            check_close(np.asarray(y)[0, t, h], np.concatenate([rotated(q, place), rotated(k, place), v]))


@pytest.mark.parametrize(
    "name, options",
    [
        ("gla", {"num_heads": 5}),
        ("gla", {"num_heads": 0}),
        ("gla", {"key_width": 0}),
        ("retnet", {"key_width": 3}),
        ("hgrn2", {"lower_bound": 1.0}),
        ("ssd", {"groups": 3}),
        ("mlstm", {"chunk": 0}),
        ("deltanet", {"chunk": 0}),
        ("deltanet", {"taps": 1}),
    ],
)
def test_wrong_sizes_are_refused(name, options):
    with pytest.raises(ValueError) as caught:
        make_mixer(name, 16, **options)
    assert "\n" not in str(caught.value)
