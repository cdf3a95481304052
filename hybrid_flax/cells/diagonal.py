"""Cells with a diagonal recurrence: real or complex, fixed (`lru`, `s5`) or read off the input (the others)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hybrid_flax.cells.affine import make_affine_cell
from hybrid_flax.cells.inputs import Taps, activate, block_linear, compose, conv, fork, keep, linear
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal, unit_interval_radius
from hybrid_flax.ops.linear import contract
from hybrid_flax.ranges import Count, Positive, Share, Width
from hybrid_flax.typing import Array, Cell, Init, Params, state_dtype

__all__ = ["hgrn", "lru", "rglru", "s5", "s6"]

_LARGEST_BLOCK = 4096  # of `s5`; twice as many take eight times the time, and here it is half an hour

_DECAY_POWER = 8.0  # c in equation 3


def rglru(width: int, *, state_width: Width | None = None, taps: Taps = 4, blocks: Count = 4) -> Cell:
    """Real-gated linear recurrent unit behind a linear map and a short convolution (De et al. 2024, eq. 1-4).

    r_t, i_t = σ(W x_t + b), log a_t = -8 softplus(Λ) r_t;  h_t = a_t h_tm1 + sqrt(1 - a_t²) (i_t x_t);  y_t = h_t.
    `decay` holds Λ, drawn so that a^8 is uniform in area in [0.9, 0.999]. W is block diagonal.
    Gate order: r, i. Raises ValueError where `blocks` does not divide `state_width`.
    """
    state_width = state_width or width

    def init(key: Array) -> Params:
        radius = unit_interval_radius(key, (state_width,), 0.9, 0.999)
        return {"decay": jnp.log(jnp.expm1(-jnp.log(radius) / _DECAY_POWER))}

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        x, gates = u
        dtype = state_dtype(x.dtype)
        r, i = jnp.moveaxis(jax.nn.sigmoid(gates.astype(dtype)), -2, 0)
        log_a = -_DECAY_POWER * jax.nn.softplus(align(params["decay"], r)) * r
        # The floor keeps the gradient of the root finite where a gate is shut so far that a = 1.
        variance = jnp.maximum(-jnp.expm1(2.0 * log_a), jnp.finfo(dtype).tiny)
        return jnp.exp(log_a), jnp.sqrt(variance) * (i * x.astype(dtype))

    gates = keep(block_linear(state_width, (2, state_width), blocks))
    filtered = compose(linear(width, (state_width,)), conv(state_width, taps=taps))
    return make_affine_cell(compose(filtered, gates), coefficients, (state_width,), init)


def hgrn(width: int, *, state_width: Width | None = None, lower_bound: Share = 0.0, use_phase: bool = True) -> Cell:
    """Hierarchically gated recurrent unit (Qin et al. 2023, section 3.2).

    Re c_t, Im c_t = SiLU(W x_t + b), μ_t = σ(W x_t + b), λ_t = γ + (1 - γ) μ_t for `lower_bound` γ;
    h_t = λ_t exp(iθ) h_tm1 + (1 - λ_t) c_t;  y_t = [Re h_t, Im h_t].
    `phase` holds θ, one angle for each of `state_width` complex entries, from 1 down to almost 1/10000 at first. The
    paper learns a bound for each layer, which grows with the depth: here it is given, layer by layer if wanted.
    use_phase: False has θ = 0 and real states, y_t = h_t. Gates, in this order: μ, Re c, Im c.
    Raises ValueError for a bound outside [0, 1).
    """
    state_width = state_width or width

    def init(key: Array) -> Params:
        del key
        return {"phase": 1e4 ** (-jnp.arange(state_width) / state_width)} if use_phase else {}

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        pre = u.astype(state_dtype(u.dtype))
        forget = lower_bound + (1.0 - lower_bound) * jax.nn.sigmoid(pre[..., 0, :])
        write = (1.0 - lower_bound) * jax.nn.sigmoid(-pre[..., 0, :])
        candidate = write[..., None, :] * jax.nn.silu(pre[..., 1:, :])
        if not use_phase:
            return forget, candidate[..., 0, :]
        return _polar(forget, align(params["phase"], forget)), lax.complex(candidate[..., 0, :], candidate[..., 1, :])

    if not use_phase:
        return make_affine_cell(linear(width, (2, state_width)), coefficients, (state_width,))
    return make_affine_cell(
        linear(width, (3, state_width)),
        coefficients,
        (state_width,),
        init,
        readout=lambda params, h, u: _parts(h),
        width=2 * state_width,
        dtype=jnp.complex64,
    )


def s6(
    width: int,
    *,
    expansion: Count = 2,
    state_size: Width = 16,
    taps: Taps = 4,
    rank: Width | None = None,
    chunk: Count = 64,
) -> Cell:
    """Selective state space of Mamba (Gu & Dao 2023, algorithm 2 and section 3.4), without its output gate and map.

    x' = SiLU(conv(W x)) of N = expansion * width channels; Δ_t = softplus(W_up W_down x'_t + τ), B_t, C_t = W x'_t;
    h_t = exp(Δ_t A) h_tm1 + Δ_t x'_t B_t with `state_size` entries a channel and A = -exp(`decay`);
    y_t = C_t h_t + D x'_t. B is discretised by Δ_t B_t, the first order of the paper's equation 4, as in its
    experiments. `timescale` holds τ, `scale` D. At first A = -1, -2, ..., -`state_size` (S4D-real) and softplus(τ) is
    log-uniform in [0.001, 0.1].
    rank: of the map to Δ, width / 16 by default. chunk: tokens whose states are in memory at once (see
    `make_affine_cell`). Order of the map to B and C: B, C. Raises ValueError for sizes below 1 (taps: 2).
    """
    rank = -(-width // 16) if rank is None else rank
    channels = expansion * width

    def init(key: Array) -> Params:
        step = jnp.exp(_log_uniform(key, (channels,), 1e-3, 1e-1))
        rates = jnp.log(jnp.arange(1.0, state_size + 1.0))
        return {
            "decay": jnp.broadcast_to(rates, (channels, state_size)),
            "timescale": jnp.log(jnp.expm1(step)),
            "scale": jnp.ones(channels),
        }

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        x, (delta, (b, _)) = _selected(u)
        delta = jax.nn.softplus(delta + align(params["timescale"], delta))
        log_a = -jnp.exp(align(params["decay"], delta[..., None])) * delta[..., None]
        return jnp.exp(log_a), (delta * x)[..., None] * b[..., None, :]

    def readout(params: Params, h: Array, u: Any) -> Array:
        x, (_, (_, c)) = _selected(u)
        return jnp.sum(h * c[..., None, :], axis=-1) + align(params["scale"], x) * x

    filtered = compose(linear(width, (channels,), bias=None), conv(channels, taps=taps))
    low_rank = compose(linear(channels, (rank,), bias=None), linear(rank, (channels,), bias=None))
    selection = fork(low_rank, linear(channels, (2, state_size), bias=None))
    return make_affine_cell(
        compose(compose(filtered, activate(jax.nn.silu)), keep(selection)),
        coefficients,
        (channels, state_size),
        init,
        readout=readout,
        width=channels,
        chunk=chunk,
    )


def lru(
    width: int,
    *,
    state_width: Width | None = None,
    min_radius: Share = 0.9,
    max_radius: Share = 0.999,
    max_phase: Positive = 2.0 * np.pi,
) -> Cell:
    """Linear recurrent unit (Orvieto et al. 2023, section 3 and appendix A).

    h_t = λ h_tm1 + γ B x_t, y_t = Re(C h_t) + D x_t with λ = exp(-exp(ν) + i exp(φ)) and `state_width` complex
    entries. `timescale` holds ν, `phase` φ, `scale` log γ, `kernel` [Re C; -Im C] as [2 N, D], `skip` D; the input map
    is Re B, Im B. At first |λ| is uniform in area in [min_radius, max_radius], exp(φ) uniform in [0, max_phase], and
    γ = sqrt(1 - |λ|²).
    Raises ValueError for radii that are not 0 <= min_radius < max_radius < 1 and for max_phase <= 0.
    """
    if not min_radius < max_radius:
        raise ValueError(
            f"min_radius={min_radius}, max_radius={max_radius}, max_phase={max_phase}:"
            " want 0 <= min_radius < max_radius < 1 and max_phase > 0"
        )
    state_width = state_width or width

    def init(key: Array) -> Params:
        key_radius, key_phase, key_readout, key_skip = jax.random.split(key, 4)
        log_radius = jnp.log(unit_interval_radius(key_radius, (state_width,), max(min_radius, 1e-6), max_radius))
        phase = jax.random.uniform(key_phase, (state_width,), minval=1e-6 * max_phase, maxval=max_phase)
        return {
            "timescale": jnp.log(-log_radius),
            "phase": jnp.log(phase),
            "scale": 0.5 * jnp.log(-jnp.expm1(2.0 * log_radius)),
            "kernel": fan_in_normal(key_readout, (2 * state_width, width), state_width),
            "skip": {"scale": jax.random.normal(key_skip, (width,))},
        }

    def transition(timescale: Array, phase: Array, scale: Array) -> tuple[Array, Array]:
        return _polar(jnp.exp(-jnp.exp(timescale)), jnp.exp(phase)), jnp.exp(scale)

    def init_kernel(key: Array) -> Array:
        return fan_in_normal(key, (width, 2, state_width), 2 * width)

    return _invariant_cell(width, state_width, ("timescale", "phase", "scale"), transition, init, init_kernel)


def s5(
    width: int,
    *,
    state_width: Width | None = None,
    blocks: Count = 1,
    min_step: Positive = 1e-3,
    max_step: Positive = 1e-1,
) -> Cell:
    """Diagonal state space with many inputs and outputs (Smith et al. 2023, sections 3 and 4), without activation.

    h_t = exp(ΛΔ) h_tm1 + Λ⁻¹ (exp(ΛΔ) - 1) B̃ x_t (zero-order hold, equation 6), y_t = 2 Re(C̃ h_t) + D x_t.
    Only one of each pair of conjugate states is kept: `state_width` complex entries, width / 2 by default.
    Λ = -exp(`decay`) + i `phase`, Δ = exp(`timescale`) for every state; `kernel` is 2 [Re C̃; -Im C̃] as [2 N, D],
    `skip` D, the input map Re B̃, Im B̃. At first Λ are the eigenvalues of the normal part of HiPPO-LegS, in `blocks`
    equal blocks (section 4.3), B̃ and C̃ random matrices in the basis of their eigenvectors, and Δ log-uniform in
    [min_step, max_step]. Raises ValueError where `blocks` does not divide `state_width` and for steps that are not
    0 < min_step <= max_step.
    """
    state_width = state_width or max(1, width // 2)
    if state_width % blocks:
        raise ValueError(f"blocks={blocks} must divide state_width={state_width}")
    if state_width // blocks > _LARGEST_BLOCK:
        raise ValueError(
            f"blocks={blocks} leaves {state_width // blocks} of state_width={state_width} to a block, whose "
            f"eigenvectors are computed at the start: at most {_LARGEST_BLOCK}, so raise blocks"
        )
    if min_step > max_step:
        raise ValueError(f"min_step={min_step} must be at most max_step={max_step}")

    def init(key: Array) -> Params:
        key_step, key_readout, key_skip = jax.random.split(key, 3)
        rates, vectors = _hippo_normal(state_width, blocks)
        basis = jnp.asarray(np.concatenate([vectors.real, -vectors.imag], axis=1), jnp.float32)
        readout = fan_in_normal(key_readout, (2 * state_width, width))
        return {
            "decay": jnp.full(state_width, jnp.log(0.5)),
            "phase": jnp.asarray(rates, jnp.float32),
            "timescale": _log_uniform(key_step, (state_width,), min_step, max_step),
            "kernel": 2.0 * basis.T.astype(readout.dtype) @ readout,
            "skip": {"scale": jax.random.normal(key_skip, (width,))},
        }

    def transition(decay: Array, phase: Array, timescale: Array) -> tuple[Array, Array]:
        step = jnp.exp(timescale)
        rate = lax.complex(-jnp.exp(decay), phase)
        return _polar(jnp.exp(rate.real * step), phase * step), _complex_expm1(rate * step.astype(rate.dtype)) / rate

    def init_kernel(key: Array) -> Array:
        _, vectors = _hippo_normal(state_width, blocks)
        basis = jnp.asarray(np.stack([vectors.real, -vectors.imag], axis=1), jnp.float32)
        drawn = fan_in_normal(key, (width, 2 * state_width))
        return jnp.einsum("dp,pgn->dgn", drawn, basis.astype(drawn.dtype))

    return _invariant_cell(width, state_width, ("decay", "phase", "timescale"), transition, init, init_kernel)


def _invariant_cell(
    width: int,
    state_width: int,
    leaves: tuple[str, ...],
    transition: Callable[..., tuple[Array, Array]],
    init: Init,
    init_kernel: Callable[[Array], Array],
) -> Cell:
    """h_t = λ h_tm1 + γ B x_t, y_t = Re(C h_t) + D x_t with λ, γ = transition(*leaves), the same for all tokens."""

    def coefficients(params: Params, u: Any) -> tuple[Array, Array]:
        _, mapped = u
        dtype = state_dtype(mapped.dtype)
        decay, gain = transition(*(params[leaf].astype(dtype) for leaf in leaves))
        mapped = mapped.astype(dtype)
        mapped = lax.complex(mapped[..., 0, :], mapped[..., 1, :])
        increment = align(gain, mapped) * mapped
        return jnp.broadcast_to(decay, increment.shape), increment

    def readout(params: Params, h: Array, u: Any) -> Array:
        x, _ = u
        y = contract(_parts(h), params["kernel"], x.dtype)
        return y + align(params["skip"]["scale"], y) * x.astype(y.dtype)

    mapped = linear(width, (2, state_width), bias=None)
    return make_affine_cell(
        keep(mapped._replace(init=lambda key: {"kernel": init_kernel(key)})),
        coefficients,
        (state_width,),
        init,
        readout=readout,
        width=width,
        dtype=jnp.complex64,
    )


@functools.cache
def _hippo_normal(state_width: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Imaginary parts of the eigenvalues -1/2 + iω, ω > 0, of blocks of HiPPO-N [2 N, 2 N], and their eigenvectors."""
    size = state_width // blocks
    root = np.sqrt(np.arange(2 * size) + 0.5)
    product = np.outer(root, root)
    skew = np.triu(product, 1) - np.tril(product, -1)
    rates, vectors = np.linalg.eigh(-1j * skew)  # ascending, and symmetric around zero
    return np.tile(rates[size:], blocks), np.kron(np.eye(blocks), vectors[:, size:])


def _selected(u: Any) -> tuple[Array, tuple[Array, tuple[Array, Array]]]:
    """x', (W_up W_down x', (B, C)) of `s6`, in the dtype of states."""
    x, (delta, maps) = jax.tree.map(lambda leaf: leaf.astype(state_dtype(leaf.dtype)), u)
    return x, (delta, (maps[..., 0, :], maps[..., 1, :]))


def _log_uniform(key: Array, shape: tuple[int, ...], low: float, high: float) -> Array:
    """Logarithms, uniform between those of `low` and `high`."""
    return jax.random.uniform(key, shape, minval=np.log(low), maxval=np.log(high))


def _polar(radius: Array, angle: Array) -> Array:
    """radius exp(i angle)."""
    return lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))


def _parts(h: Array) -> Array:
    """[Re h, Im h]."""
    return jnp.concatenate([h.real, h.imag], axis=-1)


def _complex_expm1(z: Array) -> Array:
    """exp(z) - 1 without cancellation near 0."""
    real = jnp.expm1(z.real) * jnp.cos(z.imag) - 2.0 * jnp.square(jnp.sin(0.5 * z.imag))
    return lax.complex(real, jnp.exp(z.real) * jnp.sin(z.imag))
