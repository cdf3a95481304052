"""What a model does inside while it reads: the weights of its attention, the gates of its fusions, and other parts."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.models.model import SequenceModel
from hybrid_flax.models.swap import swapped, unscanned
from hybrid_flax.predict import encode_texts
from hybrid_flax.tasks.registry import label_kind
from hybrid_flax.training.folder import Run
from hybrid_flax.training.step import apply_model
from hybrid_flax.typing import Array, Batch, Float, Hidden, Mixer, Params, Segments

__all__ = ["Insides", "apply_changed", "gate_of", "parts_of", "read_attention", "read_gates"]


class Insides(NamedTuple):
    """What was seen while a model read a text of T tokens.

    tokens: the text of each, T in all. at: arrays by place: "0" is layer 0, "0.b" part b of the fusion that it is.
    """

    tokens: tuple[str, ...]
    at: dict[str, np.ndarray]


def read_attention(run: Run, text: str) -> Insides:
    """The weights of every attention, float32 [H, T, T]: how much of token s the head h reads for token t.

    A row sums to 1, but where a sink takes a share. Raises ValueError for a text without tokens.
    """

    def noted(found, length, place, mixer):
        if mixer.traits.watched is None:
            return mixer
        reverses = _num_reverses(mixer.traits.spec)

        def watch(weights, queries, keys):
            rows, columns = queries.positions[0][:, None], jnp.where(keys.ids[0] > 0, keys.positions[0], length)
            dense = jnp.zeros((weights.shape[1], length, length + 1), jnp.float32)
            dense = dense.at[:, rows, columns[None]].add(weights[0].astype(jnp.float32))[..., :length]
            found[place] = dense[:, ::-1, ::-1] if reverses % 2 else dense

        return mixer.traits.watched(watch)

    return _look(run, text, noted)


def read_gates(run: Run, text: str) -> Insides:
    """The gate of every fusion that has one, float32 [T, D]: the share of its first part, for every feature.

    Raises ValueError for a text without tokens.
    """

    def noted(found, length, place, mixer):
        def apply(params, x, segments, state=None):
            if mixer.traits.rebuild and "gate" in params:
                found[place] = gate_of(mixer, params, x, segments)[0]
            return mixer.apply(params, x, segments, state)

        return mixer._replace(apply=apply)

    return _look(run, text, noted)


def parts_of(mixer: Mixer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mixer]]:
    """A mixer and the parts of fusions in it, with their paths."""
    yield path, mixer
    for name, part in mixer.traits.parts if mixer.traits.rebuild else ():
        yield from parts_of(part, (*path, name))


def apply_changed(model: SequenceModel, change: Callable[..., Mixer], params: Params, batch: Batch) -> Any:
    """The outputs of an unscanned model with change((layer, *path), part) in the place of every mixer and part."""
    with swapped(lambda layer, mixer: _changed(mixer, change, (layer,))):
        return apply_model(model, params, (), batch)[0]


def gate_of(mixer: Mixer, params: Params, x: Hidden, segments: Segments) -> Float[Array, "B T D"]:
    """The gate g of a fusion: what it makes of 1 for its first part and 0 for the others."""

    def constant(part, value):
        def apply(params, x, segments, state=None):
            del params, segments
            return jnp.full_like(x, value), state

        return part._replace(apply=apply)

    assert mixer.traits.rebuild is not None, "a fusion has it"
    parts = [constant(part, float(index == 0)) for index, (_, part) in enumerate(mixer.traits.parts)]
    return mixer.traits.rebuild(*parts).apply(params, x, segments)[0].astype(jnp.float32)


def _look(run, text, noted) -> Insides:
    """noted: (what is found by place, T, place, mixer) -> the mixer that notes it."""
    ids = _encode(run, text)
    length = len(ids)
    targets = jnp.zeros((1, length), jnp.int32)
    batch = Batch(jnp.asarray(ids[None]), Segments.single(1, length), targets, jnp.zeros((1, length)), targets[:, 0])
    model, params = unscanned(run.model, run.params)

    @jax.jit
    def read(params, batch):
        found: dict[tuple, Array] = {}
        apply_changed(model, partial(noted, found, length), params, batch)
        return {".".join(map(str, place)): value for place, value in found.items()}

    found = jax.device_get(read(params, batch))
    tokens = ids if ids.ndim == 1 else ids[:, 0]
    return Insides(tuple(run.tokenizer.decode([token]) for token in tokens), dict(sorted(found.items())))


def _encode(run, text):
    """Token ids [T], or with their characters [T, 1 + W]."""
    kind = label_kind(run.config.task.name)
    ids = run.tokenizer.encode(text) if kind is None else encode_texts(run, [text], kind).tokens[0]
    if not len(ids) or (kind is not None and not text.strip()):
        raise ValueError(f"text {text!r} has no tokens to read")
    return np.asarray(ids, np.int32)


def _changed(mixer, change, place):
    """The mixer with change(place, part) for every part of every fusion in it, and for itself."""
    if mixer.traits.rebuild:
        parts = [_changed(part, change, (*place, name)) for name, part in mixer.traits.parts]
        mixer = mixer.traits.rebuild(*parts)
    return change(place, mixer)


def _num_reverses(spec):
    """How often what stands in a place reads from the end to the start."""
    count = 0
    while spec[0] == "reverse":
        count, spec = count + 1, spec[1]
    return count
