"""Input mixers: the maps x[B,T,D] -> u that a cell reads, done for all time steps before the scan."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract, contract_blocks
from hybrid_flax.ops.norm import layer_norm
from hybrid_flax.ops.segments import FRESH, compaction, permute
from hybrid_flax.typing import Mixer, Traits, promote_state, state_dtype

__all__ = ["activate", "block_linear", "chain", "conv", "fork", "keep", "linear", "shift", "window_linear"]


def linear(
    width: int, features: tuple[int, ...], *, bias: tuple[float, ...] | None = (0.0,), normalised: bool = False
) -> Mixer:
    """u = x W + b, one product for all gates.

    features: the shape of u's last axes, (N,) or (gates, N). bias: None for no bias, else its initial value
    per gate (or one for all). normalised: u = LN(x W) ⊙ scale + b, each gate by itself (Ba et al. 2016).
    Parameters: kernel [D, *features], bias [*features], scale [*features] where normalised.
    """

    def init(key):
        params = {"kernel": fan_in_normal(key, (width, *features))}
        if bias is not None:
            start = jnp.asarray(bias).reshape(-1, *([1] * (len(features) - 1)))
            params["bias"] = jnp.broadcast_to(start, features).astype(jnp.float32)
        if normalised:
            params["scale"] = jnp.ones(features)
        return params

    def apply(params, x, segments, state=None):
        u = contract(x, params["kernel"], x.dtype)
        if normalised:
            u = layer_norm(u, params["scale"])
        if bias is not None:
            u = u + params["bias"]
        return u.astype(x.dtype), state

    return Mixer(init, _no_state, apply, Traits(spec=("linear", width, features, bias, normalised)))


def conv(width: int, *, taps: int = 4) -> Mixer:
    """Short causal depthwise convolution y_t = b + sum_j w_j x_{t-j} over live tokens of the same document.

    Parameters: depthwise_kernel [taps, D] (w_0, the current token, first), bias [D]. State: the last taps - 1 live
    tokens of each row and their documents. Raises ValueError for taps < 2.
    """
    if taps < 2:
        raise ValueError(f"conv needs at least 2 taps, got {taps}")

    def init(key):
        return {"depthwise_kernel": fan_in_normal(key, (taps, width)), "bias": jnp.zeros(width)}

    def apply(params, x, segments, state=None):
        tokens, restore, state = _look_back(x, segments, state, taps - 1)
        dtype = state_dtype(x.dtype)
        y = jnp.broadcast_to(params["bias"].astype(dtype), x.shape)
        for token, weight in zip(tokens, params["depthwise_kernel"].astype(x.dtype)):
            y = y + weight.astype(dtype) * token.astype(dtype)
        return restore(y.astype(x.dtype)), state

    return Mixer(init, partial(_past, width, taps - 1), apply, Traits(spec=("conv", width, taps)))


def window_linear(
    width: int, features: tuple[int, ...], *, taps: int = 2, bias: tuple[float, ...] | None = (0.0,)
) -> Mixer:
    """u_t = [x_t; x_{t-1}; ...] W + b over the last `taps` live tokens of the same document (zero where there is none).

    features, bias: as `linear`. Parameters: kernel [taps D, *features] (the current token first), bias [*features].
    State: as `conv`. Raises ValueError for taps < 1.
    """
    if taps < 1:
        raise ValueError(f"a window needs at least 1 token, got {taps}")
    mapped = linear(taps * width, features, bias=bias)

    def apply(params, x, segments, state=None):
        tokens, restore, state = _look_back(x, segments, state, taps - 1)
        return restore(mapped.apply(params, jnp.concatenate(tokens, axis=-1), segments)[0]), state

    spec = ("window_linear", width, features, taps, bias)
    return Mixer(mapped.init, partial(_past, width, taps - 1), apply, Traits(spec=spec))


def shift(width: int, num: int) -> Mixer:
    """Token shift (Peng et al. 2023, equations 11-13): u_t^i = x_t + μ_i ⊙ (x_{t-1} - x_t) for `num` outputs i.

    x_{t-1} is the live token before x_t in the same document, zero where there is none. u is [B, T, num, D].
    Parameters: scale [num, D] (μ), uniform in [0, 1] at first. State: as `conv` with two taps.
    """

    def init(key):
        return {"scale": jax.random.uniform(key, (num, width))}

    def apply(params, x, segments, state=None):
        (_, before), restore, state = _look_back(x, segments, state, 1)
        wide = x.astype(state_dtype(x.dtype))[:, :, None]
        u = wide + params["scale"] * (restore(before)[:, :, None] - wide)
        return u.astype(x.dtype), state

    return Mixer(init, partial(_past, width, 1), apply, Traits(spec=("shift", width, num)))


def chain(first: Mixer, second: Mixer) -> Mixer:
    """y = second(first(x))."""

    def init(key):
        key_first, key_second = jax.random.split(key)
        return {"a": first.init(key_first), "b": second.init(key_second)}

    def init_state(batch_size, capacity):
        return {"a": first.init_state(batch_size, capacity), "b": second.init_state(batch_size, capacity)}

    causal = first.traits.causal and second.traits.causal

    def apply(params, x, segments, state=None):
        if state is not None and not causal:
            raise ValueError("a chain with a mixer that reads the future takes no state")
        state_a, state_b = (None, None) if state is None else (state["a"], state["b"])
        h, state_a = first.apply(params["a"], x, segments, state_a)
        y, state_b = second.apply(params["b"], h, segments, state_b)
        return y, None if state is None else {"a": state_a, "b": state_b}

    return Mixer(init, init_state, apply, Traits(causal, (("a", first), ("b", second)), ("chain",)))


def keep(mixer: Mixer) -> Mixer:
    """u = (x, mixer(x)): for a cell that reads both a token and a map of it."""

    def apply(params, x, segments, state=None):
        y, state = mixer.apply(params, x, segments, state)
        return (x, y), state

    return mixer._replace(apply=apply, traits=Traits(mixer.traits.causal, (("a", mixer),), ("keep",)))


def fork(first: Mixer, second: Mixer) -> Mixer:
    """u = (first(x), second(x))."""

    def init(key):
        key_first, key_second = jax.random.split(key)
        return {"a": first.init(key_first), "b": second.init(key_second)}

    def init_state(batch_size, capacity):
        return {"a": first.init_state(batch_size, capacity), "b": second.init_state(batch_size, capacity)}

    causal = first.traits.causal and second.traits.causal

    def apply(params, x, segments, state=None):
        state_a, state_b = (None, None) if state is None else (state["a"], state["b"])
        y_a, state_a = first.apply(params["a"], x, segments, state_a)
        y_b, state_b = second.apply(params["b"], x, segments, state_b)
        return (y_a, y_b), None if state is None else {"a": state_a, "b": state_b}

    return Mixer(init, init_state, apply, Traits(causal, (("a", first), ("b", second)), ("fork",)))


def activate(function: Callable[[Any], Any]) -> Mixer:
    """u = function(x), entry by entry."""

    def apply(params, x, segments, state=None):
        del params, segments
        return function(x), state

    return Mixer(lambda key: {}, _no_state, apply, Traits(spec=("activate", function)))


def block_linear(width: int, features: tuple[int, int], blocks: int) -> Mixer:
    """u = x W + b with W block diagonal: each of `blocks` groups of x makes its own part of every gate.

    Parameters: kernel [D / blocks, blocks, gates, N / blocks], bias [gates, N].
    Raises ValueError where `blocks` does not divide both widths.
    """
    gates, out = features
    if width % blocks or out % blocks:
        raise ValueError(f"blocks={blocks} must divide the widths {width} and {out}")

    def init(key):
        shape = (width // blocks, blocks, gates, out // blocks)
        return {"kernel": fan_in_normal(key, shape), "bias": jnp.zeros((gates, out))}

    def apply(params, x, segments, state=None):
        return (contract_blocks(x, params["kernel"], x.dtype) + params["bias"]).astype(x.dtype), state

    return Mixer(init, _no_state, apply, Traits(spec=("block_linear", width, features, blocks)))


def _past(width, memory, batch_size, capacity):
    """The state of `_look_back` before anything came."""
    del capacity
    return {
        "inputs": jnp.zeros((batch_size, memory, width), jnp.float32),
        "ids": jnp.full((batch_size, memory), FRESH, jnp.int32),
    }


def _look_back(x, segments, state, memory):
    """([x_t, x_{t-1}, ..., x_{t-memory}], restore, state): live tokens moved to the front, zeros for other documents.

    restore(y) puts what was made of them back into the order of x, zero in padding.
    """
    batch, length, width = x.shape
    before = _past(width, memory, batch, 0) if state is None else lax.stop_gradient(state)
    live = segments.ids > 0
    order, inverse = compaction(live)
    inputs = jnp.concatenate([before["inputs"].astype(x.dtype), permute(x, order, inverse)], axis=1)
    ids = jnp.concatenate([before["ids"], permute(segments.ids, order, inverse)], axis=1)

    def read(back):
        places = slice(memory - back, memory - back + length)
        same = ids[:, places] == ids[:, memory:]
        return jnp.where(same[..., None], inputs[:, places], 0)

    def restore(y):
        mask = live.reshape(live.shape + (1,) * (y.ndim - 2))
        return jnp.where(mask, permute(y, inverse, order), 0)

    if state is not None:
        last = jnp.sum(live, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(memory, dtype=jnp.int32)[None, :]
        kept = {
            "inputs": jnp.take_along_axis(inputs, last[..., None], axis=1),
            "ids": jnp.take_along_axis(ids, last, axis=1),
        }
        state = promote_state(kept, x.dtype)
    return [read(back) for back in range(memory + 1)], restore, state


def _no_state(batch_size, capacity):
    del batch_size, capacity
    return ()
