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
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int, Key, PyTree, Shaped

__all__ = [
    "LEAF_KINDS",
    "Array",
    "AttentionMask",
    "AttentionScores",
    "Batch",
    "Bool",
    "Cell",
    "CellFinish",
    "CellForm",
    "CellInitState",
    "CellStep",
    "Float",
    "HeadStates",
    "HeadValues",
    "Heads",
    "Hidden",
    "Inexact",
    "Init",
    "Int",
    "Key",
    "Mixer",
    "MixerApply",
    "MixerInitState",
    "Params",
    "PyTree",
    "RowIds",
    "Scalar",
    "Segments",
    "Shaped",
    "State",
    "TokenIds",
    "TokenMask",
    "Traits",
    "promote_state",
    "state_dtype",
]

Params: TypeAlias = PyTree  # nested dict of arrays whose innermost names are in LEAF_KINDS
State: TypeAlias = PyTree  # axis 0 of every leaf is the batch

# The shapes that the package speaks of most; others are written out where they stand.
Scalar: TypeAlias = Float[Array, ""]  # one number: a rate, a loss, a sum
TokenMask: TypeAlias = Bool[Array, "B T"]  # yes or no for every token: is it live, reset, held
TokenIds: TypeAlias = Int[Array, "B T"]  # an integer for every token: its id, document, tag or place
RowIds: TypeAlias = Int[Array, "B"]  # an integer for every row: its number, its document
Hidden: TypeAlias = Float[Array, "B T D"]  # the vectors of all tokens, of model width
Heads: TypeAlias = Float[Array, "B T H K"]  # queries or keys of all tokens, one per head
HeadValues: TypeAlias = Float[Array, "B T H N"]  # values of all tokens, or what was read of them, one per head
HeadStates: TypeAlias = Float[Array, "B H K N"]  # the matrix that every head of a row remembers
AttentionMask: TypeAlias = Bool[Array, "B T S"]  # which tokens of the source each query may read
AttentionScores: TypeAlias = Float[Array, "B H T S"]  # a number for every pair of query and key, one per head

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

    ids: TokenIds
    positions: TokenIds

    @classmethod
    def single(cls, batch_size: int, length: int, offset: int = 0) -> "Segments":
        """One document a row, no padding; `offset` is the position of the first token."""
        positions = jnp.arange(offset, offset + length, dtype=jnp.int32)
        return cls(jnp.ones((batch_size, length), jnp.int32), jnp.tile(positions, (batch_size, 1)))


class Batch(NamedTuple):
    """Rows that a model reads, and what is asked of them: arrays of numpy until a step takes them to a device.

    tokens: int32 [B, T], or [B, T, 1 + W] where words are spelt: a word, then W characters (0: none). 0 in padding.
    targets: int32 [B, T] (the next token, a symbol or a tag), int32 [B] (a class), float32 [B, C] (whether each class
        is given) or float32 [B] (a number); 0 in padding.
    weights: float32 [B, T], or [B] where a row has one target: 1 where the target counts, else 0.
    row: int32, number of the row in the batch of all processes.
    num_chars, num_bytes: int32, characters and UTF-8 bytes of the original text under each target, 0 where it does not
        count; None where nobody asks for them.
    """

    tokens: Int[Array, "B T *W"]
    segments: Segments
    targets: Shaped[Array, "B *T"]
    weights: Float[Array, "B *T"]
    row: RowIds
    num_chars: TokenIds | None = None
    num_bytes: TokenIds | None = None


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


@runtime_checkable
class Init(Protocol):
    """Draws params, a nested dict of arrays, which knows nothing of the depth it stands at."""

    def __call__(self, key: Array, /) -> Params: ...


@runtime_checkable
class MixerInitState(Protocol):
    """The state before the first token; `capacity` is the number of live tokens a row can cache."""

    def __call__(self, batch_size: int, capacity: int, /) -> State: ...


@runtime_checkable
class MixerApply(Protocol):
    """(params, x[B,T,D], segments, state=None) -> (y[B,T,D], state or None).

    A whole sequence, a chunk of a prompt and one decoded token are the same call with another T. `state=None` means
    that nothing came before and that no state is wanted. Gradients stop at a state that is passed in.
    An input map of a cell reads and returns any pytree of [B,T,...] in place of x and y.
    """

    def __call__(
        self, params: Params, x: PyTree[Shaped[Array, "B T ..."]], segments: Segments, /, state: State | None = None
    ) -> tuple[PyTree[Shaped[Array, "B T ..."]], State | None]: ...


class Mixer(NamedTuple):
    """Mixes information along time: four values, closed under the combinators of `mixers.fusion`.

    init: (key) -> params.
    init_state: (batch_size, capacity) -> state.
    apply: (params, x[B,T,D], segments, state=None) -> (y[B,T,D], state or None).
    traits: what it is.
    """

    init: Init
    init_state: MixerInitState
    apply: MixerApply
    traits: Traits


@runtime_checkable
class CellInitState(Protocol):
    """The state in front of the first token of a document: float32 or complex64, not necessarily zero."""

    def __call__(self, batch_size: int, /) -> State: ...


@runtime_checkable
class CellStep(Protocol):
    """(params, state, u_t) -> (state, y_t[B,N]), one token of every row; knows nothing of padding or documents.

    u_t is what the cell's input map made of the token: a pytree of [B,...].
    """

    def __call__(
        self, params: Params, state: State, u_t: PyTree[Shaped[Array, "B ..."]], /
    ) -> tuple[State, Float[Array, "B N"]]: ...


@runtime_checkable
class CellForm(Protocol):
    """(params, u, reset[B,T], hold[B,T], state) -> (y[B,T,N], state): the steps of a whole sequence at once.

    u: a pytree of [B,T,...]. reset: the cell's first state stands in front of the token. hold: the token leaves the
    state alone, and its y is not read.
    """

    def __call__(
        self, params: Params, u: PyTree[Shaped[Array, "B T ..."]], reset: TokenMask, hold: TokenMask, state: State, /
    ) -> tuple[Float[Array, "B T N"], State]: ...


@runtime_checkable
class CellFinish(Protocol):
    """(params, u, y[B,T,N]) -> y[B,T,N], token by token, behind the norm of each head."""

    def __call__(
        self, params: Params, u: PyTree[Shaped[Array, "B T ..."]], y: Float[Array, "B T N"], /
    ) -> Float[Array, "B T N"]: ...


class Cell(NamedTuple):
    """One time step of a recurrence, and the map that feeds it.

    input: a mixer x[B,T,D] -> u, a pytree of [B,T,...]: every input map, before the scan.
    init: (key) -> params of the recurrence.
    init_state: (batch_size) -> state.
    step: (params, state, u_t) -> (state, y_t[B,N]).
    width: N, the width of y_t; `recurrent` maps it back to D.
    forms: other ways to compute the same recurrence over a whole sequence, by name.
    heads: how many equal parts y_t consists of, each normalised on its own.
    finish: what comes behind that norm; None for nothing.
    """

    input: Mixer
    init: Init
    init_state: CellInitState
    step: CellStep
    width: int
    forms: Mapping[str, CellForm] = MappingProxyType({})
    heads: int = 1
    finish: CellFinish | None = None


def state_dtype(dtype: Any) -> Any:
    """Dtype of states, decays, gate biases and softmaxes under inputs of `dtype`: at least float32."""
    return np.promote_types(dtype, np.float32)  # JAX's own knows no common dtype under strict promotion


def promote_state(state: State, dtype: Any) -> State:
    """Raise the inexact leaves of `state` to `state_dtype(dtype)` (complex stays complex)."""

    def promote(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf.astype(np.promote_types(leaf.dtype, state_dtype(dtype)))

    return jax.tree.map(promote, state)
