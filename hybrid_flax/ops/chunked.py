"""Matrix-state recurrences in chunks: matrix products inside a chunk, a scan over the states between chunks.

The state S[K, N] of a head is read and written along K. Every exponent is a sum of log decays, never a difference
of two sums: it is at most 0 and keeps its precision beside a decay of nothing. Pairs of tokens of different documents
and of the future are masked where they are made, so that their gradients are exactly zero.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Array, Bool, Float, Heads, HeadStates, HeadValues, TokenMask, state_dtype

__all__ = ["decay_rule", "delta_rule"]

_Dot: TypeAlias = Callable[[str, Array, Array], Array]
_Pairs: TypeAlias = tuple[list[list[Array]], Sequence[Array], Array, Array]  # see `_pair_scalar`


def decay_rule(
    q: Heads,
    k: Heads,
    v: HeadValues,
    log_a: Float[Array, "B T H A"],
    reset: TokenMask,
    hold: TokenMask,
    state: HeadStates,
    *,
    chunk: int = 64,
) -> tuple[HeadValues, HeadStates]:
    """S_t = diag(exp(log_a_t)) S_tm1 + k_t v_tᵀ, y_t = S_tᵀ q_t, in chunks (Yang et al. 2024, section 4).

    log_a: at most 0, one per head (A = 1) or one per key feature (A = K), in the dtype of the state.
    reset: S = 0 in front of the token. hold: the token leaves S alone and reads 0; it overrides a reset.
    chunk: tokens per chunk, rounded up to a power of two; values do not depend on it. Products are done in the dtype
    of q, sums in that of the state. Returns (y, the state after the last token).
    """
    return _run(q, k, v, None, log_a, reset, hold, state, chunk)


def delta_rule(
    q: Heads,
    k: Heads,
    v: HeadValues,
    p: Heads,
    r: Heads,
    log_a: Float[Array, "B T H A"],
    reset: TokenMask,
    hold: TokenMask,
    state: HeadStates,
    *,
    chunk: int = 64,
) -> tuple[HeadValues, HeadStates]:
    """S_t = diag(exp(log_a_t)) S_tm1 + p_t (r_tᵀ S_tm1) + k_t v_tᵀ, y_t = S_tᵀ q_t, in chunks.

    With z_t = S_tm1ᵀ r_t this is a decay rule that also writes p_t z_tᵀ; inside a chunk the z solve a unit lower
    triangular system (Yang et al. 2024b, section 3: the WY representation by the UT transform). The arguments are
    those of `decay_rule`.
    """
    return _run(q, k, v, (p, r), log_a, reset, hold, state, chunk)


def _run(
    q: Heads,
    k: Heads,
    v: HeadValues,
    removal: tuple[Heads, Heads] | None,
    log_a: Float[Array, "B T H A"],
    reset: TokenMask,
    hold: TokenMask,
    state: HeadStates,
    chunk: int,
) -> tuple[HeadValues, HeadStates]:
    batch, length, heads, _ = q.shape
    size = 1 << (min(chunk, length) - 1).bit_length()
    cut, dot = partial(_cut, hold, size), partial(_dot, q.dtype)
    document = jnp.cumsum(cut(jnp.broadcast_to(reset[..., None, None], (*q.shape[:3], 1))), axis=1, dtype=jnp.int32)
    same = document == jnp.swapaxes(document, 1, 2)
    opened = document == 0  # reached by the state before the chunk
    reaching = document == document[:, -1:]  # reaches the state after it
    q, k, v, log_a = cut(q), cut(k), cut(v), cut(log_a)
    reads, writes = [q], [k]
    if removal is not None:
        p, r = map(cut, removal)
        reads, writes = [q, r], [k, p]

    pair = _pair_scalar if log_a.shape[-1] == 1 else _pair_vector
    scores, starts, rest, total = pair(dot, reads, writes, log_a, same)
    # The first read is of the state after its token has written, the second of the state before.
    scores = [[jnp.where(jnp.tril(same, -i), score, 0) for score in row] for i, row in enumerate(scores)]
    of_state = [jnp.where(opened, read.astype(start.dtype) * jnp.exp(start), 0) for read, start in zip(reads, starts)]
    to_state = [jnp.where(reaching, write.astype(rest.dtype) * jnp.exp(rest), 0) for write in writes]
    keep = jnp.where(opened[:, -1], jnp.exp(total), 0)[..., None]
    chunks = [keep, dot("gck,gcn->gkn", to_state[0], v)]
    if removal is not None:
        known = jnp.concatenate([of_state[1], dot("gij,gjn->gin", scores[1][0], v)], axis=-1)
        chunks += [to_state[1], *jnp.split(_solve(scores[1][1], known), (q.shape[-1],), axis=-1)]

    def body(s: Array, xs: list[Array]) -> tuple[Array, tuple[Array, ...]]:
        keep, increment, *removed = xs
        after = keep * s + increment
        if not removed:
            return after, (s,)
        p, of_s, of_values = removed
        z = of_values + dot("gck,gkn->gcn", of_s, s)
        return after + dot("gck,gcn->gkn", p, z), (s, z)

    num_chunks = -(-length // size)
    xs = [x.reshape(num_chunks, batch * heads, *x.shape[1:]) for x in chunks]
    last, seen = lax.scan(body, state.reshape(batch * heads, *state.shape[2:]), xs)
    before, *z = (x.reshape(-1, *x.shape[2:]) for x in seen)
    y = dot("gck,gkn->gcn", of_state[0], before)
    for score, values in zip(scores[0], (v, *z)):
        y = y + dot("gij,gjn->gin", score, values)
    y = jnp.transpose(y.reshape(num_chunks, batch, heads, size, -1), (1, 0, 3, 2, 4))
    return y.reshape(batch, num_chunks * size, heads, -1)[:, :length], last.reshape(state.shape)


# Everything below has one batch axis g, of chunks, rows and heads: jaxlib 0.10.2 fails on products of seven axes on a
# CPU (jax-ml/jax issue 39257), and plain batches of matrices are what every device does best.


def _cut(hold: TokenMask, size: int, x: Float[Array, "B T H F"] | Bool[Array, "B T H F"]) -> Array:
    """x[B,T,H,F] in chunks [g,C,F], zero where held and behind the end."""
    x = jnp.where(hold[..., None, None], jnp.zeros((), x.dtype), x)
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.transpose(x, (1, 0, 3, 2, 4)).reshape(-1, size, x.shape[-1])


def _dot(dtype: Any, equation: str, a: Array, b: Array) -> Array:
    """A product of operands in `dtype`, summed in the dtype of states; float32 stays float32 on accelerators."""
    wide = jnp.dtype(state_dtype(dtype))
    precision = lax.Precision.HIGHEST if wide == dtype else None
    return jnp.einsum(equation, a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=wide)


# The decayed products of all pairs of a chunk, of reads (the first of the state after its token has written, the
# second of the state before) and writes. Each way returns scores[read][write] of [g,C,C], still to be masked, and log
# decays [g,C,A]: from the start of the chunk to each read, from each write to the end, and [g,A] of the whole.


def _pair_scalar(dot: _Dot, reads: list[Array], writes: list[Array], log_a: Array, same: Array) -> _Pairs:
    """One decay per head: a table of its sums between all pairs, beside one product."""
    size, exact = log_a.shape[1], partial(_dot, log_a.dtype)
    lower = jnp.tril(jnp.ones((size, size), log_a.dtype))
    between = exact("it,gtj->gij", lower, jnp.where(jnp.tril(same, -1), log_a, 0))
    start = exact("it,gta->gia", lower, log_a)
    rest = exact("tj,gta->gja", jnp.tril(lower, -1), log_a)
    products = _all_products(dot, reads, writes)
    scores = [[score * jnp.exp(table) for score in row] for row, table in zip(products, (between, _later(between)))]
    return scores, (start, _later(start)), rest, start[:, -1]


def _pair_vector(dot: _Dot, reads: list[Array], writes: list[Array], log_a: Array, same: Array) -> _Pairs:
    """One decay per feature, by halves: what the second half of a block reads of the first is decayed to their border
    from both sides, so that it is a product; then blocks of twice the length.
    """
    del same
    num_groups, size, width = log_a.shape
    zeros = jnp.zeros((num_groups * size, 1, 1), log_a.dtype)
    own = [jnp.sum((reads[0] * write).astype(log_a.dtype), axis=-1).reshape(zeros.shape) for write in writes]
    scores = [own, [zeros for _ in writes]][: len(reads)]
    start = [log_a, jnp.zeros_like(log_a)]
    rest, total, half = jnp.zeros_like(log_a), log_a, 1
    while half < size:

        def halves(x: Array, half: int = half) -> Array:
            return jnp.moveaxis(x.reshape(-1, 2, half, width), 1, 0)

        left = [halves(read)[1].astype(log_a.dtype) * jnp.exp(halves(decay)[1]) for read, decay in zip(reads, start)]
        decay = jnp.exp(halves(rest)[0])
        corners = _all_products(dot, left, [halves(write)[0].astype(log_a.dtype) * decay for write in writes])
        scores = [[_join(block, corner) for block, corner in zip(*rows)] for rows in zip(scores, corners)]
        pairs = total.reshape(-1, 2, 1, width)
        start = [_add_to_half(decay, 1, pairs[:, 0], half) for decay in start]
        rest = _add_to_half(rest, 0, pairs[:, 1], half)
        total = jnp.sum(pairs, axis=1)
        half *= 2
    return scores, start, rest, total.reshape(num_groups, width)


def _all_products(dot: _Dot, reads: list[Array], writes: list[Array]) -> list[list[Array]]:
    """products[read][write][g,i,j], as one matrix product."""
    size = reads[0].shape[1]
    products = dot("gik,gjk->gij", jnp.concatenate(reads, axis=1), jnp.concatenate(writes, axis=1))
    rows = jnp.split(products, len(reads), axis=1)
    return [[row[:, :, i * size : (i + 1) * size] for i in range(len(writes))] for row in rows]


def _later(table: Array) -> Array:
    """Row i becomes row i - 1, the first one zeros."""
    return jnp.pad(table[:, :-1], ((0, 0), (1, 0), (0, 0)))


def _add_to_half(x: Array, which: int, amount: Array, half: int) -> Array:
    """Add amount[blocks, 1, K] to the first (0) or second (1) half of every block of x."""
    blocks = x.reshape(-1, 2, half, x.shape[-1])
    parts = [blocks[:, 0], blocks[:, 1]]
    parts[which] = parts[which] + amount
    return jnp.stack(parts, axis=1).reshape(x.shape)


def _join(blocks: Array, corner: Array) -> Array:
    """Lower triangular blocks[2m,s,s] joined by corner[m,s,s] to [m,2s,2s]."""
    first, second = blocks[0::2], blocks[1::2]
    upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=2)
    return jnp.concatenate([upper, jnp.concatenate([corner, second], axis=2)], axis=1)


@jax.custom_vjp
def _solve(a: Array, b: Array) -> Array:
    """x = a x + b for strictly lower triangular a[g,C,C]; the gradient of what is masked in a is masked outside."""
    return _solve_forward(a, b)[0]


def _solve_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    inverse = _inverse(a)
    x = _dot(b.dtype, "gij,gjn->gin", inverse, b)
    return x, (inverse, x)


def _solve_backward(residuals: tuple[Array, Array], dx: Array) -> tuple[Array, Array]:
    inverse, x = residuals
    db = _dot(x.dtype, "gij,gin->gjn", inverse, dx)
    return _dot(x.dtype, "gin,gjn->gij", db, x), db


_solve.defvjp(_solve_forward, _solve_backward)


def _inverse(a: Array) -> Array:
    """(1 - a)⁻¹ of a strictly lower triangular a[g,C,C], C a power of two, from the inverses of its diagonal blocks.

    Unlike the product of (1 + a^(2^i)) it holds nothing larger than the entries of the result.
    """
    size, half = a.shape[-1], 1
    inverse = jnp.ones((len(a) * size, 1, 1), a.dtype)
    while half < size:
        blocks = a.reshape(-1, size // half, half, size // half, half)
        corner = jnp.stack([blocks[:, i + 1, :, i] for i in range(0, size // half, 2)], axis=1)
        corner = _dot(a.dtype, "gij,gjl->gil", corner.reshape(-1, half, half), inverse[0::2])
        inverse = _join(inverse, _dot(a.dtype, "gij,gjl->gil", inverse[1::2], corner))
        half *= 2
    return inverse
