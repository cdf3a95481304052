"""What is certified: mixers and cells with the compiled programs that all properties share, and inputs for them.

Shapes come from a small pool, so that few programs are compiled; what varies are parameters, inputs, splits,
documents and padding.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.certify.checks import inexact
from hybrid_flax.mixers import registry
from hybrid_flax.mixers.recurrent import recurrent, run_cell
from hybrid_flax.typing import Cell, Mixer, Segments

__all__ = [
    "BATCH",
    "CHUNKS",
    "DOCUMENTS",
    "LENGTH",
    "WIDTH",
    "WINDOW",
    "CellSubject",
    "Subject",
    "cell_subject_of",
    "cut",
    "draw",
    "forget",
    "jitter",
    "make_cell_subject",
    "make_subject",
    "narrowed",
    "noise",
    "normal",
    "plain",
    "registered",
    "registered_cell",
    "segments_of",
    "subject_of",
]

BATCH, LENGTH, WIDTH, WINDOW = 3, 16, 16, 5
CHUNKS = (1, 3, 8)  # lengths of a call besides LENGTH, and of the documents in `packing`
SHORT = {"window": WINDOW, "chunk": 4, "block": 4}  # options that say how far a mixer reaches in one piece
DOCUMENTS = (8, 3, 1, 1)  # lengths of the documents of a row in `packing`


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
    traces: Counter[Any]


class CellSubject(NamedTuple):
    """A cell under test, with its programs by the name of the form.

    run: (params, u, reset, hold, state) -> (y, state), the recurrence alone.
    pull: (params, x, segments, state, dy, dstate) -> outputs, last state and gradients of `recurrent(cell)`.
    """

    cell: Cell
    base: Any
    run: dict[str, Callable]
    pull: dict[str, Callable]


def make_subject(name: str, mixer: Mixer, base: Any = None, *, batch: int = BATCH, capacity: int = LENGTH) -> Subject:
    """Wrap `mixer`; `base` are its initial parameters where they are known already."""
    traces: Counter[Any] = Counter()

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
            return jnp.vdot(y, dy) + sum(jnp.sum(leaf.real + leaf.imag) for leaf in inexact(after)), y

        given = [leaf for leaf, is_float in zip(leaves, floating) if is_float]
        gradients, y = jax.grad(scalar, (0, 1, 2), has_aux=True)(params, x, given)
        return y, *gradients

    if base is None:
        base = jax.device_get(jax.jit(mixer.init)(jax.random.key(0)))
    fresh = jax.device_get(mixer.init_state(batch, capacity)) if mixer.traits.causal else None
    return Subject(name, mixer, run, pull, fresh, base, traces)


def make_cell_subject(cell: Cell) -> CellSubject:
    """Wrap `cell`; nothing is compiled before it is used."""
    forms = ("sequential", *cell.forms)
    base = jax.device_get(jax.jit(recurrent(cell, WIDTH).init)(jax.random.key(0)))
    run: dict[str, Callable] = {form: jax.jit(functools.partial(run_cell, cell, form)) for form in forms}
    return CellSubject(cell, base, run, {form: _pull_cell(cell, form) for form in forms})


def registered(name: str) -> Subject:
    """The subject of a registered name, its windows and chunks short enough to be reached."""
    return subject_of(name, registry.make_mixer(name, WIDTH, **narrowed(name)))


def registered_cell(name: str) -> CellSubject:
    """The subject of the cell under a registered name."""
    return cell_subject_of(name, registry.make_mixer(name, WIDTH, **narrowed(name)))


subject_of = functools.cache(make_subject)


@functools.cache
def cell_subject_of(name: str, mixer: Mixer) -> CellSubject:
    """mixer: of the cell, told apart from one that was registered under this name before."""
    del mixer
    options = {key.partition(".")[2]: value for key, value in narrowed(name).items()}
    cell = registry.make_cell(name, WIDTH, **options)
    assert cell is not None, f"{name} is no cell"
    return make_cell_subject(cell)


def forget() -> None:
    """Drop all subjects and compiled programs: a program holds memory maps, of which a process may have but so many."""
    subject_of.cache_clear()
    cell_subject_of.cache_clear()
    jax.clear_caches()


def narrowed(name: str, **options: Any) -> dict[str, Any]:
    """`options` as far as the parts of `name` have them, and short windows, chunks and blocks where they have any."""
    given = {}
    for part in registry.parse_layer(name).names:
        known = registry.mixer_options().get(part, {})
        for key, length in SHORT.items():
            if key in known and known[key].default is not None:
                given[f"{part}.{key}"] = length
        given |= {f"{part}.{key}": value for key, value in options.items() if key in known}
    return given


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
    return Segments._make((ids, positions))  # of numpy, to be written into


def plain(length: int) -> Segments:
    """One document in every row, no padding."""
    return segments_of(["." * length] * BATCH)


def cut(segments: Segments, start: int, stop: int) -> Segments:
    """The segments of the tokens from start to stop."""
    return Segments(segments.ids[:, start:stop], segments.positions[:, start:stop])


def _pull_cell(cell, form):
    mixer = recurrent(cell, WIDTH, form=form)

    @jax.jit
    def pull(params, x, segments, state, dy, dstate):
        def scalar(params, x):
            y, after = mixer.apply(params, x, segments, state)
            products = jax.tree.map(lambda a, b: jnp.real(jnp.vdot(a, b)), inexact(after), inexact(dstate))
            return jnp.vdot(y, dy) + sum(products), (y, inexact(after))

        gradients, (y, after) = jax.grad(scalar, (0, 1), has_aux=True)(params, x)
        return {"y": y, "state": after, "params": gradients[0], "x": gradients[1]}

    return pull
