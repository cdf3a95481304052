"""Parallel and deferred forms of a recurrence against the plain loop: values, gradients, resets and holds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid_flax.certify.checks import check_close, check_same, check_zero
from hybrid_flax.certify.subjects import normal
from hybrid_flax.ops.scan import affine_scan, maximum_scan, unroll, unroll_deferred

BATCH, LENGTH, WIDTH = 2, 11, 3
MASKS = st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH)
SEEDS = st.integers(0, 2**32 - 1)
NONE = [False] * (BATCH * LENGTH)
SOME = [bool((t * t) % 3 == 1) for t in range(BATCH * LENGTH)]


def grid(mask):
    return np.array(mask).reshape(BATCH, LENGTH)


def affine_loop(decay, increment, reset, hold, initial, state):
    """h_t = a_t h_tm1 + b_t, a reset in front of the step, a held step left out."""
    h, ys = state, []
    for t in range(LENGTH):
        before = np.where(reset[:, t, None], initial, h)
        h = np.where(hold[:, t, None], h, decay[:, t] * before + increment[:, t])
        ys.append(h)
    return np.stack(ys, axis=1)


@partial(jax.jit, static_argnames="parallel")
def affine_pull(arrays, reset, hold, dy, parallel):
    decay, increment, initial, state = arrays

    def run(decay, increment, initial, state):
        h = affine_scan(decay, increment, reset, hold, initial, state, parallel=parallel)
        return jnp.vdot(dy, h).real, h

    (_, h), gradients = jax.value_and_grad(run, (0, 1, 2, 3), has_aux=True)(decay, increment, initial, state)
    return h, gradients


@jax.jit
def sequential_pull(arrays, reset, hold, dy):
    decay, increment, initial, state = arrays

    def run(decay, increment, initial, state):
        def step(h, u_t):
            h = u_t[0] * h + u_t[1]
            return h, h

        h, last = unroll(step, initial, state, (decay, increment), reset, hold)
        return jnp.vdot(dy, jnp.where(hold[..., None], 0, h)).real, (h, last)

    (_, (h, _)), gradients = jax.value_and_grad(run, (0, 1, 2, 3), has_aux=True)(decay, increment, initial, state)
    return h, gradients


def affine_inputs(seed, turning=False):
    """Decays, increments, the initial and the given state; `turning`: complex ones."""
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0.0, 1.0, (BATCH, LENGTH, WIDTH)).astype(np.float32)
    decay[rng.uniform(size=decay.shape) < 0.1] = 0.0
    arrays = [decay, *(normal(rng, *shape) for shape in (decay.shape, (BATCH, WIDTH), (BATCH, WIDTH)))]
    if turning:
        arrays[0] = arrays[0] * np.exp(1j * normal(rng, *decay.shape))
        arrays[1:] = [array + 1j * normal(rng, *array.shape) for array in arrays[1:]]
        arrays = [array.astype(np.complex64) for array in arrays]
    return tuple(arrays), rng


FORMS = pytest.mark.parametrize(("parallel", "turning"), [(True, False), (False, False), (True, True), (False, True)])


@FORMS
@example(NONE, NONE, 0)
@example(SOME, SOME[::-1], 0)
@given(MASKS, MASKS, SEEDS)
def test_affine_scan_equals_a_loop(parallel, turning, reset, hold, seed):
    """With an initial state that is not zero, and a mask that resets a held step."""
    arrays, _ = affine_inputs(seed, turning)
    h, _ = affine_pull(arrays, grid(reset), grid(hold) & ~grid(reset), arrays[1], parallel)
    wide = jax.tree.map(widen, arrays)
    wanted = affine_loop(wide[0], wide[1], grid(reset), grid(hold) & ~grid(reset), wide[2], wide[3])
    check_close(h, wanted)


@FORMS
@example(NONE, NONE, 0)
@example(SOME, SOME[::-1], 0)
@given(MASKS, MASKS, SEEDS)
def test_affine_scan_has_the_gradients_of_the_sequential_one(parallel, turning, reset, hold, seed):
    """To 1e-5 of float64; a cotangent at a held step is left out, whose output is not defined for `unroll`."""
    arrays, _ = affine_inputs(seed, turning)
    hold = grid(hold) & ~grid(reset)
    dy = np.where(hold[..., None], 0, affine_inputs(seed + 1, turning)[0][1])
    _, gradients = affine_pull(arrays, grid(reset), hold, dy, parallel)
    with jax.enable_x64(True):
        wide = jax.tree.map(widen, (arrays, dy))
        _, wanted = jax.device_get(sequential_pull(wide[0], grid(reset), hold, wide[1]))
    check_close(gradients, wanted)


def widen(array):
    return array.astype(np.promote_types(array.dtype, np.float64))


@example(NONE, NONE, 0)
@example(SOME, SOME[::-1], 0)
@given(MASKS, MASKS, SEEDS)
def test_maximum_scan_equals_a_loop(reset, hold, seed):
    """A hold overrides a reset; a held increment may be anything."""
    (decay, increment, _, state), _ = affine_inputs(seed)
    reset, hold, decay = grid(reset), grid(hold), np.log(decay + 1e-30)
    increment[hold] *= 1e8
    h, wanted = state, []
    for t in range(LENGTH):
        before = np.where(reset[:, t, None], 0.0, h)
        h = np.where(hold[:, t, None], h, np.maximum(decay[:, t] + before, increment[:, t]))
        wanted.append(h)
    check_close(jax.jit(maximum_scan)(decay, increment, reset, hold, state), np.stack(wanted, axis=1))


def test_complex_decays_turn():
    """|a| = 1: a state that turns by a quarter each step comes back after four."""
    decay = np.full((1, 8, 1), 1j, np.complex64)
    off = np.zeros((1, 8), bool)
    zero = np.zeros((1, 1), np.complex64)
    h = jax.jit(affine_scan)(decay, np.zeros_like(decay), off, off, zero, zero + 1)
    check_close(np.asarray(h)[0, :, 0].real, np.array([0, -1, 0, 1, 0, -1, 0, 1.0]), 1e-6)


def recur(params, state):
    return state["h"] @ params["recurrent_kernel"]


def update(params, state, u_t, product):
    """A step that uses its state, its parameters and the product, all of them twice."""
    bias = params["bias"][None]
    gate = jax.nn.sigmoid(product + u_t)
    h = gate * state["h"] + (1.0 - gate) * jnp.tanh(product * bias)
    return {"h": h, "sum": 0.5 * state["sum"] + h}, h * bias + state["sum"]


def plain(params, initial, state, u, reset, hold):
    return unroll(lambda h, u_t: update(params, h, u_t, recur(params, h)), initial, state, u, reset, hold)


def pull(run):
    @jax.jit
    def program(params, initial, state, u, reset, hold, dy, dlast):
        def scalar(params, state, u):
            y, last = run(params, initial, state, u, reset, hold)
            products = jax.tree.map(jnp.vdot, last, dlast)
            return jnp.vdot(y, dy) + sum(jax.tree.leaves(products)), (y, last)

        gradients, values = jax.grad(scalar, (0, 1, 2), has_aux=True)(params, state, u)
        return values, gradients

    return program


PLAIN = pull(plain)
DEFERRED = pull(partial(unroll_deferred, recur, update))


def gated_inputs(seed):
    rng = np.random.default_rng(seed)

    def state():
        return {"h": normal(rng, BATCH, WIDTH), "sum": normal(rng, BATCH, WIDTH)}

    params = {"recurrent_kernel": normal(rng, WIDTH, WIDTH), "bias": normal(rng, WIDTH)}
    u, dy = normal(rng, 2, BATCH, LENGTH, WIDTH)
    return params, state(), state(), u, dy, state()


@example(NONE, NONE, 0)
@example(SOME, NONE, 0)
@example(NONE, SOME, 0)
@example(SOME, SOME[::-1], 0)
@given(MASKS, MASKS, SEEDS)
def test_deferred_gradients_are_those_of_autodiff(reset, hold, seed):
    """In float64, where both can only differ by a fault. No held step has an output that counts."""
    params, initial, state, u, dy, dlast = gated_inputs(seed)
    reset, hold = grid(reset), grid(hold)
    dy = np.where(hold[..., None], 0, dy)
    with jax.enable_x64(True):
        arrays = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, initial, state, u, dy, dlast))
        params, initial, state, u, dy, dlast = arrays
        values, gradients = jax.device_get(DEFERRED(params, initial, state, u, reset, hold, dy, dlast))
        wanted, wanted_gradients = jax.device_get(PLAIN(params, initial, state, u, reset, hold, dy, dlast))
    check_close(values, wanted, 1e-14)
    check_close(gradients, wanted_gradients, 1e-12)


def test_deferred_gradients_where_a_held_step_has_a_cotangent():
    """Nothing masks `y` in a form: the deferred one has to give what autodiff gives there too."""
    params, initial, state, u, dy, dlast = gated_inputs(0)
    masks = grid(SOME), grid(SOME[::-1])
    with jax.enable_x64(True):
        arrays = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, initial, state, u, dy, dlast))
        params, initial, state, u, dy, dlast = arrays
        gradients = jax.device_get(DEFERRED(params, initial, state, u, *masks, dy, dlast)[1])
        wanted = jax.device_get(PLAIN(params, initial, state, u, *masks, dy, dlast)[1])
    check_close(gradients, wanted, 1e-12)


def test_deferred_values_are_those_of_the_loop_bit_for_bit():
    params, initial, state, u, _, _ = gated_inputs(1)
    masks = grid(SOME), grid(SOME[::-1])
    values = jax.jit(partial(unroll_deferred, recur, update))(params, initial, state, u, *masks)
    check_same(values, jax.jit(plain)(params, initial, state, u, *masks))


def test_unroll_counts():
    """A counter, seen by eye: it starts over at a reset and stands still at a hold."""
    reset = np.array([[0, 0, 0, 1, 0, 0, 0, 1]], bool)
    hold = np.array([[0, 0, 1, 0, 0, 1, 1, 0]], bool)

    def step(h, u_t):
        return h + u_t, h

    u = np.ones((1, 8), np.float32)
    y, last = jax.jit(partial(unroll, step))(np.array([10.0], "f"), np.array([5.0], "f"), u, reset, hold)
    assert np.asarray(y)[0, ~hold[0]].tolist() == [5.0, 6.0, 10.0, 11.0, 10.0]
    assert np.asarray(last).tolist() == [11.0]


def test_nothing_flows_through_a_reset():
    """The state before a reset has no gradient from what comes after it, exactly."""
    params, initial, state, u, dy, dlast = gated_inputs(2)
    reset, hold = np.zeros((2, BATCH, LENGTH), bool)
    reset[:, 5] = True
    dy[:, :5] = 0.0
    for program in (PLAIN, DEFERRED):
        _, (_, dstate, du) = program(params, initial, state, u, reset, hold, dy, dlast)
        check_zero((dstate, np.asarray(du)[:, :5]))
        assert np.all(np.asarray(du)[:, 5:])


def test_a_row_of_holds_hands_its_state_through():
    params, initial, state, u, dy, dlast = gated_inputs(3)
    reset, hold = np.zeros((BATCH, LENGTH), bool), np.ones((BATCH, LENGTH), bool)
    for program in (PLAIN, DEFERRED):
        (_, last), (dparams, dstate, du) = program(params, initial, state, u, reset, hold, 0.0 * dy, dlast)
        check_same(last, state)
        check_same(dstate, dlast)
        check_zero((dparams, du))
