"""The shape vocabulary and the contracts: everything else in the package is written in these terms.

Dims, the same letters in annotations, einsums (lower case) and names:

| letter | meaning              | letter | meaning               |
|--------|----------------------|--------|-----------------------|
| B      | batch (rows)         | H      | attention heads       |
| T      | time (tokens)        | G      | key/value heads       |
| S      | source / cache time  | K      | width of a head       |
| D      | model width          | N      | width of a state      |
| V      | vocabulary           | L      | layers                |
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int, Key, PyTree, Shaped

__all__ = [
    "LEAF_KINDS",
    "Array",
    "Bool",
    "Cell",
    "Float",
    "Inexact",
    "Int",
    "Key",
    "Mixer",
    "Params",
    "PyTree",
    "Segments",
    "Shaped",
    "State",
    "Traits",
    "promote_state",
    "state_dtype",
]

Params = PyTree  # nested dict of arrays whose innermost names are in LEAF_KINDS
State = PyTree  # axis 0 of every leaf is the batch

LEAF_KINDS: dict[str, str] = {
    "kernel": "matrix",
    "recurrent_kernel": "matrix",
    "depthwise_kernel": "vector",
    "bias": "vector",
    "recurrent_bias": "vector",
    "scale": "vector",
    "decay": "vector",
    "timescale": "vector",
    "phase": "vector",
    "embedding": "table",
}
"""What a parameter's name says it is; weight decay, Muon and sharding go by this and never by the number of axes.

"matrix": first axis in, last axis out, a separate matrix for every index between. Extended by `register_*(leaves=)`.
"""


class Segments(NamedTuple):
    """Which document each token belongs to, and where in it the token stands.

    ids: document of each token, unique within a row for as long as the row's state is carried; 0 is
        padding, which may stand anywhere, also inside a document.
    positions: place of the token inside its own document, counted from 0 over live tokens.
    """

    ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]

    @classmethod
    def single(cls, batch_size: int, length: int, offset: int = 0) -> "Segments":
        """One document a row, no padding; `offset` is the position of the first token."""
        positions = jnp.arange(offset, offset + length, dtype=jnp.int32)
        return cls(jnp.ones((batch_size, length), jnp.int32), jnp.tile(positions, (batch_size, 1)))


class Traits(NamedTuple):
    """What a mixer is.

    causal: whether y_t depends on nothing later than t. A mixer that is not causal takes no state.
    parts: the child mixers by name, in order.
    spec: the name under which it was built and its options, enough to build it again.
    rebuild: (*mixers) -> the same fusion of other parts, whose params are params[name]; None for what is no fusion.
    watched: (watch) -> the same attention, whose apply calls watch(weights[B,H,T,S], queries, keys) while it is
        traced; None for what has no such weights.
    """

    causal: bool = True
    parts: tuple[tuple[str, "Mixer"], ...] = ()
    spec: tuple[Any, ...] = ()
    rebuild: Callable[..., "Mixer"] | None = None
    watched: Callable[[Callable[..., None]], "Mixer"] | None = None


class Mixer(NamedTuple):
    """Mixes information along time: four values, closed under the combinators of `mixers.fusion`.

    init: (key) -> params, a nested dict of arrays that knows nothing of the depth it stands at.
    init_state: (batch_size, capacity) -> state; `capacity` is the number of live tokens a row can cache.
    apply: (params, x[B,T,D], segments, state=None) -> (y[B,T,D], state or None). A whole sequence, a chunk
        of a prompt and one decoded token are the same call with another T. `state=None` means that nothing
        came before and that no state is wanted. Gradients stop at a state that is passed in.
    traits: what it is.
    """

    init: Callable[[Array], Params]
    init_state: Callable[[int, int], State]
    apply: Callable[..., tuple[Any, State]]
    traits: Traits


class Cell(NamedTuple):
    """One time step of a recurrence, and the map that feeds it.

    input: a mixer x[B,T,D] -> u, a pytree of [B,T,...]: every input map, before the scan.
    init: (key) -> params of the recurrence.
    init_state: (batch_size) -> state, float32 or complex64, not necessarily zero.
    step: (params, state, u_t) -> (state, y_t[B,N]); knows nothing of padding or documents.
    width: N, the width of y_t; `recurrent` maps it back to D.
    forms: other ways to compute the same recurrence over a whole sequence, by name:
        (params, u, reset[B,T], hold[B,T], state) -> (y[B,T,N], state).
    heads: how many equal parts y_t consists of, each normalised on its own.
    finish: (params, u, y[B,T,N]) -> y[B,T,N], what comes behind that norm, token by token; None for nothing.
    """

    input: Mixer
    init: Callable[[Array], Params]
    init_state: Callable[[int], State]
    step: Callable[[Params, State, Any], tuple[State, Any]]
    width: int
    forms: Mapping[str, Callable[..., tuple[Any, State]]] = MappingProxyType({})
    heads: int = 1
    finish: Callable[[Params, Any, Any], Any] | None = None


def state_dtype(dtype: Any) -> Any:
    """Dtype of states, decays, gate biases and softmaxes under inputs of `dtype`: at least float32."""
    return np.promote_types(dtype, np.float32)  # JAX's own knows no common dtype under strict promotion


def promote_state(state: State, dtype: Any) -> State:
    """Raise the inexact leaves of `state` to `state_dtype(dtype)` (complex stays complex)."""

    def promote(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf.astype(np.promote_types(leaf.dtype, state_dtype(dtype)))

    return jax.tree.map(promote, state)
