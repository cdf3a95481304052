"""What every cell with a matrix S[K, N] per head for a state has in common: one step and one chunked form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.chunked import decay_rule, delta_rule
from hybrid_flax.typing import Array, Cell, Init, Mixer, Params, State, TokenMask

__all__ = ["Terms", "head_sizes", "make_matrix_cell", "matrix_chunks", "matrix_step", "unit"]


class Terms(NamedTuple):
    """One token, or [B,T] of them, of S_t = diag(exp(log_a)) S_tm1 + p (rᵀ S_tm1) + k vᵀ, y_t = S_tᵀ q.

    q, k, p, r [..., H, K], v [..., H, N], log_a [..., H, K] or [..., H, 1], at most 0; p and r may be None.
    """

    q: Array
    k: Array
    v: Array
    log_a: Array
    p: Array | None = None
    r: Array | None = None


def make_matrix_cell(
    input: Mixer,
    terms: Callable[[Params, Any], Terms],
    sizes: tuple[int, int, int],
    *,
    chunk: int,
    init: Init = lambda key: {},
    read: Callable[[Params, Any, Array], Array] = lambda params, u, y: y,
    enter: Callable[[Array], Array] = lambda s: s,
    value_width: int | None = None,
) -> Cell:
    """A cell from its terms; `terms` and `read` treat leading axes of u alike. Forms: "chunked".

    terms: (params, u) -> `Terms` in the dtype of states. sizes: (H, K, N) of the state. chunk: tokens per chunk.
    read: (params, u, S_tᵀ q) -> y [..., H, value_width], N wide by default. enter: applied to S before each step.
    Raises ValueError for chunk < 1.
    """
    heads, _, width = sizes
    value_width = value_width or width

    def flat(y: Array) -> Array:
        return y.reshape(*y.shape[:-2], heads * value_width)

    def init_state(batch_size: int) -> State:
        return {"s": jnp.zeros((batch_size, *sizes), jnp.float32)}

    def step(params: Params, state: State, u_t: Any) -> tuple[State, Array]:
        s, y = matrix_step(enter(state["s"]), terms(params, u_t))
        return {"s": s}, flat(read(params, u_t, y))

    def chunked(params: Params, u: Any, reset: TokenMask, hold: TokenMask, state: State) -> tuple[Array, State]:
        dtype = jax.tree.leaves(u)[0].dtype
        y, s = matrix_chunks(terms(params, u), reset, hold, enter(state["s"]), chunk, dtype)
        return flat(read(params, u, y)), {"s": s}

    return Cell(input, init, init_state, step, heads * value_width, {"chunked": chunked}, heads)


def matrix_step(s: Array, terms: Terms) -> tuple[Array, Array]:
    """(S_t, S_tᵀ q) of one token per row."""
    after = jnp.exp(terms.log_a)[..., None] * s + terms.k[..., None] * terms.v[..., None, :]
    if terms.p is not None and terms.r is not None:
        after = after + terms.p[..., None] * _read(terms.r, s)[..., None, :]
    return after, _read(terms.q, after)


def matrix_chunks(terms: Terms, reset: Array, hold: Array, s: Array, chunk: int, dtype: Any) -> tuple[Array, Array]:
    """(S_tᵀ q of all tokens, S after the last one) by the rules of `ops.chunked`, products in `dtype`."""
    q, k, v = (part.astype(dtype) for part in terms[:3])
    if terms.p is None or terms.r is None:
        return decay_rule(q, k, v, terms.log_a, reset, hold, s, chunk=chunk)
    p, r = terms.p.astype(dtype), terms.r.astype(dtype)
    return delta_rule(q, k, v, p, r, terms.log_a, reset, hold, s, chunk=chunk)


def head_sizes(
    width: int, num_heads: int, key_width: int | None, head_width: int | None, key_ratio: float = 1.0
) -> tuple[int, int, int]:
    """(H, K, N): head_width (values) is width / num_heads by default, key_width `key_ratio` times head_width.

    Raises ValueError where num_heads does not divide the width and head_width is not given.
    """
    if head_width is None and width % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the width {width}, or head_width be given")
    head_width = width // num_heads if head_width is None else head_width
    key_width = max(1, int(key_ratio * head_width)) if key_width is None else key_width
    return num_heads, key_width, head_width


def unit(x: Array) -> Array:
    """x / |x| over the last axis, with a finite gradient at 0."""
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _read(q: Array, s: Array) -> Array:
    return jnp.einsum("...k,...kn->...n", q, s, precision=lax.Precision.HIGHEST)
