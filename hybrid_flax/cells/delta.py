"""Delta-rule cells: a token removes what its key reads from the state before it writes.

S_t = diag(a_t) S_tm1 + p_t (r_tᵀ S_tm1) + k_t v_tᵀ, y_t = S_tᵀ q_t for every head. Options and what is raised are
those of `cells.linear_attention`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_flax.cells.inputs import Taps, compose, conv, fork, linear, shift
from hybrid_flax.cells.linear_attention import log_uniform_step
from hybrid_flax.cells.matrix import Terms, head_sizes, make_matrix_cell, unit
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ranges import Count, Width
from hybrid_flax.typing import Array, Cell, Mixer, Params, Segments, State, Traits, state_dtype

__all__ = ["deltanet", "gdn", "rwkv7"]

_LOG_DECAY_FLOOR = -(2.718281828459045**-0.5)  # of equation 12 of RWKV-7: decays stay above exp(-exp(-1/2))


def deltanet(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    taps: Taps | None = 4,
    negative_eigenvalues: bool = False,
    chunk: Count = 32,
) -> Cell:
    """DeltaNet (Schlag et al. 2021; Yang et al. 2024b, sections 2.2 and 3.3).

    S_t = S_tm1 - β_t k_t (k_tᵀ S_tm1) + β_t k_t v_tᵀ;  y_t = S_tᵀ q_t, with q, k = silu(conv(x W)) / |·|,
    v = silu(conv(x W)) and β = σ(x W_β). taps: of the convolution, None for none.
    negative_eigenvalues: β = 2 σ(x W_β), so that I - β k kᵀ may reflect (Grazzi et al. 2025).
    Input order per head: q, k, v.
    """
    sizes = heads, keys, values = head_sizes(width, num_heads, key_width, head_width)

    def terms(params: Params, u: Any) -> Terms:
        del params
        q, k, v = _short_heads(u[0], heads, keys)
        k_beta = _beta(u[1], negative_eigenvalues) * k
        return Terms(q, k_beta, v, jnp.zeros_like(v[..., :1]), -k_beta, k)

    features = fork(_short_features(width, heads * (2 * keys + values), taps), linear(width, (heads,), bias=None))
    return make_matrix_cell(features, terms, sizes, chunk=chunk)


def gdn(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    key_width: Width | None = None,
    taps: Taps | None = 4,
    negative_eigenvalues: bool = False,
    chunk: Count = 32,
) -> Cell:
    """Gated DeltaNet (Yang et al. 2025, equation 10 and section 3.4): the delta rule with the decay of Mamba-2.

    S_t = α_t (S_tm1 - β_t k_t (k_tᵀ S_tm1)) + β_t k_t v_tᵀ;  y_t = S_tᵀ q_t, α = exp(-exp(A) softplus(x W_α + b_α)).
    The rest is as `deltanet`; norm and gate are options of `recurrent`. Gate order: α, β.
    Parameters: decay (A), timescale (b_α), both [H].
    """
    sizes = heads, keys, values = head_sizes(width, num_heads, key_width, head_width)

    def init(key: Array) -> Params:
        key_decay, key_step = jax.random.split(key)
        return {
            "decay": jnp.log(jax.random.uniform(key_decay, (heads,), minval=1.0, maxval=16.0)),
            "timescale": log_uniform_step(key_step, heads),
        }

    def terms(params: Params, u: Any) -> Terms:
        q, k, v = _short_heads(u[0], heads, keys)
        k_beta = _beta(u[1][..., 1, :], negative_eigenvalues) * k
        rate = u[1][..., 0, :].astype(k.dtype)
        rate = rate + align(params["timescale"], rate)
        log_a = (-jnp.exp(align(params["decay"], rate)) * jax.nn.softplus(rate))[..., None]
        return Terms(q, k_beta, v, log_a, -jnp.exp(log_a) * k_beta, k)

    features = fork(_short_features(width, heads * (2 * keys + values), taps), linear(width, (2, heads), bias=None))
    return make_matrix_cell(features, terms, sizes, chunk=chunk, init=init)


def rwkv7(
    width: int,
    *,
    num_heads: Count = 4,
    head_width: Width | None = None,
    rank: Width = 16,
    chunk: Count = 32,
) -> Cell:
    """RWKV-7's time mixing (Peng et al. 2025, section 4.1), K = N = head_width.

    x^i = x_t + μ_i (x_{t-1} - x_t) for i = r, k, v, d, a, g;  r, k, v = x^i W_i;
    w = exp(-e^(-1/2) σ(tanh(x^d A_d) B_d + b_d)), a = σ(x^a A_a B_a + b_a), g = σ(x^g A_g) B_g;
    κ = k ⊙ ξ / |k ⊙ ξ|, k̃ = k ⊙ (1 + α (a - 1));
    S_t = diag(w) S_tm1 - (a ⊙ κ) (κᵀ S_tm1) + k̃ vᵀ;  y_t = g ⊙ (LayerNorm(S_tᵀ r) + (r·(ρ ⊙ k̃)) v).
    LayerNorm, over each head, is the output norm of `recurrent`, and what comes behind it is `Cell.finish`.
    The values of the first layer are not mixed into those of the others: a cell knows nothing of depth.
    rank: the width between A_i and B_i. Parameters of the cell: removal (ξ), replacement (α), bonus (ρ).
    """
    heads, width_k, _ = head_sizes(width, num_heads, None, head_width)
    inner = heads * width_k

    def init(key: Array) -> Params:
        del key
        return {
            "removal": {"scale": jnp.full((heads, width_k), 0.85)},
            "replacement": {"scale": jnp.ones((heads, width_k))},
            "bonus": {"scale": jnp.full((heads, width_k), 0.1)},
        }

    def split(u: tuple[Array, Array]) -> Array:
        dtype = state_dtype(u[0].dtype)
        parts = jnp.concatenate(u, axis=-2).astype(dtype)
        return jnp.moveaxis(parts.reshape(*parts.shape[:-1], heads, width_k), -3, 0)

    def replaced(params: Params, k: Array, a: Array) -> Array:
        return k * (1.0 + align(params["replacement"]["scale"], a) * (a - 1.0))

    def terms(params: Params, u: Any) -> Terms:
        r, k, v, d, a, _ = split(u)
        a = jax.nn.sigmoid(a)
        removed = unit(k * align(params["removal"]["scale"], k))
        return Terms(r, replaced(params, k, a), v, _LOG_DECAY_FLOOR * jax.nn.sigmoid(d), -a * removed, removed)

    def finish(params: Params, u: Any, y: Array) -> Array:
        r, k, v, _, a, g = split(u)
        bonus = align(params["bonus"]["scale"], r)
        weight = jnp.sum(r * bonus * replaced(params, k, jax.nn.sigmoid(a)), axis=-1, keepdims=True)
        return (g * (y.reshape(v.shape) + weight * v)).reshape(y.shape)

    features = compose(shift(width, 6), _six_maps(width, inner, rank))
    cell = make_matrix_cell(features, terms, (heads, width_k, width_k), chunk=chunk, init=init)
    return cell._replace(finish=finish)


def _six_maps(width: int, out: int, rank: int) -> Mixer:
    """x[B,T,6,D] -> r, k, v [B,T,3,N] and d, a, g [B,T,3,N] of low rank."""

    def init(key: Array) -> Params:
        key_full, key_down, key_up = jax.random.split(key, 3)
        return {
            "full": {"kernel": fan_in_normal(key_full, (width, 3, out))},
            "down": {"kernel": fan_in_normal(key_down, (width, 3, rank))},
            "up": {"kernel": fan_in_normal(key_up, (rank, 3, out)), "bias": jnp.zeros((2, out))},
        }

    def apply(params: Params, x: Array, segments: Segments, state: State | None = None) -> tuple[Any, State | None]:
        del segments

        def each(x: Array, kernel: Array) -> Array:
            wide = jnp.dtype(state_dtype(x.dtype))
            return jnp.einsum("btid,dio->btio", x, kernel.astype(x.dtype), preferred_element_type=wide)

        d, a, g = jnp.moveaxis(each(x[:, :, 3:], params["down"]["kernel"]), 2, 0)
        squashed = jnp.stack([jnp.tanh(d), a, jax.nn.sigmoid(g)], axis=2).astype(x.dtype)
        low = each(squashed, params["up"]["kernel"])
        low = low.at[:, :, :2].add(params["up"]["bias"])
        return (each(x[:, :, :3], params["full"]["kernel"]).astype(x.dtype), low.astype(x.dtype)), state

    return Mixer(init, lambda batch_size, capacity: (), apply, Traits(spec=("six_maps", width, out, rank)))


def _short_features(width: int, features: int, taps: int | None) -> Mixer:
    mapped = linear(width, (features,), bias=None)
    return mapped if taps is None else compose(mapped, conv(features, taps=taps))


def _short_heads(u: Array, heads: int, keys: int) -> tuple[Array, Array, Array]:
    """Unit q, k and v of silu(u[..., H (2K + N)])."""
    x = jax.nn.silu(u.astype(state_dtype(u.dtype))).reshape(*u.shape[:-1], heads, -1)
    q, k, v = jnp.split(x, (keys, 2 * keys), axis=-1)
    return unit(q), unit(k), v


def _beta(u: Array, negative_eigenvalues: bool) -> Array:
    """β[..., H, 1] in (0, 1), or (0, 2)."""
    beta = jax.nn.sigmoid(u.astype(state_dtype(u.dtype)))[..., None]
    return 2.0 * beta if negative_eigenvalues else beta
