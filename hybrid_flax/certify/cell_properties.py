"""Properties of a cell and its forms. Each returns its worst relative error, or raises `Violation`."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.certify.checks import check_close, check_same, require
from hybrid_flax.certify.subjects import BATCH, LENGTH, WIDTH, CellSubject, jitter, normal, segments_of
from hybrid_flax.mixers.recurrent import recurrent
from hybrid_flax.typing import Segments

__all__ = ["forms_agree", "recurrence_bits"]


def recurrence_bits(subject: CellSubject, form: str, rows: Sequence[str], split: Sequence[int], seed: int) -> float:
    """The recurrence alone, on equal projected inputs, leaves the same state bit for bit under any split.

    Outputs are read off equal states, by matrix products that may round another way in another program: within
    TOLERANCE, and exactly where the cell reads out its state as it is. rows: as `segments_of`, an "n" being a reset
    and a "p" a hold.
    """
    rng = np.random.default_rng(seed)
    params = jitter(subject.base, rng)["cell"]
    u = _draw(_projected(subject), rng)
    state = _draw(jax.eval_shape(lambda: subject.cell.init_state(BATCH)), rng)
    reset, hold = (np.array([[letter == mark for letter in row] for row in rows]) for mark in "np")
    whole, last = subject.run[form](params, u, reset, hold, state)
    pieces = []
    for start, stop in pairwise(accumulate(split, initial=0)):
        chunk = jax.tree.map(lambda leaf, a=start, b=stop: leaf[:, a:b], (u, reset, hold))
        y, state = subject.run[form](params, *chunk, state)
        pieces.append(y)
    check_same(state, last)
    return check_close(np.concatenate(pieces, axis=1)[~hold], np.asarray(whole)[~hold])


def forms_agree(subject: CellSubject, form: str, rows: Sequence[str], seed: int) -> float:
    """Values and gradients of `form` in float32 are near those of the sequential form in float64."""
    rng = np.random.default_rng(seed)
    params = jitter(subject.base, rng)
    x, dy = normal(rng, BATCH, LENGTH, WIDTH), normal(rng, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda: recurrent(subject.cell, WIDTH).init_state(BATCH, LENGTH))
    arguments = (params, x, segments_of(rows), _draw(shapes, rng), dy, _draw(shapes, rng))
    values = jax.device_get(subject.pull[form](*arguments))
    with jax.enable_x64(True):
        reference = jax.device_get(subject.pull["sequential"](*jax.tree.map(_widen, arguments)))
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(reference)}
    require(dtypes <= {"float64", "complex128"}, f"the reference is {', '.join(sorted(dtypes))}, not float64")
    return check_close(values, reference)


def _projected(subject):
    """The shapes of what the cell's input mixer makes of BATCH x LENGTH tokens."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    return jax.eval_shape(subject.cell.input.apply, subject.base["input"], x, Segments._make((ids, ids)))[0]


def _draw(shapes, rng):
    """Noise in every inexact leaf; integers are document ids, and 1 is the first of a row."""

    def leaf(shape):
        if jnp.issubdtype(shape.dtype, jnp.complexfloating):
            return (normal(rng, *shape.shape) + 1j * normal(rng, *shape.shape)).astype(shape.dtype)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return normal(rng, *shape.shape)
        return np.ones(shape.shape, shape.dtype)

    return jax.tree.map(leaf, shapes)


def _widen(leaf):
    return leaf.astype({"float32": "float64", "complex64": "complex128"}.get(str(leaf.dtype), leaf.dtype))
