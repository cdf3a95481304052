"""A run that starts from the weights of another: what of them it takes, what is left, and what starts anew.

A leaf is taken where the source has one of its shape at its place (`models.places`). Rows that stand for tokens,
characters or labels go by what they stand for: where both know a token, the row of the source is its row here.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.data.tokenizers import Tokenizer
from hybrid_flax.errors import ConfigError
from hybrid_flax.models.build import abstract_params
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.models.places import by_place, replace_places
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.training.load import read_run
from hybrid_flax.typing import LEAF_KINDS, Params
from hybrid_flax.units import text_table

__all__ = ["WarmStart", "check_source", "read_warm_start"]


class WarmStart(NamedTuple):
    """What a run takes from another.

    source: its folder. step: updates that it had. taken: {place: "" for the whole leaf, or which rows of it}. left:
    {place: why} of the source. anew: {place: why} of the run that starts. sizes, source_sizes: {place: numbers there}
    of the run and of the source. copies: how to copy what is taken.
    """

    source: str
    step: int
    taken: dict[str, str]
    left: dict[str, str]
    anew: dict[str, str]
    sizes: Mapping[str, int]
    source_sizes: Mapping[str, int]
    copies: Mapping[str, "_Copy"]

    def apply(self, params: Params) -> Params:
        """`params` with what is taken in its place, in the dtypes of `params`."""
        fresh = by_place(params)
        return replace_places(params, {place: copy.into(fresh[place]) for place, copy in self.copies.items()})

    def record(self) -> dict[str, Any]:
        """What a run folder keeps of it."""
        return {"source": self.source, "step": self.step, "taken": self.taken, "left": self.left, "anew": self.anew}

    def lines(self) -> list[str]:
        """A table of the numbers that are taken, start anew and are left, by part of the model; reasons behind."""
        parts = ["all", *dict.fromkeys(map(_part, (*self.sizes, *self.source_sizes)))]
        rows = [("", "taken", "starts anew", "left", "")]
        for part in parts:
            sums = [
                sum(sizes[place] for place in places if part in ("all", _part(place)))
                for places, sizes in (
                    (self.taken, self.sizes),
                    (self.anew, self.sizes),
                    (self.left, self.source_sizes),
                )
            ]
            reasons = [
                f"{place.removeprefix(part).removeprefix('.') or part}: {why}"
                for place, why in (self.left | self.anew | self.taken).items()
                if why and _part(place) == part
            ]
            more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
            rows.append((part, *(f"{count:,}" for count in sums), "; ".join(reasons[:2]) + more))
        return [f"weights of {self.source} after {self.step} steps, in numbers:", *text_table(rows)]


class _Copy(NamedTuple):
    """array: of the source. rows: per axis the indices (here, there) that are copied; () for the whole array."""

    array: np.ndarray
    rows: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def into(self, fresh: Any) -> np.ndarray:
        fresh = np.array(fresh)
        if not self.rows:
            return self.array.astype(fresh.dtype)
        here, there = zip(*self.rows)
        fresh[np.ix_(*here)] = self.array[np.ix_(*there)].astype(fresh.dtype)
        return fresh


def read_warm_start(
    config: Any, model: SequenceModel, tokenizer: Tokenizer, labels: tuple[str, ...]
) -> WarmStart | None:
    """What a run of `config` takes from config.train.init_from; None where that is "".

    A source is kept while it does not change. Raises ConfigError in one line where it is no run that can be read, and
    where nothing of it fits.
    """
    path = os.path.expanduser(config.train.init_from)
    if not path:
        return None
    try:
        source = _load(path, _version(Path(path)))
    except ConfigError as error:
        raise ConfigError(f"train.init_from={config.train.init_from}: {error}") from error
    start = _compare(config.train.init_from, source, model, tokenizer, labels)
    if not any(LEAF_KINDS[place.rpartition(".")[2]] != "vector" for place in start.taken):
        place, why = next(iter(start.anew.items()))
        raise ConfigError(
            f"train.init_from={config.train.init_from}: no matrix and no embedding of it has the place and shape of "
            f"one of this model ({place}: {why}): change model.*, or set train.init_from=''"
        )
    return start


def check_source(config: Any, workdir: str | os.PathLike) -> None:
    """Raise ConfigError where config.train.init_from is the run's own folder."""
    source = config.train.init_from
    if source and Path(source).expanduser().resolve() == Path(workdir).resolve():
        raise ConfigError(f"train.init_from={source} is the run's own folder: use another --workdir")


@functools.lru_cache(maxsize=2)
def _load(path, version) -> Run:
    del version
    run = read_run(path)
    return run._replace(params={place: np.asarray(leaf) for place, leaf in by_place(run.params).items()})


def _version(path):
    """What differs where the weights in a folder do."""
    folder = RunFolder(path)
    files = [folder.config, folder.weights, *sorted(folder.checkpoints.glob("*"))]
    return tuple((str(file), file.stat().st_mtime_ns) for file in files if file.exists())


def _compare(name, source, model, tokenizer, labels) -> WarmStart:
    here, there = by_place(abstract_params(model)), source.params
    names_here = _names(model, tokenizer, labels)
    names_there = _names(source.model, source.tokenizer, source.labels)
    taken, anew, copies = {}, {}, {}
    for place, leaf in here.items():
        if place not in there:
            anew[place] = "the source has none"
            continue
        copy, note = _match(leaf.shape, there[place], names_here.get(place, {}), names_there.get(place, {}))
        if copy is None:
            anew[place] = note
        else:
            copies[place], taken[place] = copy, note
    left = {place: anew.get(place, "not in this model") for place in there if place not in taken}
    sizes, there_sizes = (
        {place: int(np.prod(leaf.shape)) for place, leaf in leaves.items()} for leaves in (here, there)
    )
    return WarmStart(name, source.step, taken, left, anew, sizes, there_sizes, copies)


def _match(shape, array, here, there):
    """(a copy of `array` into `shape`, which rows it has) or (None, why there is none).

    here, there: {axis: what its indices stand for}, of the same axes.
    """
    free = [axis for axis in range(len(shape)) if axis not in here]
    if len(shape) != array.ndim or any(shape[axis] != array.shape[axis] for axis in free):
        return None, f"shape {_shown(array.shape)} there, {_shown(shape)} here"
    if here == there and shape == array.shape:
        return _Copy(array), ""
    rows, notes = [], []
    for axis, size in enumerate(shape):
        if axis not in here or here[axis] == there.get(axis):
            rows.append((np.arange(size), np.arange(size)))
            continue
        index = {name: place for place, name in enumerate(there.get(axis, ()))}
        both = [(place, index[name]) for place, name in enumerate(here[axis]) if name in index]
        if not both:
            return None, f"none of its {array.shape[axis]} names is one of the {size} here"
        here_at, there_at = zip(*both)
        rows.append((np.array(here_at), np.array(there_at)))
        notes.append(f"{len(both):,} of {size:,} names")
    return _Copy(array, tuple(rows)), " x ".join(notes)


def _names(model, tokenizer, labels) -> dict[str, dict[int, Sequence[Any]]]:
    """What the indices of axes stand for, by place and axis: tokens, characters or labels, with their kind."""
    design = model.design
    kind = (tokenizer.name, getattr(tokenizer, "cut", ""))
    tokens: list[tuple[Any, Any]] = [(kind, token) for token in tokenizer.tokens()]
    outputs = tokens
    if design.num_outputs is not None:
        outputs = [("label", label) for label in labels] or [("number", place) for place in range(design.num_outputs)]
    names: dict[str, dict[int, Sequence[Any]]] = {
        "embed.embedding": {0: tokens},
        "head.kernel": {1: outputs},
        "head.bias": {0: outputs},
        "crf.start.bias": {0: outputs},
        "crf.end.bias": {0: outputs},
        "crf.between.bias": {0: outputs, 1: outputs},
    }
    if design.spelling is not None:
        alphabet = getattr(tokenizer, "characters", "")
        characters: Sequence[Any] = [("character", letter) for letter in ("none", "unknown", *alphabet)]
        if design.spelling.kind == "ngrams":  # whose buckets go by the ids of characters
            characters = (("alphabet", alphabet),)
        names["embed.spelling.embedding"] = {0: characters}
    return names


def _part(place):
    """The row of the table that a place stands in."""
    first, *rest = place.split(".")
    return f"{first}.{rest[0]}" if first == "backbone" else first


def _shown(shape):
    return "x".join(map(str, shape)) or "one number"
