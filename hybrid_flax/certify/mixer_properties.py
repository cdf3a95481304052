"""Properties of a mixer. Each returns its worst relative error, or raises `Violation`.

rows: BATCH strings of LENGTH letters as `subjects.segments_of` reads them. split: lengths of chunks that add up to
LENGTH. seed: parameters and inputs.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.certify.checks import (
    check_close,
    check_finite,
    check_same,
    check_shapes,
    check_zero,
    distance,
    inexact,
    require,
)
from hybrid_flax.certify.subjects import (
    BATCH,
    DOCUMENTS,
    LENGTH,
    WIDTH,
    Subject,
    cut,
    draw,
    jitter,
    normal,
    plain,
    segments_of,
)
from hybrid_flax.typing import LEAF_KINDS, Mixer, Segments, State

__all__ = [
    "any_split",
    "bfloat16",
    "causality",
    "compiles_once",
    "finite_gradients",
    "garbage_in_padding",
    "initial_parameters",
    "jit_equals_eager",
    "left_padding",
    "packing",
    "reach",
    "refuses_state",
    "rows_independent",
    "state_contract",
    "state_is_cut",
]


def any_split(subject: Subject, rows: Sequence[str], split: Sequence[int], seed: int) -> float:
    """One call equals any split into chunks with carried state, in outputs and in the last state."""
    params, x, _ = draw(subject, seed)
    segments = segments_of(rows)
    whole, last = subject.run(params, x, segments, subject.fresh)
    pieces, state = [], subject.fresh
    for start, stop in pairwise(accumulate(split, initial=0)):
        y, state = subject.run(params, x[:, start:stop], cut(segments, start, stop), state)
        pieces.append(y)
    stateless, *_ = subject.pull(params, x, segments, None, np.zeros_like(x))
    return max(
        check_close(np.concatenate(pieces, axis=1), whole), check_close(state, last), check_close(stateless, whole)
    )


def packing(subject: Subject, orders: Sequence[Sequence[int]], pads: Sequence[Sequence[int]], seed: int) -> float:
    """Documents packed in a row, padding anywhere, equal each document alone in a call of its own length.

    orders: the order of DOCUMENTS in each row. pads: for each row, the places of LENGTH - sum(DOCUMENTS) pads.
    """
    params, x, _ = draw(subject, seed)
    rows, places = zip(*(_packed_row(order, where) for order, where in zip(orders, pads)))
    segments = segments_of(rows)
    y, state = subject.run(params, x, segments, subject.fresh)
    y = np.asarray(y)
    check_zero(y[segments.ids == 0])
    index = np.arange(BATCH)[:, None]
    worst = 0.0
    for document, length in enumerate(DOCUMENTS):
        columns = np.stack([row[document] for row in places])
        alone, alone_state = subject.run(params, x[index, columns], plain(length), subject.fresh)
        worst = max(worst, check_close(y[index, columns], alone))
    if state is not None:
        check_shapes(state, alone_state)
    return worst


def left_padding(subject: Subject, seed: int) -> float:
    """Padding in front, behind or within equals no padding, in outputs and in the state it leaves behind."""
    params, x, _ = draw(subject, seed)
    rows = ["p" * 8 + "." * 8, "." * 8 + "p" * 8, "pp.ppp..p..pp..."]
    segments = segments_of(rows)
    columns = np.stack([np.flatnonzero(row) for row in segments.ids])
    index = np.arange(BATCH)[:, None]
    y, state = subject.run(params, x, segments, subject.fresh)
    alone, alone_state = subject.run(params, x[index, columns], plain(8), subject.fresh)
    check_zero(np.asarray(y)[segments.ids == 0])
    return max(check_close(np.asarray(y)[index, columns], alone), check_close(state, alone_state))


def rows_independent(subject: Subject, rows: Sequence[str], order: Sequence[int], seed: int) -> float:
    """A permutation of the rows permutes outputs and states; what stands in the other rows does not matter."""
    params, x, rng = draw(subject, seed)
    moves = np.asarray(order)
    segments = segments_of(rows)
    y, state = subject.run(params, x, segments, subject.fresh)
    moved = Segments(segments.ids[moves], segments.positions[moves])
    y_moved, state_moved = subject.run(params, x[moves], moved, subject.fresh)
    worst = max(
        check_close(y_moved, np.asarray(y)[moves]),
        check_close(state_moved, jax.tree.map(lambda leaf: np.asarray(leaf)[moves], state)),
    )
    other, others = normal(rng, *x.shape), segments_of(list(rows)[::-1])
    other[0] = x[0]
    others.ids[0], others.positions[0] = segments.ids[0], segments.positions[0]
    y_other, _ = subject.run(params, other, others, subject.fresh)
    return max(worst, check_close(np.asarray(y_other)[0], np.asarray(y)[0]))


def garbage_in_padding(subject: Subject, rows: Sequence[str], seed: int) -> float:
    """What stands in padding, and what gradient comes down to it, changes no output, gradient or state: exactly."""
    params, x, rng = draw(subject, seed)
    segments = segments_of(rows)
    dead = segments.ids == 0
    dy, dirty = normal(rng, *x.shape), x.copy()
    dy[dead] = 0.0
    dirty_dy = dy.copy()
    dirty[dead] = 1e4 * normal(rng, int(dead.sum()), WIDTH)
    dirty_dy[dead] = 1e4 * normal(rng, int(dead.sum()), WIDTH)
    y, dparams, dx, _ = subject.pull(params, x, segments, None, dy)
    y_dirty, dparams_dirty, dx_dirty, _ = subject.pull(params, dirty, segments, None, dirty_dy)
    check_zero(np.asarray(y_dirty)[dead])
    check_zero(np.asarray(dx_dirty)[dead])
    check_same((y_dirty, dparams_dirty, dx_dirty), (y, dparams, dx))
    return check_same(
        subject.run(params, dirty, segments, subject.fresh),
        subject.run(params, x, segments, subject.fresh),
    )


def causality(subject: Subject, rows: Sequence[str], t: int, seed: int) -> float:
    """y_t has no gradient to later tokens (where the mixer is causal) and none to other documents, exactly."""
    params, x, rng = draw(subject, seed)
    segments = segments_of(rows)
    dy = np.zeros_like(x)
    dy[:, t] = normal(rng, BATCH, WIDTH)
    _, _, dx, _ = subject.pull(params, x, segments, None, dy)
    may = (segments.ids == segments.ids[:, [t]]) & (segments.ids > 0)
    if subject.mixer.traits.causal:
        may &= np.arange(LENGTH)[None, :] <= t
    return check_zero(np.asarray(dx)[~may])


def reach(subject: Subject, seed: int) -> float:
    """y_t has a gradient to its own and to the last token, and to the next one where the mixer is not causal.

    t = 10 stands inside a block: memory that gets no gradient ends where a block begins.
    """
    params, x, rng = draw(subject, seed)
    dy = np.zeros_like(x)
    dy[:, 10] = normal(rng, BATCH, WIDTH)
    _, _, dx, _ = subject.pull(params, x, plain(LENGTH), None, dy)
    reached = np.max(np.abs(dx), axis=(0, 2)) > 0
    require(reached[9] and reached[10], "y_t does not depend on token t - 1 or t")
    require(reached[11] != subject.mixer.traits.causal, "traits.causal is not what the gradient says")
    return 0.0


def state_is_cut(subject: Subject, seed: int) -> float:
    """The gradient with respect to a state that came from outside is exactly zero; the state itself matters."""
    params, x, rng = draw(subject, seed)
    _, warm = subject.run(params, x[:, :8], cut(plain(LENGTH), 0, 8), subject.fresh)
    later = cut(plain(LENGTH), 8, 16)
    dy = normal(rng, BATCH, 8, WIDTH)
    y, _, _, dstate = subject.pull(params, x[:, 8:], later, warm, dy)
    require(dstate, "the state has no inexact leaf")
    check_zero(dstate)
    cold, _ = subject.run(params, x[:, 8:], later, subject.fresh)
    require(distance(cold, y) > 1e-3, "the state that was passed in changes nothing")
    return 0.0


def state_contract(subject: Subject) -> float:
    """Axis 0 of every leaf is the batch; what apply returns has the structure, shapes and dtypes of init_state."""
    mixer = subject.mixer
    for batch, length in ((2, 1), (7, 3)):
        state = jax.eval_shape(lambda batch=batch: mixer.init_state(batch, LENGTH))
        require(all(leaf.shape[0] == batch for leaf in jax.tree.leaves(state)), "axis 0 of a leaf is not the batch")
        x = jax.ShapeDtypeStruct((batch, length, WIDTH), jnp.float32)
        ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        segments = Segments._make((ids, ids))
        y, after = jax.eval_shape(mixer.apply, subject.base, x, segments, state)
        check_shapes(y, x)
        check_shapes(after, state)
    stateless = jax.eval_shape(mixer.apply, subject.base, x, segments)[1]
    require(stateless is None, "a state comes back where none was passed in")
    return 0.0


def compiles_once(subject: Subject, seed: int) -> float:
    """Neither other values, nor a state that a call gave back, nor an equal mixer trace a program again."""
    params, x, rng = draw(subject, seed)
    state = subject.fresh
    for start in (0, 8):
        segments = cut(segments_of(["p." * 8, "." * LENGTH, "..n." * 4]), start, start + 8)
        _, state = subject.run(params, x[:, start : start + 8], segments, state)
    subject.run(jitter(subject.base, rng), x[:, :8], plain(8), subject.fresh)
    require(set(subject.traces.values()) == {1}, f"traced more than once: {dict(subject.traces)}")
    return 0.0


def bfloat16(subject: Subject, seed: int) -> float:
    """bfloat16 in gives bfloat16 out and a state in float32; nine tenths of the outputs within 10 % of float32's.

    The rest may be outputs of a head that cancel to almost nothing before a norm blows them up, rounding and all.
    """
    params, x, _ = draw(subject, seed)
    x = x[:, :8]
    y, state = subject.run(params, x.astype(jnp.bfloat16), plain(8), subject.fresh)
    require(y.dtype == jnp.bfloat16, f"the output is {y.dtype}")
    dtypes = {str(leaf.dtype) for leaf in inexact(state)}
    require(dtypes <= {"float32", "complex64"}, f"the state is {', '.join(sorted(dtypes))}")
    if state is not None:
        check_shapes(state, subject.fresh)
    wanted, _ = subject.run(params, x.astype(jnp.bfloat16).astype(np.float32), plain(8), subject.fresh)
    errors = np.abs(np.asarray(y, np.float64) - np.asarray(wanted, np.float64)) / np.max(np.abs(wanted))
    worst = float(np.quantile(errors, 0.9))
    require(worst <= 0.1, f"output: a tenth of it is off by {worst:.1e} or more, more than 10 %")
    return worst


def jit_equals_eager(subject: Subject, seed: int) -> float:
    """The compiled program computes what the plain one does."""
    params, x, _ = draw(subject, seed)
    arguments = jax.tree.map(jnp.asarray, (params, x[:, :8], plain(8), subject.fresh))
    return check_close(subject.run(*arguments), subject.mixer.apply(*arguments))


def finite_gradients(subject: Subject, seed: int) -> float:
    """Rows of padding make no NaN, and a batch of nothing but padding has no gradient at all."""
    params, x, rng = draw(subject, seed)
    dy = normal(rng, *x.shape)
    _, *gradients = subject.pull(params, x, segments_of(["p" * 16, "." * 16, "p" * 15 + "."]), None, dy)
    check_finite(gradients)
    check_zero(np.asarray(gradients[1])[0])
    y, *gradients = subject.pull(params, x, segments_of(["p" * 16] * BATCH), None, dy)
    return check_zero((y, gradients))


def initial_parameters(subject: Subject) -> float:
    """Named by LEAF_KINDS, float32, finite, and made under vmap as well."""
    for path, leaf in jax.tree.leaves_with_path(subject.base):
        where = jax.tree_util.keystr(path)
        require(path[-1].key in LEAF_KINDS, f"{where}: a name that typing.LEAF_KINDS does not know")
        require(leaf.dtype == np.float32, f"{where}: {leaf.dtype}")
    check_finite(subject.base)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    stacked = jax.eval_shape(jax.vmap(subject.mixer.init), keys)
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((4, *leaf.shape), leaf.dtype), subject.base)
    return check_shapes(stacked, wanted)


def refuses_state(subject: Subject) -> float:
    """A mixer that reads the future answers a state with a ValueError of one line."""
    mixer = subject.mixer
    x, ids = jnp.zeros((1, 2, WIDTH)), jnp.ones((1, 2), jnp.int32)
    attempts = (
        lambda: mixer.init_state(1, LENGTH),
        lambda: jax.eval_shape(
            lambda params: mixer.apply(params, x, Segments(ids, ids), _state_of_parts(mixer)), subject.base
        ),
    )
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            require(str(error) and "\n" not in str(error), "the error is not one line")
        else:
            require(False, "a state was taken")
    return 0.0


def _state_of_parts(mixer: Mixer) -> State:
    """What a caller might think that the state of `mixer` is."""
    if mixer.traits.causal:
        return mixer.init_state(1, LENGTH)
    return {key: _state_of_parts(part) for key, part in mixer.traits.parts}


def _packed_row(order, pads):
    """The letters of a row, and the columns of each document by its place in DOCUMENTS."""
    letters = ["p"] * LENGTH
    free = [t for t in range(LENGTH) if t not in pads]
    columns = {}
    for document in order:
        columns[document], free = free[: DOCUMENTS[document]], free[DOCUMENTS[document] :]
        for t in columns[document]:
            letters[t] = "."
        letters[columns[document][0]] = "n"
    return "".join(letters), columns
