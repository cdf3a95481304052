"""What every cell of the form h_t = a_t h_tm1 + b_t has in common: one step and two forms over whole sequences."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.scan import affine_scan, affine_step, unroll
from hybrid_flax.typing import Array, Cell, CellForm, Init, Mixer, Params, State, TokenMask

__all__ = ["make_affine_cell"]


def make_affine_cell(
    input: Mixer,
    coefficients: Callable[[Params, Any], tuple[Any, Any]],
    state_shape: tuple[int, ...],
    init: Init = lambda key: {},
    *,
    readout: Callable[[Params, Any, Any], Any] = lambda params, h, u: h,
    width: int | None = None,
    dtype: Any = jnp.float32,
    chunk: int | None = None,
) -> Cell:
    """A cell from `coefficients(params, u) -> (decay, increment)`, which treats leading axes of u alike.

    y_t = readout(params, h_t, u_t) of `width` entries, one vector h_t of state_shape[-1] by default; leading axes as
    for `coefficients`. dtype: of the state, float32 or complex64. chunk: for states that are too large to be kept for
    every token; the forms run over so many tokens at a time, and make the states of each chunk again for its gradient.
    Forms: "associative", and "scan", one token after the other with all decays and readouts at once, or step by step
    in chunks. Raises ValueError for a chunk below 1.
    """

    def init_state(batch_size: int) -> State:
        return {"h": jnp.zeros((batch_size, *state_shape), dtype)}

    def step(params: Params, state: State, u_t: Any) -> tuple[State, Array]:
        decay, increment = coefficients(params, u_t)
        h = affine_step(decay, state["h"], increment)
        return {"h": h}, readout(params, h, u_t)

    def whole(
        parallel: bool, params: Params, u: Any, reset: TokenMask, hold: TokenMask, state: State
    ) -> tuple[Array, State]:
        decay, increment = coefficients(params, u)
        initial = init_state(reset.shape[0])["h"].astype(state["h"].dtype)
        h = affine_scan(decay, increment, reset, hold, initial, state["h"], parallel=parallel)
        return readout(params, h, u), {"h": h[:, -1]}

    def stepwise(params: Params, u: Any, reset: TokenMask, hold: TokenMask, state: State) -> tuple[Array, State]:
        initial = jax.tree.map(lambda h, leaf: h.astype(leaf.dtype), init_state(reset.shape[0]), state)
        return unroll(partial(step, params), initial, state, u, reset, hold)

    forms: dict[str, CellForm] = {"associative": partial(whole, True), "scan": partial(whole, False)}
    if chunk is not None:
        step = jax.checkpoint(step, prevent_cse=False)
        forms = {"associative": forms["associative"], "scan": stepwise}
        forms = {name: partial(_in_chunks, form, chunk) for name, form in forms.items()}
    return Cell(input, init, init_state, step, width or state_shape[-1], forms)


def _in_chunks(
    form: CellForm, chunk: int, params: Params, u: Any, reset: TokenMask, hold: TokenMask, state: State
) -> tuple[Array, State]:
    """`form`, over `chunk` tokens at a time; what is missing in the last chunk is held."""
    length = reset.shape[1]
    if length <= chunk:
        return form(params, u, reset, hold, state)

    def split(leaf: Array, fill: bool | int = 0) -> Array:
        widths = ((0, 0), (0, -length % chunk)) + ((0, 0),) * (leaf.ndim - 2)
        padded = jnp.pad(leaf, widths, constant_values=fill)
        return jnp.swapaxes(padded.reshape(leaf.shape[0], -1, chunk, *leaf.shape[2:]), 0, 1)

    def body(state: State, xs: tuple[Any, TokenMask, TokenMask]) -> tuple[State, Array]:
        y, state = form(params, *xs, state)
        return state, y

    xs = (jax.tree.map(split, u), split(reset), split(hold, fill=True))
    state, y = lax.scan(jax.checkpoint(body, prevent_cse=False), state, xs)
    return jnp.swapaxes(y, 0, 1).reshape(reset.shape[0], -1, *y.shape[3:])[:, :length], state
