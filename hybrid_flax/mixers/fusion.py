"""Combinators: they take mixers and return a mixer, so that whatever holds for a mixer holds for a fusion.

`fuse` makes one of two mixers and a formula; those that follow it are made with it.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hybrid_flax.mixers.attention import sha
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract, project
from hybrid_flax.ops.norm import layer_norm, rms_norm
from hybrid_flax.ops.segments import document_positions
from hybrid_flax.ranges import Count
from hybrid_flax.typing import Array, Hidden, Init, Mixer, Params, Segments, State, Traits, state_dtype

__all__ = [
    "Branch",
    "add",
    "bi",
    "cascade",
    "concat",
    "context",
    "feed",
    "fuse",
    "gate",
    "parallel",
    "reverse",
    "sharnn",
]

Branch: TypeAlias = Callable[[Hidden], Hidden]  # a mixer whose params and state are given already


def fuse(
    name: str,
    a: Mixer,
    b: Mixer,
    combine: Callable[[Params, Hidden, Branch, Branch], Hidden],
    init_own: Init = lambda key: {},
) -> Mixer:
    """A mixer of a and b, which `combine(params, x, run_a, run_b)` runs once each.

        def scale(a, b, width):
            return fuse("scale", a, b, lambda params, x, run_a, run_b: run_a(x) * jax.nn.sigmoid(run_b(x)))

        register_fusion("scale", scale, "lstm+attn")

    The parts take and return their states, documents and padding behind `run_a` and `run_b`; `combine` works on each
    token by itself. Whatever it makes of padding is zero in the end.

    Args:
        name: in errors and in `traits.spec`.
        combine: (params, x[B,T,D], run_a, run_b) -> y[B,T,D]; params are those of `init_own`, beside "a" and "b".
        init_own: (key) -> parameters of the fusion itself, under names of `typing.LEAF_KINDS`; none by default.

    Raises:
        ValueError: by `init`, for parameters that are called "a" or "b"; by `apply`, for a part that is not run once,
            and for a state where a part reads the future.
    """
    traits = _traits(name, a, b, lambda a, b: fuse(name, a, b, combine, init_own))

    def init(key: Array) -> Params:
        key_a, key_b, key_own = jax.random.split(key, 3)
        own = init_own(key_own)
        if taken := own.keys() & {"a", "b"}:
            raise ValueError(
                f"fusion {name}: parameters {', '.join(sorted(taken))} are those of its parts: rename them"
            )
        return {"a": a.init(key_a), "b": b.init(key_b), **own}

    def init_state(batch_size: int, capacity: int) -> State:
        return {"a": a.init_state(batch_size, capacity), "b": b.init_state(batch_size, capacity)}

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Hidden, State | None]:
        if state is not None and not traits.causal:
            raise ValueError(f"{name} of a mixer that reads the future takes no state")
        after: dict[str, State] = {}

        def run(part: str, mixer: Mixer, x: Hidden) -> Hidden:
            if part in after:
                raise ValueError(f"fusion {name} runs its part {part} twice")
            y, after[part] = mixer.apply(params[part], x, segments, None if state is None else state[part])
            return y

        y = combine(params, x, lambda x: run("a", a, x), lambda x: run("b", b, x))
        if after.keys() != {"a", "b"}:
            raise ValueError(f"fusion {name} must run both of its parts, and runs {', '.join(after) or 'none'}")
        y = jnp.where((segments.ids > 0)[..., None], y, 0)
        return y, None if state is None else after

    return Mixer(init, init_state, apply, traits)


def cascade(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = h + b(h) with h = a(x): b reads the states of a and adds to them."""
    del width
    return fuse("cascade", a, b, lambda params, x, run_a, run_b: _cascade(x, run_a, run_b))


def add(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = a(x) + b(x): two parallel branches, summed."""
    del width
    return fuse("add", a, b, lambda params, x, run_a, run_b: run_a(x) + run_b(x))


def gate(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = g ⊙ a(x) + (1 - g) ⊙ b(x), g = σ(x W + c) per feature. Parameters: gate.kernel [D, D], gate.bias [D]."""

    def combine(params: Params, x: Hidden, run_a: Branch, run_b: Branch) -> Hidden:
        pre = contract(x, params["gate"]["kernel"], x.dtype)
        g = jax.nn.sigmoid(pre + align(params["gate"]["bias"], pre)).astype(x.dtype)
        return g * run_a(x) + (1 - g) * run_b(x)

    def init(key: Array) -> Params:
        return {"gate": {"kernel": fan_in_normal(key, (width, width)), "bias": jnp.zeros(width)}}

    return fuse("gate", a, b, combine, init)


def concat(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = [a(x); b(x)] W. Parameters: output.kernel [2 D, D]."""

    def combine(params: Params, x: Hidden, run_a: Branch, run_b: Branch) -> Hidden:
        return project(jnp.concatenate([run_a(x), run_b(x)], axis=-1), params["output"]["kernel"])

    def init(key: Array) -> Params:
        return {"output": {"kernel": fan_in_normal(key, (2 * width, width))}}

    return fuse("concat", a, b, combine, init)


def context(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = b(a(x)): b's reading of a's states alone goes on."""
    del width
    return fuse("context", a, b, lambda params, x, run_a, run_b: run_b(run_a(x)))


def parallel(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = (β_a ⊙ norm(a(x)) + β_b ⊙ norm(b(x))) / 2, norm(h) = h / rms(h): heads of both kinds in one block.

    As in Hymba (Dong et al. 2024, section 2.1), without its output map, which most mixers have: neither branch drowns
    the other, whatever the sizes of their outputs. Parameters: a_norm.scale, b_norm.scale [D] (β_a, β_b).
    """

    def combine(params: Params, x: Hidden, run_a: Branch, run_b: Branch) -> Hidden:
        return (rms_norm(run_a(x), **params["a_norm"]) + rms_norm(run_b(x), **params["b_norm"])) / 2

    def init(key: Array) -> Params:
        del key
        return {"a_norm": {"scale": jnp.ones(width)}, "b_norm": {"scale": jnp.ones(width)}}

    return fuse("parallel", a, b, combine, init)


def feed(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = b(LN(x + α a(x))): attention a inside the input map of a recurrence b, as in SRU++ (Lei 2021, section 3).

    α is a learned scalar that starts at 0, so that training starts from b alone. Parameters: residual.scale [1]
    (α), norm.scale and norm.bias [D].
    """

    def combine(params: Params, x: Hidden, run_a: Branch, run_b: Branch) -> Hidden:
        read = run_a(x).astype(state_dtype(x.dtype))
        fed = x + (align(params["residual"]["scale"], read) * read).astype(x.dtype)
        return run_b(layer_norm(fed, **params["norm"]))

    def init(key: Array) -> Params:
        del key
        return {"residual": {"scale": jnp.zeros(1)}, "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}

    return fuse("feed", a, b, combine, init)


def sharnn(a: Mixer, width: int, *, window: Count = 256) -> Mixer:
    """y = LN(h) + sha(h), h = a(x): an RNN, then one head over the last `window` of its own states (Merity 2019).

    `attention.sha` holds every parameter besides those of a: LN is its state_norm.
    """

    def combine(params: Params, x: Hidden, run_a: Branch, run_b: Branch) -> Hidden:
        h = run_a(x)
        return layer_norm(h, **params["b"]["state_norm"]) + run_b(h)

    return fuse("sharnn", a, sha(width, window=window), combine)


def bi(a: Mixer, width: int) -> Mixer:
    """Both directions: concat(a, reverse(a)), each with parameters of its own (Schuster & Paliwal 1997)."""
    fused = concat(a, reverse(a), width)
    return fused._replace(traits=fused.traits._replace(spec=("bi",)))


def reverse(a: Mixer) -> Mixer:
    """a from the end of every document to its start. A whole document must be there: it takes no state.

    Raises ValueError for a state.
    """

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Hidden, State | None]:
        if state is not None:
            raise ValueError("a reversed mixer reads the future and takes no state")
        ids = segments.ids[:, ::-1]
        y, _ = a.apply(params, x[:, ::-1], Segments(ids, document_positions(ids)))
        return y[:, ::-1], None

    def init_state(batch_size: int, capacity: int) -> State:
        raise ValueError("a reversed mixer reads the future and has no state to carry")

    watched, rebuild = a.traits.watched, a.traits.rebuild
    traits = Traits(False, (("a", a),), ("reverse", a.traits.spec))
    if watched is not None:
        traits = traits._replace(watched=lambda watch: reverse(watched(watch)))
    if rebuild is not None:  # the parts of a reversed fusion are its own, reversed
        parts = tuple((name, reverse(part)) for name, part in a.traits.parts)
        traits = traits._replace(parts=parts, rebuild=lambda *parts: reverse(rebuild(*map(reverse, parts))))
    return Mixer(a.init, init_state, apply, traits)


def _traits(name: str, a: Mixer, b: Mixer, rebuild: Callable[[Mixer, Mixer], Mixer]) -> Traits:
    return Traits(a.traits.causal and b.traits.causal, (("a", a), ("b", b)), (name,), rebuild)


def _cascade(x: Hidden, run_a: Branch, run_b: Branch) -> Hidden:
    h = run_a(x)
    return h + run_b(h)
