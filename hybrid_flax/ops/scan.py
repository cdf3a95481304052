"""Recurrences over time: one sequential unroll, and parallel forms of the affine one.

`reset[b, t]` puts the initial state in front of step t; `hold[b, t]` makes step t leave the state alone.
Documents and padding reach a recurrence in these two masks and nowhere else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Array, Float, Inexact, Params, State, TokenMask

__all__ = ["affine_scan", "affine_step", "maximum_scan", "unroll", "unroll_deferred"]

_Recur: TypeAlias = Callable[[Params, State], Any]
_Update: TypeAlias = Callable[[Params, State, Any, Any], tuple[State, Any]]


def unroll(
    step: Callable[[State, Any], tuple[State, Any]],
    initial: State,
    state: State,
    u: Any,
    reset: TokenMask,
    hold: TokenMask,
) -> tuple[Any, State]:
    """Run `step` over axis 1 of every leaf of u: h_t, y_t = step(h_tm1, u_t).

    initial: the state that a reset puts back; state: the state before the first step.
    Returns (y[B, T, ...], the state after the last step).
    """

    def body(h: State, xs: Any) -> tuple[State, Any]:
        u_t, reset_t, hold_t = xs
        h_new, y_t = step(_select(reset_t, initial, h), u_t)
        return _select(hold_t, h, h_new), y_t

    state, y = lax.scan(body, state, jax.tree.map(_swap, (u, reset, hold)))
    return jax.tree.map(_swap, y), state


def unroll_deferred(
    recur: _Recur,
    update: _Update,
    params: Params,
    initial: State,
    state: State,
    u: Any,
    reset: TokenMask,
    hold: TokenMask,
) -> tuple[Any, State]:
    """`unroll` of update(params, h, u_t, recur(params, h)) whose gradient defers that of `recur`.

    The backward scan only collects the cotangents of the recurrent product; the gradient of its weights is
    then one matrix product over all time steps, in place of one small product a step. Same values as `unroll`.
    `update` may use params too, at the price of summing their gradient step by step.
    """
    return _deferred(recur, update, params, initial, state, u, reset, hold)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _deferred(
    recur: _Recur,
    update: _Update,
    params: Params,
    initial: State,
    state: State,
    u: Any,
    reset: TokenMask,
    hold: TokenMask,
) -> tuple[Any, State]:
    def step(h: State, u_t: Any) -> tuple[State, Any]:
        return update(params, h, u_t, recur(params, h))

    return unroll(step, initial, state, u, reset, hold)


def _deferred_forward(
    recur: _Recur,
    update: _Update,
    params: Params,
    initial: State,
    state: State,
    u: Any,
    reset: TokenMask,
    hold: TokenMask,
) -> tuple[tuple[Any, State], tuple[Any, ...]]:
    def step(h: State, u_t: Any) -> tuple[State, Any]:
        product = recur(params, h)
        h_new, y_t = update(params, h, u_t, product)
        return h_new, (y_t, h, product)

    (y, before, products), last = unroll(step, initial, state, u, reset, hold)
    return (y, last), (params, initial, u, reset, hold, before, products)


def _deferred_backward(
    recur: _Recur, update: _Update, residuals: tuple[Any, ...], cotangents: tuple[Any, State]
) -> tuple[Any, ...]:
    params, initial, u, reset, hold, before, products = residuals
    dy, dlast = cotangents
    turned = _turn(params, 0, -1)  # the pullback reads matrices the other way round: turned once, not at every step

    def body(carry: tuple[State, Params], xs: Any) -> tuple[tuple[State, Params], Any]:
        dh, dparams = carry
        h, u_t, product, reset_t, hold_t, dy_t = xs
        (_, y_t), pullback = jax.vjp(update, params, h, u_t, product)
        dnew = _select(hold_t, jax.tree.map(jnp.zeros_like, dh), dh)
        dparams_t, dbefore, du_t, dproduct = pullback((dnew, dy_t))
        _, recur_pullback = jax.vjp(lambda h: recur(_turn(turned, -1, 0), h), h)
        dbefore = jax.tree.map(jnp.add, dbefore, recur_pullback(dproduct)[0])
        zeros = jax.tree.map(jnp.zeros_like, dbefore)
        dheld = _select(hold_t, dh, zeros)
        dprevious = jax.tree.map(jnp.add, dheld, _select(reset_t, zeros, dbefore))
        return (dprevious, jax.tree.map(jnp.add, dparams, dparams_t)), (du_t, dproduct)

    zeros = jax.tree.map(jnp.zeros_like, params)
    xs = jax.tree.map(_swap, (before, u, products, reset, hold, dy))
    (dstate, dparams), (du, dproducts) = lax.scan(body, (dlast, zeros), xs, reverse=True)
    before_rows = jax.tree.map(lambda h: _swap(h).reshape(-1, *h.shape[2:]), before)
    product_rows = jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), dproducts)
    (drecur,) = jax.vjp(lambda p: recur(p, before_rows), params)[1](product_rows)
    dparams = jax.tree.map(jnp.add, dparams, drecur)
    dinitial = jax.tree.map(jnp.zeros_like, initial)
    return dparams, dinitial, dstate, jax.tree.map(_swap, du), None, None


_deferred.defvjp(_deferred_forward, _deferred_backward)


def affine_step(
    decay: Inexact[Array, "*N"], h: Inexact[Array, "*N"], increment: Inexact[Array, "*N"]
) -> Inexact[Array, "*N"]:
    """decay h + increment. Complex numbers part by part: XLA rounds its own complex product by where it stands."""
    if not jnp.issubdtype(h.dtype, jnp.complexfloating):
        return decay * h + increment
    return lax.complex(
        decay.real * h.real - decay.imag * h.imag + increment.real,
        decay.real * h.imag + decay.imag * h.real + increment.imag,
    )


def affine_scan(
    decay: Inexact[Array, "B T *N"],
    increment: Inexact[Array, "B T *N"],
    reset: TokenMask,
    hold: TokenMask,
    initial: Inexact[Array, "B *N"],
    state: Inexact[Array, "B *N"],
    *,
    parallel: bool = True,
) -> Inexact[Array, "B T *N"]:
    """All h_t = decay_t h_tm1 + increment_t, real or complex.

    A hold is decay 1 and increment 0; a reset is decay 0 with the decayed initial state in the increment.
    parallel: in O(log T) depth (Blelloch 1990; Martin & Cundy 2018, section 2), else one step after the other.
    The gradient is a scan of the same kind in the other direction; it keeps the decays and the states.
    """
    reset, hold = (_expand(mask, decay) for mask in (reset, hold))
    increment = jnp.where(reset, decay * initial[:, None] + increment, increment)
    decay = jnp.where(reset, jnp.zeros_like(decay), decay)
    increment = jnp.where(hold, jnp.zeros_like(increment), increment)
    decay = jnp.where(hold, jnp.ones_like(decay), decay)
    return _affine(parallel, decay, increment, state)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _affine(parallel: bool, decay: Array, increment: Array, state: Array) -> Array:
    return _solve_affine(parallel, decay, increment, state)


def _affine_forward(
    parallel: bool, decay: Array, increment: Array, state: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    h = _solve_affine(parallel, decay, increment, state)
    return h, (decay, state, h)


def _affine_backward(parallel: bool, residuals: tuple[Array, Array, Array], dh: Array) -> tuple[Array, Array, Array]:
    decay, state, h = residuals
    later = jnp.concatenate([decay[:, 1:], jnp.zeros_like(decay[:, :1])], axis=1)
    total = _solve_affine(parallel, later, dh, jnp.zeros_like(state), reverse=True)
    before = jnp.concatenate([state[:, None], h[:, :-1]], axis=1)
    return total * before, total, decay[:, 0] * total[:, 0]


_affine.defvjp(_affine_forward, _affine_backward)


def _solve_affine(parallel: bool, decay: Array, increment: Array, state: Array, reverse: bool = False) -> Array:
    """h_t = decay_t h_tm1 + increment_t from the first time to the last, or from the last to the first."""

    def step(h: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        h = affine_step(xs[0], h, xs[1])
        return h, h

    def compose(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        return early[0] * late[0], affine_step(late[0], early[1], late[1])

    if not parallel:
        return _swap(lax.scan(step, state, (_swap(decay), _swap(increment)), reverse=reverse)[1])
    first = -1 if reverse else 0
    increment = increment.at[:, first].add(decay[:, first] * state)
    return lax.associative_scan(compose, (decay, increment), reverse=reverse, axis=1)[1]


def maximum_scan(
    decay: Float[Array, "B T *N"],
    increment: Float[Array, "B T *N"],
    reset: TokenMask,
    hold: TokenMask,
    state: Float[Array, "B *N"],
) -> Float[Array, "B T *N"]:
    """All h_t = max(decay_t + h_tm1, increment_t) in O(log T) depth; a reset puts h = 0 in front of its token."""
    reset, hold = (_expand(mask, decay) for mask in (reset & ~hold, hold))
    increment = jnp.where(reset, jnp.maximum(decay, increment), increment)
    increment = jnp.where(hold, 0.5 * jnp.finfo(decay.dtype).min, increment)
    decay = jnp.where(hold, jnp.zeros_like(decay), decay)
    given = jnp.where(reset[:, 0], increment[:, 0], jnp.maximum(decay[:, 0] + state, increment[:, 0]))
    increment = increment.at[:, 0].set(given)

    def compose(early: tuple[Array, Array, Array], late: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        h = jnp.where(late[2], late[1], jnp.maximum(early[1] + late[0], late[1]))
        return jnp.where(late[2], late[0], early[0] + late[0]), h, early[2] | late[2]

    return lax.associative_scan(compose, (decay, increment, reset), axis=1)[1]


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _turn(params: Params, source: int, destination: int) -> Params:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, source, destination) if leaf.ndim > 1 else leaf, params)


def _expand(mask: Array, x: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def _select(mask: Array, if_true: State, if_false: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(_expand(mask, b), a, b), if_true, if_false)
