"""Chunked matrix-state rules against loops over time in float64: values, gradients, documents, padding, extremes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

from hybrid_flax.certify.checks import check_close, check_finite, check_zero
from hybrid_flax.certify.subjects import normal
from hybrid_flax.ops.chunked import decay_rule, delta_rule

BATCH, LENGTH, HEADS, KEY, VALUE = 2, 13, 2, 4, 3
RULES = ("decay", "delta")
DECAYS = ("scalar", "vector")


def draw(seed, rule, decays, length=LENGTH, batch=BATCH):
    """Arrays by name, with keys of the delta rule short enough for a stable state; masks; cotangents."""
    rng = np.random.default_rng(seed)
    shape = (batch, length, HEADS)
    arrays = {name: normal(rng, *shape, KEY) for name in ("q", "k")} | {"v": normal(rng, *shape, VALUE)}
    arrays["log_a"] = -rng.exponential(0.3, (*shape, KEY if decays == "vector" else 1)).astype(np.float32)
    arrays["log_a"][rng.uniform(size=arrays["log_a"].shape) < 0.1] = -1e4
    if rule == "delta":
        arrays |= {name: 0.5 * normal(rng, *shape, KEY) for name in ("p", "r")}
    arrays["state"] = normal(rng, batch, HEADS, KEY, VALUE)
    reset, hold = rng.uniform(size=(2, batch, length)) < 0.2
    cotangents = normal(rng, *shape, VALUE), normal(rng, batch, HEADS, KEY, VALUE)
    return arrays, reset, hold, cotangents


def apply_rule(arrays, reset, hold, chunk):
    if "p" in arrays:
        return delta_rule(**arrays, reset=reset, hold=hold, chunk=chunk)
    return decay_rule(**arrays, reset=reset, hold=hold, chunk=chunk)


def apply_loop(arrays, reset, hold):
    """The two equations, one token after another; only its masks are those of the rules."""

    def step(s, xs):
        token, reset_t, hold_t = xs
        before = jnp.where(reset_t[:, None, None, None], 0.0, s)
        after = jnp.exp(token["log_a"])[..., None] * before + token["k"][..., None] * token["v"][..., None, :]
        if "p" in token:
            read = jnp.sum(token["r"][..., None] * before, axis=-2)
            after = after + token["p"][..., None] * read[..., None, :]
        live = ~hold_t[:, None, None, None]
        y = jnp.where(live[..., 0], jnp.sum(token["q"][..., None] * after, axis=-2), 0.0)
        return jnp.where(live, after, s), y

    tokens = {name: array for name, array in arrays.items() if name != "state"}
    swapped = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (tokens, reset, hold))
    last, y = jax.lax.scan(step, arrays["state"], swapped)
    return jnp.swapaxes(y, 0, 1), last


def make_pull(run):
    def pull(arrays, reset, hold, cotangents):
        values, pullback = jax.vjp(lambda arrays: run(arrays, reset, hold), arrays)
        return values, pullback(cotangents)[0]

    return jax.jit(pull)


LOOP = make_pull(apply_loop)


def reference(arrays, reset, hold, cotangents):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), (arrays, cotangents))
        return jax.device_get(LOOP(wide[0], reset, hold, wide[1]))


@pytest.mark.parametrize("chunk", sampled([1, 3, 4, 8, 16], [3, 4]))
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_rule_equals_a_loop(rule, decays, chunk):
    """Values and gradients; 13 tokens are no multiple of a chunk; some decays forget everything."""
    pull = make_pull(partial(apply_rule, chunk=chunk))
    for seed in range(3):
        given = draw(seed, rule, decays)
        check_close(pull(*given), reference(*given))


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_one_token(rule, decays):
    given = draw(0, rule, decays, length=1)
    given = (given[0], np.array([[True], [False]]), np.zeros((BATCH, 1), bool), given[3])
    check_close(make_pull(partial(apply_rule, chunk=64))(*given), reference(*given))


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_nothing_flows_back_from_elsewhere(rule, decays):
    """Of one output to other documents, later tokens and held ones: exactly zero, also for many seeds."""
    pull = make_pull(partial(apply_rule, chunk=8))
    for seed in range(5):
        arrays, reset, hold, (dy, dstate) = draw(seed, rule, decays)
        t = (3 * seed + 1) % LENGTH
        hold[:, t] = False
        document = np.cumsum(reset & ~hold, axis=1)
        may = (document == document[:, [t]]) & ~hold & (np.arange(LENGTH) <= t)
        only = np.zeros_like(dy)
        only[:, t] = dy[:, t]
        _, gradients = pull(arrays, reset, hold, (only, 0 * dstate))
        for name, gradient in gradients.items():
            gradient = np.asarray(gradient)
            check_zero(gradient[document[:, t] > 0] if name == "state" else gradient[~may])
        assert np.any(np.asarray(gradients["v"])[:, t])


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_holds_hand_the_state_through(rule, decays):
    arrays, reset, _, (dy, dstate) = draw(0, rule, decays)
    dirty = {name: array * (1.0 if name == "state" else 1e8) for name, array in arrays.items()}
    hold = np.ones_like(reset)
    (y, last), gradients = make_pull(partial(apply_rule, chunk=4))(dirty, reset, hold, (dy, dstate))
    check_zero((y, np.asarray(last) - arrays["state"], np.asarray(gradients.pop("state")) - dstate, gradients))


@pytest.mark.parametrize("decays", DECAYS)
def test_equal_keys_do_not_amplify(decays):
    """One key for all tokens, where the powers of the matrix of a chunk reach 1e17 and its inverse 2."""
    arrays, reset, hold, cotangents = draw(0, "delta", decays, length=64)
    unit = np.broadcast_to(np.full(KEY, KEY**-0.5, np.float32), arrays["k"].shape)
    arrays |= {"k": 1.9 * unit, "p": -1.9 * unit, "r": unit, "log_a": 0 * arrays["log_a"]}
    given = (arrays, 0 * reset > 0, 0 * hold > 0, cotangents)
    check_close(make_pull(partial(apply_rule, chunk=64))(*given), reference(*given), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("log_a", [-1e4, -1e-6, 0.0])
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_long_sequences_stay_finite(rule, decays, log_a):
    arrays, reset, hold, cotangents = draw(0, rule, decays, length=16_384, batch=1)
    arrays["log_a"] = np.full_like(arrays["log_a"], log_a)
    if rule == "delta":
        arrays["r"] /= np.linalg.norm(arrays["r"], axis=-1, keepdims=True)
        arrays["p"] = -np.exp(log_a) * arrays["r"]
    values, gradients = make_pull(partial(apply_rule, chunk=64))(arrays, reset & False, hold & False, cotangents)
    check_finite((values, gradients))
