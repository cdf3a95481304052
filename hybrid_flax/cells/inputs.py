"""Input mixers: the maps x[B,T,D] -> u that a cell reads, done for all time steps before the scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract
from hybrid_flax.ops.segments import FRESH, compaction, permute
from hybrid_flax.typing import Mixer, Traits, promote_state, state_dtype

__all__ = ["activate", "block_linear", "chain", "conv", "fork", "keep", "linear"]


def linear(width: int, features: tuple[int, ...], *, bias: tuple[float, ...] | None = (0.0,)) -> Mixer:
    """u = x W + b, one product for all gates.

    features: the shape of u's last axes, (N,) or (gates, N). bias: None for no bias, else its initial value
    per gate (or one for all). Parameters: kernel [D, *features], bias [*features].
    """

    def init(key):
        params = {"kernel": fan_in_normal(key, (width, *features))}
        if bias is not None:
            start = jnp.asarray(bias).reshape(-1, *([1] * (len(features) - 1)))
            params["bias"] = jnp.broadcast_to(start, features).astype(jnp.float32)
        return params

    def apply(params, x, segments, state=None):
        u = contract(x, params["kernel"], x.dtype)
        if bias is not None:
            u = u + params["bias"]
        return u.astype(x.dtype), state

    return Mixer(init, _no_state, apply, Traits(spec=("linear", width, features, bias)))


def conv(width: int, *, taps: int = 4) -> Mixer:
    """Short causal depthwise convolution y_t = b + sum_j w_j x_{t-j} over live tokens of the same document.

    Parameters: depthwise_kernel [taps, D] (w_0, the current token, first), bias [D]. State: the last taps - 1 live
    tokens of each row and their documents. Raises ValueError for taps < 2.
    """
    if taps < 2:
        raise ValueError(f"conv needs at least 2 taps, got {taps}")
    memory = taps - 1

    def init(key):
        return {"depthwise_kernel": fan_in_normal(key, (taps, width)), "bias": jnp.zeros(width)}

    def init_state(batch_size, capacity):
        del capacity
        return {
            "inputs": jnp.zeros((batch_size, memory, width), jnp.float32),
            "ids": jnp.full((batch_size, memory), FRESH, jnp.int32),
        }

    def apply(params, x, segments, state=None):
        batch, length, _ = x.shape
        before = init_state(batch, 0) if state is None else lax.stop_gradient(state)
        live = segments.ids > 0
        order, inverse = compaction(live)
        inputs = jnp.concatenate([before["inputs"].astype(x.dtype), permute(x, order, inverse)], axis=1)
        ids = jnp.concatenate([before["ids"], permute(segments.ids, order, inverse)], axis=1)
        dtype = state_dtype(x.dtype)
        y = jnp.broadcast_to(params["bias"].astype(dtype), x.shape)
        for tap in range(taps):
            places = slice(memory - tap, memory - tap + length)
            same = ids[:, places] == ids[:, memory:]
            weight = params["depthwise_kernel"][tap].astype(x.dtype).astype(dtype)
            y = y + weight * jnp.where(same[..., None], inputs[:, places], 0).astype(dtype)
        y = jnp.where(live[..., None], permute(y.astype(x.dtype), inverse, order), 0)
        if state is None:
            return y, None
        last = jnp.sum(live, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(memory, dtype=jnp.int32)[None, :]
        kept = {
            "inputs": jnp.take_along_axis(inputs, last[..., None], axis=1),
            "ids": jnp.take_along_axis(ids, last, axis=1),
        }
        return y, promote_state(kept, x.dtype)

    return Mixer(init, init_state, apply, Traits(spec=("conv", width, taps)))


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
        grouped = x.reshape(*x.shape[:-1], blocks, width // blocks)
        y = jnp.einsum(
            "btki,ikgo->btgko",
            grouped,
            params["kernel"].astype(x.dtype),
            preferred_element_type=jnp.dtype(state_dtype(x.dtype)),
        )
        return (y.reshape(*x.shape[:-1], gates, out) + params["bias"]).astype(x.dtype), state

    return Mixer(init, _no_state, apply, Traits(spec=("block_linear", width, features, blocks)))


def _no_state(batch_size, capacity):
    del batch_size, capacity
    return ()
