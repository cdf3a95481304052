"""What a fusion makes of its parts: how loud each is, what the model is worth without it, where gates and heads are."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hybrid_flax.console import make_console
from hybrid_flax.errors import ConfigError
from hybrid_flax.files import read_json, reading, write_json
from hybrid_flax.insides import apply_changed, gate_of, parts_of
from hybrid_flax.models.model import SequenceModel, layer_mixer
from hybrid_flax.models.swap import unscanned
from hybrid_flax.tasks.base import Task
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.evaluate import split_batches
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.load import read_run
from hybrid_flax.training.setup import read_source
from hybrid_flax.typing import Batch, Mixer, Params

__all__ = [
    "COLUMNS",
    "Diagnosis",
    "Gate",
    "Part",
    "diagnose",
    "diagnose_run",
    "part_cells",
    "print_diagnosis",
    "saved_diagnosis",
]

COLUMNS = ("part", "rms", "ratio", "without", "gate", "0 to 1", "distance", "grad")

_BATCHES = 4  # of a split: enough to rank parts, and quick
_BINS = 10  # of a gate's histogram


class Gate(NamedTuple):
    """A fusion's weight g of its first part, over tokens and features. histogram: shares in ten bins of [0, 1]."""

    mean: float
    std: float
    histogram: tuple[float, ...]


class Part(NamedTuple):
    """One mixer of a model: all that stands in a layer (path ()), or a part of it ("a" of its parts: path ("a",)).

    rms: of its output over live tokens and features. ratio: rms / that of the parts beside it; None where none is.
    loss_without: of the model when its output is zero wherever it is read: without a, `cascade` is y = b(0) and
    `context` is b(0) too; without b, `cascade` is y = a(x), which leaves h alone, `context` and `feed` are y = 0;
    without path (), the layer is skipped (but for its MLP). gradient_norm: of its parameters, inner parts included.
    gate: g where it is a fusion with a gate. distance: expected |t - s| of what each head reads, in tokens, where it
    is attention.
    """

    layer: int
    path: tuple[str, ...]
    name: str
    rms: float
    ratio: float | None
    loss_without: float
    gradient_norm: float
    gate: Gate | None
    distance: tuple[float, ...] | None


class Diagnosis(NamedTuple):
    """loss: in nats, of the model as it is, every row from nothing. rows: read for it.

    parts: all, by layer, the whole before its parts. gradients: norm of the gradient of the loss by what it is taken
    to: "embed", "layer 0", ..., "norm", "head", ....
    """

    loss: float
    rows: int
    parts: tuple[Part, ...]
    gradients: dict[str, float]


def diagnose_run(workdir: str | os.PathLike, split: str = "valid", checkpoint: str | None = None) -> Diagnosis:
    """The diagnosis of a run on the first batches of a split. Raises ConfigError in one line for what is not there."""
    run = read_run(workdir, checkpoint)
    config = run.config
    try:
        source = read_source(config, run.tokenizer, run.labels)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    if split not in source.splits:
        raise ConfigError(
            f"split {split!r} of {config.data.path} has nothing to read; one of {', '.join(source.splits)}"
        )
    batches = split_batches(source, config, split)
    batches = [batches[index] for index in range(min(_BATCHES, len(batches)))]
    return diagnose(run.model, make_task(config, run.labels, source.unseen), run.params, batches)


def diagnose(model: SequenceModel, task: Task, params: Params, batches: list[Batch]) -> Diagnosis:
    """The diagnosis of a model on batches of one shape; two programs are compiled, whatever the number of parts."""
    places: dict[Any, Mixer] = {
        (layer, *path): mixer
        for layer, name in enumerate(model.design.layers)
        for path, mixer in parts_of(layer_mixer(model.design, name))
    }
    model, params = unscanned(model, params)
    measured = [jax.device_get(measure(params, batch)) for measure in [_make_measure(model, task)] for batch in batches]
    sums, gradients, records = jax.tree.map(
        lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves), *measured
    )
    without = _make_without(model, task)

    def loss_without(place):
        factors = {other: np.float32(other != place) for other in places}
        found = [jax.device_get(without(params, factors, batch)) for batch in batches]
        return _loss(task, jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves), *found))

    count = sums.pop("targets")
    gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
    layers = gradients["backbone"]["rest"]
    parts = []
    for place, mixer in places.items():
        layer, *path = place
        own = layers[f"layer_{layer}"]["mixer"]
        for name in path:
            own = own[name]
        beside = [records[other]["squares"] for other in places if _beside(place, other)]
        record = records[place]
        parts.append(
            Part(
                layer=layer,
                path=tuple(path),
                name=model.design.layers[layer] if not path else _name(mixer),
                rms=float(np.sqrt(record["squares"] / record["numbers"])),
                ratio=float(np.sqrt(record["squares"] / sum(beside))) if beside and sum(beside) > 0 else None,
                loss_without=loss_without(place),
                gradient_norm=_norm(own),
                gate=_gate(record["gate"]) if "gate" in record else None,
                distance=tuple((record["distance"] / record["tokens"]).tolist()) if "distance" in record else None,
            )
        )
    by_name = {"embed": gradients["embed"]}
    by_name |= {f"layer {layer}": layers[f"layer_{layer}"] for layer in range(len(model.design.layers))}
    by_name |= {"norm": gradients["backbone"]["norm"]}
    by_name |= {name: value for name, value in gradients.items() if name not in ("embed", "backbone")}
    rows = sum(int(np.sum(np.any(batch.segments.ids > 0, axis=1))) for batch in batches)
    return Diagnosis(_loss(task, sums), rows, tuple(parts), {name: _norm(tree) for name, tree in by_name.items()})


def saved_diagnosis(workdir: str | os.PathLike) -> Diagnosis:
    """The diagnosis of a finished run's best checkpoint, kept in its folder. Raises as `diagnose_run`."""
    path = RunFolder(workdir).diagnosis
    if not path.exists():
        made = diagnose_run(workdir, checkpoint="best")
        parts = [part._asdict() | {"gate": part.gate and part.gate._asdict()} for part in made.parts]
        write_json(path, made._asdict() | {"parts": parts})
    with reading(path):
        saved = read_json(path, dict)
        read = (part | {"gate": part["gate"] and Gate(**part["gate"])} for part in saved["parts"])
        return Diagnosis(**saved | {"parts": tuple(Part(**part) for part in read)})


def print_diagnosis(diagnosis: Diagnosis, title: str, console: Console | None = None) -> None:
    """The parts as a table, and the gradient norms below it."""
    console = console or make_console()
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for part in diagnosis.parts:
        table.add_row(*part_cells(part, diagnosis.loss))
    console.print(table)
    console.print(
        f"loss {diagnosis.loss:.4f} over {diagnosis.rows} rows, each from nothing; without: what it rises by where the "
        "output of the part is zero; ratio: to the part beside it; distance: least and most of the heads, in tokens"
    )
    console.print("gradient norms: " + ", ".join(f"{name} {norm:.3g}" for name, norm in diagnosis.gradients.items()))


def part_cells(part: Part, loss: float) -> tuple[str, ...]:
    """Its figures for people, under COLUMNS; distances are the least and the greatest of the heads."""
    name = f"{part.layer} {part.name}" if not part.path else f"{'  ' * len(part.path)}{part.path[-1]} {part.name}"
    return (
        name,
        f"{part.rms:.2g}",
        "" if part.ratio is None else f"{part.ratio:.2f}",
        f"{part.loss_without - loss:+.4f}",
        "" if part.gate is None else f"{part.gate.mean:.2f}±{part.gate.std:.2f}",
        "" if part.gate is None else _bars(part.gate.histogram),
        "" if part.distance is None else "-".join(dict.fromkeys(f"{f(part.distance):.1f}" for f in (min, max))),
        f"{part.gradient_norm:.2g}",
    )


def _name(mixer: Mixer) -> str:
    """That under which it is registered, after "reverse" where it is reversed."""
    name, *made_of = mixer.traits.spec
    return f"reverse {made_of[0][0]}" if name == "reverse" else str(name)


@functools.cache
def _make_without(model: SequenceModel, task: Task) -> Callable:
    """(params, factor of every part's output, batch) -> sums of the task."""

    @jax.jit
    def without(params, factors, batch):
        def scaled(place, mixer):
            def apply(params, x, segments, state=None):
                y, state = mixer.apply(params, x, segments, state)
                return y * factors[place].astype(y.dtype), state

            return mixer._replace(apply=apply)

        return task.evaluate(apply_changed(model, scaled, params, batch), batch)

    return without


@functools.cache
def _make_measure(model: SequenceModel, task: Task) -> Callable:
    """(params, batch) -> (sums of the task, gradient of the loss sum, sums of what every part does)."""

    def loss(params, batch):
        records: dict[Any, dict[str, Any]] = {}

        def noted(place, mixer):
            def apply(params, x, segments, state=None):
                record = records[place] = {}
                y, state = _watch_distance(mixer, record).apply(params, x, segments, state)
                live = (segments.ids > 0)[..., None]
                record["squares"] = jnp.sum(jnp.square(jnp.where(live, y, 0).astype(jnp.float32)))
                record["tokens"] = jnp.sum(live)
                record["numbers"] = jnp.sum(live) * y.shape[-1]
                if mixer.traits.rebuild and "gate" in params:
                    record["gate"] = _gate_sums(mixer, params, x, segments, live)
                return y, state

            return mixer._replace(apply=apply)

        outputs = apply_changed(model, noted, params, batch)
        sums = task.loss(outputs, batch)
        return sums["loss"], (task.evaluate(outputs, batch) | {"targets": sums["count"]}, records)

    @jax.jit
    def measure(params, batch):
        gradients, (sums, records) = jax.grad(loss, has_aux=True)(params, batch)
        return sums, gradients, records

    return measure


def _watch_distance(mixer, record):
    """The mixer, which also notes the distances of its heads where it is attention."""
    if mixer.traits.watched is None:
        return mixer

    def watch(weights, queries, keys):
        apart = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :]).astype(jnp.float32)
        record["distance"] = jnp.einsum("bhts,bts->h", weights.astype(jnp.float32), apart)

    return mixer.traits.watched(watch)


def _gate_sums(mixer, params, x, segments, live):
    g = gate_of(mixer, params, x, segments)
    bins = jnp.clip(jnp.floor(g * _BINS), 0, _BINS - 1)
    counts = live.astype(g.dtype)
    return {
        "sum": jnp.sum(g * counts),
        "squares": jnp.sum(g**2 * counts),
        "counts": jnp.stack([jnp.sum((bins == number) & live) for number in range(_BINS)]),
        "numbers": jnp.sum(live) * g.shape[-1],
    }


def _gate(sums):
    mean = sums["sum"] / sums["numbers"]
    std = np.sqrt(max(sums["squares"] / sums["numbers"] - mean**2, 0.0))
    return Gate(float(mean), float(std), tuple((sums["counts"] / sums["numbers"]).tolist()))


def _beside(place, other):
    return len(place) > 1 and place != other and place[:-1] == other[:-1]


def _loss(task, sums: dict[str, Any]) -> float:
    return float(task.measure(sums)["loss"])


def _norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def _bars(shares) -> str:
    """A histogram in one character a bin."""
    top = max(shares) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round(7 * share / top)] for share in shares)
