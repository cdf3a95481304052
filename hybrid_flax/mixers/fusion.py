"""Combinators: they take mixers and return a mixer, so that whatever holds for a mixer holds for a fusion."""

import jax
import jax.numpy as jnp

from hybrid_flax.cells.inputs import chain
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract, project
from hybrid_flax.ops.segments import document_positions
from hybrid_flax.typing import Mixer, Segments, Traits, state_dtype

__all__ = ["add", "bi", "cascade", "concat", "context", "gate", "reverse"]


def cascade(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = h + b(h) with h = a(x): b reads the states of a and adds to them."""
    del width
    return _fuse("cascade", a, b, lambda params, x, run_a, run_b: _cascade(x, run_a, run_b))


def add(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = a(x) + b(x): two parallel branches, summed."""
    del width
    return _fuse("add", a, b, lambda params, x, run_a, run_b: run_a(x) + run_b(x))


def gate(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = g ⊙ a(x) + (1 - g) ⊙ b(x), g = σ(x W + c) per feature. Parameters: gate.kernel [D, D], gate.bias [D]."""

    def combine(params, x, run_a, run_b):
        pre = contract(x, params["gate"]["kernel"], x.dtype) + params["gate"]["bias"]
        g = jax.nn.sigmoid(pre.astype(state_dtype(x.dtype))).astype(x.dtype)
        return g * run_a(x) + (1 - g) * run_b(x)

    def init(key):
        return {"gate": {"kernel": fan_in_normal(key, (width, width)), "bias": jnp.zeros(width)}}

    return _fuse("gate", a, b, combine, init)


def concat(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = [a(x); b(x)] W. Parameters: output.kernel [2 D, D]."""

    def combine(params, x, run_a, run_b):
        return project(jnp.concatenate([run_a(x), run_b(x)], axis=-1), params["output"]["kernel"])

    def init(key):
        return {"output": {"kernel": fan_in_normal(key, (2 * width, width))}}

    return _fuse("concat", a, b, combine, init)


def context(a: Mixer, b: Mixer, width: int) -> Mixer:
    """y = b(a(x)): b's reading of a's states alone goes on."""
    del width
    return chain(a, b)._replace(traits=_traits("context", a, b))


def bi(a: Mixer, width: int) -> Mixer:
    """Both directions: concat(a, reverse(a)), each with parameters of its own (Schuster & Paliwal 1997)."""
    fused = concat(a, reverse(a), width)
    return fused._replace(traits=fused.traits._replace(spec=("bi",)))


def reverse(a: Mixer) -> Mixer:
    """a from the end of every document to its start. A whole document must be there: it takes no state.

    Raises ValueError for a state.
    """

    def apply(params, x, segments, state=None):
        if state is not None:
            raise ValueError("a reversed mixer reads the future and takes no state")
        ids = segments.ids[:, ::-1]
        y, _ = a.apply(params, x[:, ::-1], Segments(ids, document_positions(ids)))
        return y[:, ::-1], None

    def init_state(batch_size, capacity):
        raise ValueError("a reversed mixer reads the future and has no state to carry")

    return Mixer(a.init, init_state, apply, Traits(False, (("a", a),), ("reverse",)))


def _traits(name, a, b):
    return Traits(a.traits.causal and b.traits.causal, (("a", a), ("b", b)), (name,))


def _cascade(x, run_a, run_b):
    h = run_a(x)
    return h + run_b(h)


def _fuse(name, a, b, combine, init_own=lambda key: {}) -> Mixer:
    """A mixer of a and b, each run once by `combine(params, x, run_a, run_b)`; run_* hide params and states."""

    traits = _traits(name, a, b)

    def init(key):
        key_a, key_b, key_own = jax.random.split(key, 3)
        return {"a": a.init(key_a), "b": b.init(key_b), **init_own(key_own)}

    def init_state(batch_size, capacity):
        return {"a": a.init_state(batch_size, capacity), "b": b.init_state(batch_size, capacity)}

    def apply(params, x, segments, state=None):
        if state is not None and not traits.causal:
            raise ValueError(f"{name} of a mixer that reads the future takes no state")
        after = {}

        def run(part, mixer, x):
            y, after[part] = mixer.apply(params[part], x, segments, None if state is None else state[part])
            return y

        y = combine(params, x, lambda x: run("a", a, x), lambda x: run("b", b, x))
        return y, None if state is None else after

    return Mixer(init, init_state, apply, traits)
