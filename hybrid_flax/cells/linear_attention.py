"""Linear attention and its decaying kin: S_t = diag(a_t) S_tm1 + k_t v_tᵀ, y_t = S_tᵀ q_t for every head.

Options of all: num_heads; head_width, the width of a head's values; key_width, that of its queries and keys; chunk,
the tokens that the chunked form does at once. Each raises ValueError for sizes that do not fit together.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_flax.cells.inputs import Taps, compose, conv, fork, linear, rotary
from hybrid_flax.cells.matrix import Terms, head_sizes, make_matrix_cell, matrix_chunks, matrix_step
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.scan import maximum_scan
from hybrid_flax.ranges import Bias, Count, Positive, Share, Width
from hybrid_flax.typing import Array, Cell, Float, Params, State, TokenMask, state_dtype

__all__ = ["gla", "hgrn2", "linattn", "log_uniform_step", "mlstm", "retnet", "ssd"]


def linattn(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    chunk: Count = 64,
) -> Cell:
    """Linear attention as a recurrence (Katharopoulos et al. 2020, equations 7 and 18-20).

    S_t = S_tm1 + φ(k_t) v_tᵀ, z_t = z_tm1 + φ(k_t);  y_t = S_tᵀ φ(q_t) / (z_t·φ(q_t)), φ(x) = elu(x) + 1.
    Input order per head: q, k, v. The last column of the state is z.
    """
    heads, keys, values = head_sizes(width, num_heads, key_width, head_width)

    def terms(params: Params, u: Any) -> Terms:
        del params
        q, k, v = _split_heads(u, keys)
        ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
        log_a = jnp.zeros_like(ones)
        return Terms(_elu_plus_one(q), _elu_plus_one(k), jnp.concatenate([v, ones], axis=-1), log_a)

    def read(params: Params, u: Any, y: Array) -> Array:
        del params, u
        return y[..., :-1] / (y[..., -1:] + 1e-6)

    def enter(s: Array) -> Array:
        # z is a sum of positive features, also in a state that somebody made up.
        return jnp.concatenate([s[..., :-1], jnp.abs(s[..., -1:])], axis=-1)

    features = linear(width, (heads, 2 * keys + values), bias=None)
    sizes = (heads, keys, values + 1)
    return make_matrix_cell(features, terms, sizes, chunk=chunk, read=read, enter=enter, value_width=values)


def retnet(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    chunk: Count = 64,
) -> Cell:
    """Multi-scale retention (Sun et al. 2023, equations 6-8): a fixed decay per head, positions as rotations.

    S_t = γ_h S_tm1 + k_t v_tᵀ, γ_h = 1 - 2^(-5-h);  y_t = S_tᵀ q_t. q and k are rotated by their position, k is divided
    by sqrt(K). head_width is twice key_width by default, key_width width / num_heads. Norm and gate of equation 8
    are options of `recurrent`. Input order per head: q, k, v.
    """
    heads, keys, _ = head_sizes(width, num_heads, key_width, key_width)
    values = 2 * keys if head_width is None else head_width

    def terms(params: Params, u: Any) -> Terms:
        del params
        q, k, v = _split_heads(u, keys)
        gamma = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=q.dtype))))
        return Terms(q, k * keys**-0.5, v, jnp.broadcast_to(gamma[:, None], (*q.shape[:-1], 1)))

    features = compose(linear(width, (heads, 2 * keys + values), bias=None), rotary(keys))
    return make_matrix_cell(features, terms, (heads, keys, values), chunk=chunk)


def gla(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    gate_rank: Width = 16,
    temperature: Positive = 16.0,
    chunk: Count = 64,
) -> Cell:
    """Gated linear attention (Yang et al. 2024, equations 3-4 and section 4.4).

    S_t = diag(α_t) S_tm1 + k_t v_tᵀ, α_t = σ(x W_1 W_2 + b)^(1/τ);  y_t = S_tᵀ q_t / sqrt(K).
    gate_rank: the width between W_1 and W_2. temperature: τ. key_width is half of head_width by default.
    Input order per head: q, k, v.
    """
    sizes = heads, keys, values = head_sizes(width, num_heads, key_width, head_width, 0.5)

    def terms(params: Params, u: Any) -> Terms:
        del params
        q, k, v = _split_heads(u[0], keys)
        return Terms(q * keys**-0.5, k, v, jax.nn.log_sigmoid(_wide(u[1])) / temperature)

    gate = compose(linear(width, (gate_rank,), bias=None), linear(gate_rank, (heads, keys)))
    features = linear(width, (heads, 2 * keys + values), bias=None)
    return make_matrix_cell(fork(features, gate), terms, sizes, chunk=chunk)


def hgrn2(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    lower_bound: Share = 0.0,
    chunk: Count = 64,
) -> Cell:
    """HGRN2 (Qin et al. 2024, section 3): the key is what the forget gate leaves.

    f_t = γ + (1 - γ) σ(x W_f + b_f), o_t = σ(x W_o + b_o), i_t = silu(x W_i + b_i);
    S_t = diag(f_t) S_tm1 + (1 - f_t) i_tᵀ;  y_t = S_tᵀ o_t. lower_bound: γ, which the paper raises from layer to layer.
    Input order per head: o, f, i. Raises ValueError for a lower bound outside [0, 1) too.
    """
    sizes = heads, keys, values = head_sizes(width, num_heads, key_width, head_width)

    def terms(params: Params, u: Any) -> Terms:
        del params
        o, f, i = _split_heads(u, keys)
        k = (1.0 - lower_bound) * jax.nn.sigmoid(-f)
        log_f = jnp.log1p(-k) if lower_bound else jax.nn.log_sigmoid(f)
        return Terms(jax.nn.sigmoid(o), k, jax.nn.silu(i), log_f)

    return make_matrix_cell(linear(width, (heads, 2 * keys + values)), terms, sizes, chunk=chunk)


def ssd(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    state_width: Width = 64,
    groups: Count = 1,
    taps: Taps = 4,
    chunk: Count = 64,
) -> Cell:
    """Mamba-2 (Dao & Gu 2024, sections 6 and 7): state-space duality with a scalar decay per head.

    x_t, B_t, C_t = silu(conv(x W)), Δ_t = softplus(x W_Δ + b_Δ), a_t = exp(-Δ_t exp(A));
    S_t = a_t S_tm1 + B_t (Δ_t x_t)ᵀ;  y_t = S_tᵀ C_t + D x_t. head_width is 2 width / num_heads by default.
    state_width: K, the length of B and C. groups: heads in a group share B and C.
    Norm and gate are options of `recurrent`, in that order. Input order: x of all heads, B, C of all groups.
    Parameters: decay (A), timescale (b_Δ), scale (D), all [H]. Raises ValueError where `groups` does not divide them.
    """
    if num_heads % groups:
        raise ValueError(f"groups={groups} must divide num_heads={num_heads}")
    heads, keys, values = head_sizes(2 * width, num_heads, state_width, head_width)

    def init(key: Array) -> Params:
        key_decay, key_step = jax.random.split(key)
        return {
            "decay": jnp.log(jax.random.uniform(key_decay, (heads,), minval=1.0, maxval=16.0)),
            "timescale": log_uniform_step(key_step, heads),
            "scale": jnp.ones(heads),
        }

    def channels(u: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        lead = u[0].shape[:-1]
        x, b, c = jnp.split(jax.nn.silu(_wide(u[0])), (heads * values, heads * values + groups * keys), axis=-1)
        b, c = (jnp.repeat(part.reshape(*lead, groups, keys), heads // groups, axis=-2) for part in (b, c))
        return x.reshape(*lead, heads, values), b, c

    def terms(params: Params, u: Any) -> Terms:
        x, b, c = channels(u)
        rate = _wide(u[1])
        delta = jax.nn.softplus(rate + align(params["timescale"], rate))[..., None]
        return Terms(c, b, delta * x, -delta * jnp.exp(align(params["decay"][:, None], delta)))

    def read(params: Params, u: Any, y: Array) -> Array:
        x, *_ = channels(u)
        return y + align(params["scale"][:, None], x) * x

    num_channels = heads * values + 2 * groups * keys
    filtered = compose(linear(width, (num_channels,), bias=None), conv(num_channels, taps=taps))
    features = fork(filtered, linear(width, (heads,), bias=None))
    return make_matrix_cell(features, terms, (heads, keys, values), chunk=chunk, init=init, read=read)


def mlstm(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    input_bias: Bias = -5.0,
    forget_bias: Bias = 3.0,
    chunk: Count = 64,
) -> Cell:
    """mLSTM, the matrix memory of xLSTM (Beck et al. 2024, equations 19-27, stabilised by 15-17).

    i = exp(ĩ_t), f = σ(f̃_t);  C_t = f C_tm1 + i k_t v_tᵀ, n_t = f n_tm1 + i k_t;  y_t = C_tᵀ q_t / max(|n_t·q_t|, 1).
    C and n are kept divided by exp(m_t), m_t = max(log f + m_tm1, ĩ_t). The output gate is an option of `recurrent`.
    Input order per head: q, k, v (k is divided by sqrt(K)); gates: i, f. input_bias, forget_bias: first values of
    theirs. A low input gate keeps |n·q| below 1, where the quotient is well conditioned (Beck et al. 2025, -10).
    """
    heads, keys, values = head_sizes(width, num_heads, key_width, head_width)

    def init_state(batch_size: int) -> State:
        shapes = {"c": (heads, keys, values), "n": (heads, keys), "m": (heads,)}
        return {name: jnp.zeros((batch_size, *shape), jnp.float32) for name, shape in shapes.items()}

    def gates(u: tuple[Array, Array]) -> tuple[Array, Array]:
        i, f = jnp.moveaxis(_wide(u[1]), -2, 0)
        return i, jax.nn.log_sigmoid(f)

    def terms(u: tuple[Array, Array], m_before: Array) -> Terms:
        q, k, v = _split_heads(u[0], keys)
        i, log_f = gates(u)
        kept = log_f + m_before
        written = jnp.exp(jnp.minimum(i - kept, 0.0))[..., None] * (k * keys**-0.5)
        ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
        return Terms(q, written, jnp.concatenate([v, ones], axis=-1), jnp.minimum(kept - i, 0.0)[..., None])

    def read(y: Array, m: Array) -> Array:
        # |n·q| against exp(-m), both times exp(min(m, 0)) so that nothing overflows; the floor keeps 0/0 away.
        size = jnp.exp(jnp.minimum(m, 0.0))[..., None]
        y = size * y
        y = y[..., :-1] / jnp.maximum(jnp.abs(y[..., -1:]), jnp.exp(-jnp.clip(m, 0.0, 40.0))[..., None])
        return y.reshape(*y.shape[:-2], heads * values)

    def join(state: State) -> Array:
        return jnp.concatenate([state["c"], state["n"][..., None]], axis=-1)

    def part(s: Array, m: Array) -> State:
        return {"c": s[..., :-1], "n": s[..., -1], "m": m}

    def step(params: Params, state: State, u_t: Any) -> tuple[State, Array]:
        del params
        i, log_f = gates(u_t)
        s, y = matrix_step(join(state), terms(u_t, state["m"]))
        m = jnp.maximum(log_f + state["m"], i)
        return part(s, m), read(y, m)

    def chunked(params: Params, u: Any, reset: TokenMask, hold: TokenMask, state: State) -> tuple[Array, State]:
        del params
        i, log_f = gates(u)
        m = maximum_scan(log_f, i, reset, hold, state["m"])
        before = jnp.concatenate([state["m"][:, None], m[:, :-1]], axis=1)
        before = jnp.where(reset[..., None], 0.0, before)
        y, s = matrix_chunks(terms(u, before), reset, hold, join(state), chunk, u[0].dtype)
        return read(y, m), part(s, m[:, -1])

    features = linear(width, (heads, 2 * keys + values))
    gate = linear(width, (2, heads), bias=(input_bias, forget_bias))
    return Cell(fork(features, gate), lambda key: {}, init_state, step, heads * values, {"chunked": chunked}, heads)


def log_uniform_step(key: Array, heads: int) -> Float[Array, "H"]:
    """Biases b with softplus(b) log-uniform in [0.001, 0.1] (Gu & Dao 2023, section 3.6)."""
    step = jnp.exp(jax.random.uniform(key, (heads,), minval=jnp.log(1e-3), maxval=jnp.log(1e-1)))
    return step + jnp.log(-jnp.expm1(-step))


def _wide(u: Array) -> Array:
    return u.astype(state_dtype(u.dtype))


def _split_heads(u: Array, keys: int) -> list[Array]:
    """q, k [..., H, K] and v [..., H, N] of u[..., H, 2K + N]."""
    return jnp.split(_wide(u), (keys, 2 * keys), axis=-1)


def _elu_plus_one(x: Array) -> Array:
    return jnp.where(x > 0, x + 1.0, jnp.exp(jnp.minimum(x, 0.0)))
