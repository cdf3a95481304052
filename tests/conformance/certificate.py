"""The certificate: the properties that every mixer, and every fusion of mixers, has to have.

Each property is a function that raises AssertionError; `test_certificate` runs them over the registry and
`test_self_proof` over mixers that are broken on purpose. Shapes come from a small pool, so that all properties
share a mixer's few compiled programs; what varies are parameters, inputs, splits, documents and padding.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.mixers import registry
from hybrid_flax.mixers.recurrent import recurrent, run_cell
from hybrid_flax.typing import LEAF_KINDS, Cell, Mixer, Segments

BATCH, LENGTH, WIDTH, WINDOW = 3, 16, 16, 5
CHUNKS = (1, 5)  # lengths of a call besides LENGTH, and of the documents in `packing`
DOCUMENTS = (5, 5, 1, 1)  # lengths of the documents of a row in `packing`
TOLERANCE = 1e-5


class Subject(NamedTuple):
    """A mixer under test, with the programs that all properties share.

    run: (params, x, segments, state) -> (y, state).
    pull: (params, x, segments, state, dy) -> (y, gradients of sum(y dy) + sum(new state): params, x, state).
    fresh: the state before anything came, None for a mixer that takes none. base: initial parameters.
    traces: how often `run` was traced, by what it was given.
    """

    name: str
    mixer: Mixer
    run: Callable
    pull: Callable
    fresh: Any
    base: Any
    traces: Counter


def make_subject(name: str, mixer: Mixer, base: Any = None, *, batch: int = BATCH, capacity: int = LENGTH) -> Subject:
    """Wrap `mixer`; `base` are its initial parameters where they are known already."""
    traces = Counter()

    @jax.jit
    def run(params, x, segments, state):
        traces[x.shape, str(x.dtype), state is None] += 1
        return mixer.apply(params, x, segments, state)

    @jax.jit
    def pull(params, x, segments, state, dy):
        leaves, structure = jax.tree.flatten(state)
        floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

        def scalar(params, x, given):
            given = iter(given)
            mixed = [next(given) if is_float else leaf for leaf, is_float in zip(leaves, floating)]
            y, after = mixer.apply(params, x, segments, jax.tree.unflatten(structure, mixed))
            return jnp.vdot(y, dy) + sum(jnp.sum(leaf) for leaf in inexact(after)), y

        given = [leaf for leaf, is_float in zip(leaves, floating) if is_float]
        gradients, y = jax.grad(scalar, (0, 1, 2), has_aux=True)(params, x, given)
        return y, *gradients

    if base is None:
        base = jax.device_get(jax.jit(mixer.init)(jax.random.key(0)))
    fresh = jax.device_get(mixer.init_state(batch, capacity)) if mixer.traits.causal else None
    return Subject(name, mixer, run, pull, fresh, base, traces)


@functools.cache
def registered(name: str) -> Subject:
    """The subject of a registered name, its windows short enough to be reached."""
    return make_subject(name, registry.make_mixer(name, WIDTH, **narrowed(name)))


def narrowed(name: str, **options: Any) -> dict[str, Any]:
    """`options`, and WINDOW for every part that has a window by default, as far as the parts of `name` have them."""
    given = {}
    for part in registry.parse_layer(name)[1]:
        known = registry.mixer_options()[part]
        if "window" in known and known["window"].default is not None:
            given[f"{part}.window"] = WINDOW
        given |= {f"{part}.{key}": value for key, value in options.items() if key in known}
    return given


@functools.cache
def cell_of(name: str, width: int = WIDTH) -> Cell | None:
    """The cell under a registered name, caught on its way into `recurrent`; None where there is none."""
    caught = []

    def catch(cell, width, **options):
        caught.append(cell)
        return recurrent(cell, width, **options)

    with mock.patch.object(registry, "recurrent", catch):
        registry._primitives[name].build(width)
    return caught[0] if caught else None


def registered_cells() -> list[str]:
    """The registered names that stand for a cell."""
    return [name for name in registry.mixer_options() if cell_of(name) is not None]


# Inputs


def jitter(base: Any, rng: np.random.Generator, size: float = 0.3) -> Any:
    """`base` plus noise, so that no zero bias and no unit scale hides a fault."""
    return jax.tree.map(lambda leaf: leaf + (size * rng.standard_normal(leaf.shape)).astype(leaf.dtype), base)


def noise(init: Callable, rng: np.random.Generator, size: float = 0.5) -> Any:
    """Parameters of nothing but noise, in the shapes that `init` would make: costs no compilation."""
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return jitter(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), rng, size)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.standard_normal(shape).astype(np.float32)


def draw(subject: Subject, seed: int) -> tuple[Any, np.ndarray, np.random.Generator]:
    """Parameters, inputs of BATCH x LENGTH, and a generator for what else is needed."""
    rng = np.random.default_rng(seed)
    return jitter(subject.base, rng), normal(rng, BATCH, LENGTH, WIDTH), rng


def segments_of(rows: Sequence[str]) -> Segments:
    """Segments from one letter a token: "n" opens a document, "p" is padding, any other letter continues."""
    ids, positions = np.zeros((2, len(rows), len(rows[0])), np.int32)
    for b, row in enumerate(rows):
        document, position = 1, 0
        for t, letter in enumerate(row):
            if letter == "p":
                continue
            if letter == "n":
                document, position = document + 1, 0
            ids[b, t], positions[b, t] = document, position
            position += 1
    return Segments(ids, positions)


def plain(length: int) -> Segments:
    """One document in every row, no padding."""
    return segments_of(["." * length] * BATCH)


def cut(segments: Segments, start: int, stop: int) -> Segments:
    """The segments of the tokens from start to stop."""
    return Segments(segments.ids[:, start:stop], segments.positions[:, start:stop])


# Comparisons


def distance(a: Any, b: Any) -> float:
    """max|a - b| / max|b|; infinite where b is nothing but zero and a is not, or where b is not finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    error = float(np.max(np.abs(a - b), initial=0.0))
    size = float(np.max(np.abs(b), initial=0.0))
    if error == 0.0:
        return 0.0
    return error / size if 0.0 < size < np.inf else np.inf


def assert_close(a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
    """Every inexact leaf of a within `tolerance` of that of b, every other leaf equal."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, leaf), wanted in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
        where = jax.tree_util.keystr(path)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            error = distance(leaf, wanted)
            assert error <= tolerance, f"{where}: {error:.1e} is more than {tolerance:.0e}"
        else:
            assert np.array_equal(leaf, wanted), where


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit."""
    assert_close(a, b, 0.0)


def assert_zero(x: Any) -> None:
    """Exactly zero in every leaf."""
    for leaf in jax.tree.leaves(x):
        assert not np.any(np.asarray(leaf)), f"{np.max(np.abs(leaf)):.1e} is not zero"


def assert_finite(x: Any) -> None:
    """Neither NaN nor infinite in any leaf."""
    for path, leaf in jax.tree.leaves_with_path(x):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64))), jax.tree_util.keystr(path)


def inexact(tree: Any) -> list[Any]:
    """The floating and complex leaves."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


# Properties of a mixer


def any_split(subject: Subject, rows: Sequence[str], split: Sequence[int], seed: int) -> None:
    """One call equals any split into chunks with carried state, in outputs and in the last state."""
    params, x, _ = draw(subject, seed)
    segments = segments_of(rows)
    whole, last = subject.run(params, x, segments, subject.fresh)
    pieces, state = [], subject.fresh
    for start, stop in pairwise(accumulate(split, initial=0)):
        y, state = subject.run(params, x[:, start:stop], cut(segments, start, stop), state)
        pieces.append(y)
    assert_close(np.concatenate(pieces, axis=1), whole)
    assert_close(state, last)
    stateless, *_ = subject.pull(params, x, segments, None, np.zeros_like(x))
    assert_close(stateless, whole)


def packing(subject: Subject, orders: Sequence[Sequence[int]], pads: Sequence[Sequence[int]], seed: int) -> None:
    """Documents packed in a row, padding anywhere, equal each document alone in a call of its own length.

    orders: the order of DOCUMENTS in each row. pads: for each row, the places of LENGTH - sum(DOCUMENTS) pads.
    """
    params, x, _ = draw(subject, seed)
    rows, places = zip(*(_packed_row(order, where) for order, where in zip(orders, pads)))
    segments = segments_of(rows)
    y, state = subject.run(params, x, segments, subject.fresh)
    y = np.asarray(y)
    assert_zero(y[segments.ids == 0])
    index = np.arange(BATCH)[:, None]
    for document, length in enumerate(DOCUMENTS):
        columns = np.stack([row[document] for row in places])
        alone, alone_state = subject.run(params, x[index, columns], plain(length), subject.fresh)
        assert_close(y[index, columns], alone)
    if state is not None:
        assert_shapes(state, alone_state)


def left_padding(subject: Subject, seed: int) -> None:
    """Padding in front, behind or within equals no padding, in outputs and in the state it leaves behind."""
    params, x, _ = draw(subject, seed)
    rows = ["p" * 11 + "." * 5, "." * 5 + "p" * 11, "pp.ppp.ppp.ppp.."]
    segments = segments_of(rows)
    columns = np.stack([np.flatnonzero(row) for row in segments.ids])
    index = np.arange(BATCH)[:, None]
    y, state = subject.run(params, x, segments, subject.fresh)
    alone, alone_state = subject.run(params, x[index, columns], plain(5), subject.fresh)
    assert_close(np.asarray(y)[index, columns], alone)
    assert_zero(np.asarray(y)[segments.ids == 0])
    assert_close(state, alone_state)


def rows_independent(subject: Subject, rows: Sequence[str], order: Sequence[int], seed: int) -> None:
    """A permutation of the rows permutes outputs and states; what stands in the other rows does not matter."""
    params, x, rng = draw(subject, seed)
    order = np.asarray(order)
    segments = segments_of(rows)
    y, state = subject.run(params, x, segments, subject.fresh)
    moved = Segments(segments.ids[order], segments.positions[order])
    y_moved, state_moved = subject.run(params, x[order], moved, subject.fresh)
    assert_close(y_moved, np.asarray(y)[order])
    assert_close(state_moved, jax.tree.map(lambda leaf: np.asarray(leaf)[order], state))
    other, others = normal(rng, *x.shape), segments_of(list(rows)[::-1])
    other[0] = x[0]
    others.ids[0], others.positions[0] = segments.ids[0], segments.positions[0]
    y_other, _ = subject.run(params, other, others, subject.fresh)
    assert_close(np.asarray(y_other)[0], np.asarray(y)[0])


def garbage_in_padding(subject: Subject, rows: Sequence[str], seed: int) -> None:
    """What stands in padding, and what gradient comes down to it, changes no output, gradient or state."""
    params, x, rng = draw(subject, seed)
    segments = segments_of(rows)
    dead = segments.ids == 0
    dy, dirty, dirty_dy = normal(rng, *x.shape), x.copy(), None
    dy[dead] = 0.0
    dirty_dy = dy.copy()
    dirty[dead] = 1e4 * normal(rng, dead.sum(), WIDTH)
    dirty_dy[dead] = 1e4 * normal(rng, dead.sum(), WIDTH)
    y, dparams, dx, _ = subject.pull(params, x, segments, None, dy)
    y_dirty, dparams_dirty, dx_dirty, _ = subject.pull(params, dirty, segments, None, dirty_dy)
    assert_zero(np.asarray(y_dirty)[dead])
    assert_zero(np.asarray(dx_dirty)[dead])
    assert_same((y_dirty, dparams_dirty, dx_dirty), (y, dparams, dx))
    assert_same(
        subject.run(params, dirty, segments, subject.fresh),
        subject.run(params, x, segments, subject.fresh),
    )


def causality(subject: Subject, rows: Sequence[str], t: int, seed: int) -> None:
    """y_t has no gradient to later tokens (where the mixer is causal) and none to other documents, exactly."""
    params, x, rng = draw(subject, seed)
    segments = segments_of(rows)
    dy = np.zeros_like(x)
    dy[:, t] = normal(rng, BATCH, WIDTH)
    _, _, dx, _ = subject.pull(params, x, segments, None, dy)
    may = (segments.ids == segments.ids[:, [t]]) & (segments.ids > 0)
    if subject.mixer.traits.causal:
        may &= np.arange(LENGTH)[None, :] <= t
    assert_zero(np.asarray(dx)[~may])


def reach(subject: Subject, seed: int) -> None:
    """y_t has a gradient to its own and to the last token, and to the next one where the mixer is not causal."""
    params, x, rng = draw(subject, seed)
    dy = np.zeros_like(x)
    dy[:, 8] = normal(rng, BATCH, WIDTH)
    _, _, dx, _ = subject.pull(params, x, plain(LENGTH), None, dy)
    reached = np.max(np.abs(dx), axis=(0, 2)) > 0
    assert reached[7] and reached[8]
    assert reached[9] != subject.mixer.traits.causal


def state_is_cut(subject: Subject, seed: int) -> None:
    """The gradient with respect to a state that came from outside is exactly zero; the state itself matters."""
    params, x, rng = draw(subject, seed)
    _, warm = subject.run(params, x[:, :5], cut(plain(LENGTH), 0, 5), subject.fresh)
    later = cut(plain(LENGTH), 5, 10)
    dy = normal(rng, BATCH, 5, WIDTH)
    y, _, _, dstate = subject.pull(params, x[:, 5:10], later, warm, dy)
    assert dstate
    assert_zero(dstate)
    cold, _ = subject.run(params, x[:, 5:10], later, subject.fresh)
    assert distance(cold, y) > 1e-3


def state_contract(subject: Subject) -> None:
    """Axis 0 of every leaf is the batch; what apply returns has the structure, shapes and dtypes of init_state."""
    mixer = subject.mixer
    for batch, length in ((2, 1), (7, 3)):
        state = jax.eval_shape(lambda batch=batch: mixer.init_state(batch, LENGTH))
        assert all(leaf.shape[0] == batch for leaf in jax.tree.leaves(state))
        x = jax.ShapeDtypeStruct((batch, length, WIDTH), jnp.float32)
        ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        y, after = jax.eval_shape(mixer.apply, subject.base, x, Segments(ids, ids), state)
        assert_shapes(y, x)
        assert_shapes(after, state)
    assert jax.eval_shape(mixer.apply, subject.base, x, Segments(ids, ids))[1] is None


def assert_shapes(a: Any, b: Any) -> None:
    """Equal structure, shapes and dtypes."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for leaf, wanted in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)


def compiles_once(subject: Subject, seed: int) -> None:
    """Neither other values, nor a state that a call gave back, nor an equal mixer trace a program again."""
    params, x, rng = draw(subject, seed)
    state = subject.fresh
    for start in range(0, 10, 5):
        segments = cut(segments_of(["p." * 8, "." * LENGTH, "..n." * 4]), start, start + 5)
        _, state = subject.run(params, x[:, start : start + 5], segments, state)
    subject.run(jitter(subject.base, rng), x[:, :5], plain(5), subject.fresh)
    assert subject.traces
    assert set(subject.traces.values()) == {1}, subject.traces


def bfloat16(subject: Subject, seed: int) -> None:
    """bfloat16 in gives bfloat16 out and a state in float32, near the float32 result."""
    params, x, _ = draw(subject, seed)
    x = x[:, :5]
    y, state = subject.run(params, x.astype(jnp.bfloat16), plain(5), subject.fresh)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in inexact(state)} <= {np.dtype("float32"), np.dtype("complex64")}
    if state is not None:
        assert_shapes(state, subject.fresh)
    wanted, _ = subject.run(params, x.astype(jnp.bfloat16).astype(np.float32), plain(5), subject.fresh)
    assert distance(y, wanted) < 0.1


def jit_equals_eager(subject: Subject, seed: int) -> None:
    """The compiled program computes what the plain one does."""
    params, x, _ = draw(subject, seed)
    arguments = jax.tree.map(jnp.asarray, (params, x[:, :5], plain(5), subject.fresh))
    assert_close(subject.run(*arguments), subject.mixer.apply(*arguments))


def finite_gradients(subject: Subject, seed: int) -> None:
    """Rows of padding make no NaN, and a batch of nothing but padding has no gradient at all."""
    params, x, rng = draw(subject, seed)
    dy = normal(rng, *x.shape)
    _, *gradients = subject.pull(params, x, segments_of(["p" * 16, "." * 16, "p" * 15 + "."]), None, dy)
    assert_finite(gradients)
    assert_zero(np.asarray(gradients[1])[0])
    y, *gradients = subject.pull(params, x, segments_of(["p" * 16] * BATCH), None, dy)
    assert_zero((y, gradients))


def initial_parameters(subject: Subject) -> None:
    """Named by LEAF_KINDS, float32, finite, different for another key, and made under vmap as well."""
    for path, leaf in jax.tree.leaves_with_path(subject.base):
        assert path[-1].key in LEAF_KINDS, jax.tree_util.keystr(path)
        assert leaf.dtype == np.float32
    assert_finite(subject.base)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    stacked = jax.eval_shape(jax.vmap(subject.mixer.init), keys)
    assert_shapes(stacked, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((4, *leaf.shape), leaf.dtype), subject.base))


def refuses_state(subject: Subject) -> None:
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
            assert str(error) and "\n" not in str(error)
        else:
            raise AssertionError("a state was taken")


def _state_of_parts(mixer):
    """What a caller might think that the state of `mixer` is."""
    if mixer.traits.causal:
        return mixer.init_state(1, LENGTH)
    return {key: _state_of_parts(part) for key, part in mixer.traits.parts}


# Properties of a cell


class CellSubject(NamedTuple):
    """A cell under test, with its programs by the name of the form.

    run: (params, u, reset, hold, state) -> (y, state), the recurrence alone.
    pull: (params, x, segments, state, dy, dstate) -> outputs, last state and gradients of `recurrent(cell)`.
    """

    cell: Cell
    base: Any
    run: dict[str, Callable]
    pull: dict[str, Callable]


def make_cell_subject(cell: Cell) -> CellSubject:
    """Wrap `cell`; nothing is compiled before it is used."""
    forms = ("sequential", *cell.forms)
    base = jax.device_get(jax.jit(recurrent(cell, WIDTH).init)(jax.random.key(0)))
    run = {form: jax.jit(functools.partial(run_cell, cell, form)) for form in forms}
    return CellSubject(cell, base, run, {form: _pull_cell(cell, form) for form in forms})


@functools.cache
def registered_cell(name: str) -> CellSubject:
    """The subject of the cell under a registered name."""
    return make_cell_subject(cell_of(name))


def recurrence_bits(subject: CellSubject, form: str, rows: Sequence[str], split: Sequence[int], seed: int) -> None:
    """The recurrence alone, on equal projected inputs, is the same bit for bit under any split.

    rows: as `segments_of`, an "n" being a reset and a "p" a hold.
    """
    rng = np.random.default_rng(seed)
    params = jitter(subject.base, rng)["cell"]
    u = jax.tree.map(lambda leaf: normal(rng, *leaf.shape), _projected(subject))
    state = jax.eval_shape(lambda: subject.cell.init_state(BATCH))
    state = jax.tree.map(lambda leaf: normal(rng, *leaf.shape), state)
    reset, hold = (np.array([[letter == mark for letter in row] for row in rows]) for mark in "np")
    whole, last = subject.run[form](params, u, reset, hold, state)
    pieces = []
    for start, stop in pairwise(accumulate(split, initial=0)):
        chunk = jax.tree.map(lambda leaf, a=start, b=stop: leaf[:, a:b], (u, reset, hold))
        y, state = subject.run[form](params, *chunk, state)
        pieces.append(y)
    assert_same(np.concatenate(pieces, axis=1)[~hold], np.asarray(whole)[~hold])
    assert_same(state, last)


def forms_agree(subject: CellSubject, form: str, rows: Sequence[str], seed: int) -> None:
    """Values and gradients of `form` in float32 are near those of the sequential form in float64."""
    rng = np.random.default_rng(seed)
    params = jitter(subject.base, rng)
    x, dy = normal(rng, BATCH, LENGTH, WIDTH), normal(rng, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda: recurrent(subject.cell, WIDTH).init_state(BATCH, LENGTH))
    arguments = (params, x, segments_of(rows), _warm(shapes, rng), dy, _warm(shapes, rng))
    values = jax.device_get(subject.pull[form](*arguments))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, arguments)
        reference = jax.device_get(subject.pull["sequential"](*wide))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(reference))
    assert_close(values, reference)


def _projected(subject):
    """The shapes of what the cell's input mixer makes of BATCH x LENGTH tokens."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    return jax.eval_shape(subject.cell.input.apply, subject.base["input"], x, Segments(ids, ids))[0]


def _pull_cell(cell, form):
    mixer = recurrent(cell, WIDTH, form=form)

    @jax.jit
    def pull(params, x, segments, state, dy, dstate):
        def scalar(params, x):
            y, after = mixer.apply(params, x, segments, state)
            products = jax.tree.map(jnp.vdot, inexact(after), inexact(dstate))
            return jnp.vdot(y, dy) + sum(products), (y, inexact(after))

        gradients, (y, after) = jax.grad(scalar, (0, 1), has_aux=True)(params, x)
        return {"y": y, "state": after, "params": gradients[0], "x": gradients[1]}

    return pull


def _warm(shapes, rng):
    """A state in the middle of document 1: its integers are document ids."""
    return jax.tree.map(
        lambda leaf: normal(rng, *leaf.shape) if leaf.dtype == jnp.float32 else np.ones(leaf.shape, leaf.dtype),
        shapes,
    )


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
