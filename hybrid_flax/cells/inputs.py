"""Input mixers: the maps x[B,T,D] -> u that a cell reads, done for all time steps before the scan."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract, contract_blocks
from hybrid_flax.ops.norm import layer_norm
from hybrid_flax.ops.rope import rope
from hybrid_flax.ops.segments import FRESH, compaction, permute
from hybrid_flax.ranges import Range
from hybrid_flax.typing import Array, Hidden, Mixer, Params, Segments, State, Traits, promote_state, state_dtype

__all__ = ["Taps", "activate", "block_linear", "compose", "conv", "fork", "keep", "linear", "rotary", "shift"]
__all__ += ["window_linear"]


Taps: TypeAlias = Annotated[int, Range(at_least=2, at_most=256)]  # each is an operation of its own in the program


def linear(
    width: int, features: tuple[int, ...], *, bias: tuple[float, ...] | None = (0.0,), normalised: bool = False
) -> Mixer:
    """u = x W + b, one product for all gates.

    features: the shape of u's last axes, (N,) or (gates, N). bias: None for no bias, else its initial value
    per gate (or one for all). normalised: u = LN(x W) ⊙ scale + b, each gate by itself (Ba et al. 2016).
    Parameters: kernel [D, *features], bias [*features], scale [*features] where normalised.
    """

    def init(key: Array) -> Params:
        params = {"kernel": fan_in_normal(key, (width, *features))}
        if bias is not None:
            start = jnp.asarray(bias).reshape(-1, *([1] * (len(features) - 1)))
            params["bias"] = jnp.broadcast_to(start, features).astype(jnp.float32)
        if normalised:
            params["scale"] = jnp.ones(features)
        return params

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Array, State | None]:
        u = contract(x, params["kernel"], x.dtype)
        if normalised:
            u = layer_norm(u, params["scale"])
        if bias is not None:
            u = u + align(params["bias"], u)
        return u.astype(x.dtype), state

    return Mixer(init, _no_state, apply, Traits(spec=("linear", width, features, bias, normalised)))


def conv(width: int, *, taps: Taps = 4) -> Mixer:
    """Short causal depthwise convolution y_t = b + sum_j w_j x_{t-j} over live tokens of the same document.

    Parameters: depthwise_kernel [taps, D] (w_0, the current token, first), bias [D]. State: the last taps - 1 live
    tokens of each row and their documents.
    """

    def init(key: Array) -> Params:
        return {"depthwise_kernel": fan_in_normal(key, (taps, width)), "bias": jnp.zeros(width)}

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Hidden, State | None]:
        tokens, restore, state = _look_back(x, segments, state, taps - 1)
        dtype = state_dtype(x.dtype)
        y = jnp.broadcast_to(params["bias"].astype(dtype), x.shape)
        for token, weight in zip(tokens, params["depthwise_kernel"].astype(x.dtype)):
            y = y + align(weight, y) * token.astype(dtype)
        return restore(y.astype(x.dtype)), state

    return Mixer(init, partial(_past, width, taps - 1), apply, Traits(spec=("conv", width, taps)))


def window_linear(
    width: int, features: tuple[int, ...], *, taps: int = 2, bias: tuple[float, ...] | None = (0.0,)
) -> Mixer:
    """u_t = [x_t; x_{t-1}; ...] W + b over the last `taps` live tokens of the same document (zero where there is none).

    features, bias: as `linear`. Parameters: kernel [taps D, *features] (the current token first), bias [*features].
    State: as `conv`.
    """
    mapped = linear(taps * width, features, bias=bias)

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Array, State | None]:
        tokens, restore, state = _look_back(x, segments, state, taps - 1)
        return restore(mapped.apply(params, jnp.concatenate(tokens, axis=-1), segments)[0]), state

    spec = ("window_linear", width, features, taps, bias)
    return Mixer(mapped.init, partial(_past, width, taps - 1), apply, Traits(spec=spec))


def shift(width: int, num: int) -> Mixer:
    """Token shift (Peng et al. 2023, equations 11-13): u_t^i = x_t + μ_i ⊙ (x_{t-1} - x_t) for `num` outputs i.

    x_{t-1} is the live token before x_t in the same document, zero where there is none. u is [B, T, num, D].
    Parameters: scale [num, D] (μ), uniform in [0, 1] at first. State: as `conv` with two taps.
    """

    def init(key: Array) -> Params:
        return {"scale": jax.random.uniform(key, (num, width))}

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Array, State | None]:
        (_, before), restore, state = _look_back(x, segments, state, 1)
        wide = x.astype(state_dtype(x.dtype))[:, :, None]
        u = wide + align(params["scale"], wide) * (restore(before)[:, :, None].astype(wide.dtype) - wide)
        return u.astype(x.dtype), state

    return Mixer(init, partial(_past, width, 1), apply, Traits(spec=("shift", width, num)))


def compose(first: Mixer, second: Mixer) -> Mixer:
    """y = second(first(x))."""
    return _pair("compose", first, second, lambda x, run_first, run_second: run_second(run_first(x)))


def fork(first: Mixer, second: Mixer) -> Mixer:
    """u = (first(x), second(x))."""
    return _pair("fork", first, second, lambda x, run_first, run_second: (run_first(x), run_second(x)))


def _pair(name: str, first: Mixer, second: Mixer, combine: Callable[..., Any]) -> Mixer:
    """A mixer of two, each run once by `combine(x, run_first, run_second)`; run_* hide params and states."""
    parts = {"a": first, "b": second}
    causal = first.traits.causal and second.traits.causal

    def init(key: Array) -> Params:
        return {part: mixer.init(part_key) for (part, mixer), part_key in zip(parts.items(), jax.random.split(key))}

    def init_state(batch_size: int, capacity: int) -> State:
        return {part: mixer.init_state(batch_size, capacity) for part, mixer in parts.items()}

    def apply(params: Params, x: Any, segments: Segments, state: State | None = None) -> tuple[Any, State | None]:
        if state is not None and not causal:
            raise ValueError(f"{name}: one of the two mixers reads the future, so that there is no state to take")
        after: dict[str, State] = {}

        def run(part: str, x: Any) -> Any:
            y, after[part] = parts[part].apply(params[part], x, segments, None if state is None else state[part])
            return y

        y = combine(x, lambda x: run("a", x), lambda x: run("b", x))
        return y, None if state is None else after

    return Mixer(init, init_state, apply, Traits(causal, tuple(parts.items()), (name,)))


def keep(mixer: Mixer) -> Mixer:
    """u = (x, mixer(x)): for a cell that reads both a token and a map of it."""

    def apply(params: Params, x: Any, segments: Segments, state: State | None = None) -> tuple[Any, State | None]:
        y, state = mixer.apply(params, x, segments, state)
        return (x, y), state

    return mixer._replace(apply=apply, traits=Traits(mixer.traits.causal, (("a", mixer),), ("keep",)))


def activate(function: Callable[[Any], Any]) -> Mixer:
    """u = function(x), entry by entry."""

    def apply(params: Params, x: Any, segments: Segments, state: State | None = None) -> tuple[Any, State | None]:
        del params, segments
        return function(x), state

    return Mixer(lambda key: {}, _no_state, apply, Traits(spec=("activate", function)))


def rotary(key_width: int, *, base: float = 10_000.0) -> Mixer:
    """Turn queries and keys, the first two `key_width` features of x[B,T,H,F], by their position as `ops.rope` does.

    Raises ValueError for an odd `key_width`.
    """
    if key_width % 2:
        raise ValueError(f"rotary needs an even key width, got {key_width}")

    def apply(params: Params, x: Array, segments: Segments, state: State | None = None) -> tuple[Array, State | None]:
        del params
        q, k, rest = jnp.split(x, (key_width, 2 * key_width), axis=-1)
        turned = (rope(part, segments.positions, base) for part in (q, k))
        return jnp.concatenate([*turned, rest], axis=-1), state

    return Mixer(lambda key: {}, _no_state, apply, Traits(spec=("rotary", key_width, base)))


def block_linear(width: int, features: tuple[int, int], blocks: int) -> Mixer:
    """u = x W + b with W block diagonal: each of `blocks` groups of x makes its own part of every gate.

    Parameters: kernel [D / blocks, blocks, gates, N / blocks], bias [gates, N].
    Raises ValueError where `blocks` does not divide both widths.
    """
    gates, out = features
    if width % blocks or out % blocks:
        raise ValueError(f"blocks={blocks} must divide the widths {width} and {out}")

    def init(key: Array) -> Params:
        shape = (width // blocks, blocks, gates, out // blocks)
        return {"kernel": fan_in_normal(key, shape), "bias": jnp.zeros((gates, out))}

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Array, State | None]:
        u = contract_blocks(x, params["kernel"], x.dtype)
        return (u + align(params["bias"], u)).astype(x.dtype), state

    return Mixer(init, _no_state, apply, Traits(spec=("block_linear", width, features, blocks)))


def _past(width: int, memory: int, batch_size: int, capacity: int) -> State:
    """The state of `_look_back` before anything came."""
    del capacity
    return {
        "inputs": jnp.zeros((batch_size, memory, width), jnp.float32),
        "ids": jnp.full((batch_size, memory), FRESH, jnp.int32),
    }


def _look_back(
    x: Hidden, segments: Segments, state: State | None, memory: int
) -> tuple[list[Hidden], Callable[[Array], Array], State | None]:
    """([x_t, x_{t-1}, ..., x_{t-memory}], restore, state): live tokens moved to the front, zeros for other documents.

    restore(y) puts what was made of them back into the order of x, zero in padding.
    """
    batch, length, width = x.shape
    before = _past(width, memory, batch, 0) if state is None else lax.stop_gradient(state)
    live = segments.ids > 0
    order, inverse = compaction(live)
    inputs = jnp.concatenate([before["inputs"].astype(x.dtype), permute(x, order, inverse)], axis=1)
    ids = jnp.concatenate([before["ids"], permute(segments.ids, order, inverse)], axis=1)

    def read(back: int) -> Hidden:
        places = slice(memory - back, memory - back + length)
        same = ids[:, places] == ids[:, memory:]
        return jnp.where(same[..., None], inputs[:, places], 0)

    def restore(y: Array) -> Array:
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


def _no_state(batch_size: int, capacity: int) -> State:
    del batch_size, capacity
    return ()
