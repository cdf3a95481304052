"""Labelled examples as padded batches, one example a row: pure functions of (seed, step), as all batches.

Targets are labels: a class, several classes, a number, or a tag for every token, which counts where a word begins.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hybrid_flax.data.pipeline import Batches, make_batch
from hybrid_flax.data.readers import Record
from hybrid_flax.data.tags import are_spans, parse_tag
from hybrid_flax.data.tokenizers import Tokenizer
from hybrid_flax.typing import Batch

__all__ = [
    "KINDS",
    "Examples",
    "eval_examples",
    "fold_records",
    "label_names",
    "make_example_batches",
    "make_examples",
    "names_of_label",
    "split_records",
    "unseen_line",
    "unseen_names",
]

KINDS = ("class", "classes", "number", "tags")


class Examples(NamedTuple):
    """Encoded examples.

    tokens: int32 arrays [n] or [n, 1 + W], one an example. labels: [N], [N, C], or for tags one int32 array an example,
    -1 where a token has no tag of its own.
    """

    tokens: tuple[np.ndarray, ...]
    labels: np.ndarray | tuple[np.ndarray, ...]


def split_records(
    records: Sequence[Record], *, valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Record]]:
    """A random split by `seed`: first the test part, then the validation part, the rest trains."""
    order = np.random.default_rng(seed).permutation(len(records))
    num_test, num_valid = (round(fraction * len(records)) for fraction in (test_fraction, valid_fraction))
    places = {"test": order[:num_test], "valid": order[num_test : num_test + num_valid]}
    places["train"] = order[num_test + num_valid :]
    if not len(places["train"]):
        raise ValueError(f"no training examples are left of {len(records)}: lower the fractions of valid and test")
    return {split: [records[place] for place in sorted(places[split])] for split in ("train", "valid", "test")}


def fold_records(
    records: Sequence[Record], *, folds: int, fold: int, kind: str, valid_fraction: float, seed: int
) -> dict[str, list[Record]]:
    """A part of cross-validation: the test split is part `fold` of `folds` equal ones, the rest as `split_records`.

    The partition is random by `seed`; of kind "class", every part has its share of every class.
    Raises ValueError for fewer examples than parts.
    """
    if len(records) < folds:
        raise ValueError(f"{len(records)} examples do not make data.folds={folds} parts")
    order = np.random.default_rng(seed).permutation(len(records))
    if kind == "class":
        order = order[np.argsort(np.array([records[place].label for place in order]), kind="stable")]
    parts = np.empty(len(records), np.int64)
    parts[order] = np.arange(len(records)) % folds
    test, rest = ([r for r, part in zip(records, parts) if (part == fold) == given] for given in (True, False))
    return split_records(rest, valid_fraction=valid_fraction, test_fraction=0.0, seed=seed) | {"test": test}


def unseen_names(records: Iterable[Record], kind: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The sorted labels of records that are none of `names`, the labels of training; for spans B- and I- of each type.

    Raises ValueError for a tag that marks no span where the tags of training mark spans.
    """
    find = _finder(names)
    found = {name: r.where for r in records if names for name in names_of_label(r, kind) if find(name) is None}
    if kind == "tags" and are_spans(names):
        types = sorted({parse_tag(name, where)[1] for name, where in found.items()})
        return tuple(f"{mark}-{name}" for name in types for mark in "BI")
    return tuple(sorted(found))


def unseen_line(records: Sequence[Record], kind: str, unseen: Sequence[str]) -> str:
    """What to say of labels that training has not; "" where records have none of them."""
    found = [[name for name in names_of_label(record, kind) if name in unseen] for record in records if unseen]
    if not any(found):
        return ""
    rows = f"{sum(map(bool, found)):,} of {len(records):,} rows"
    names = sorted(set().union(*found))
    shown = ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (
        f"{f'{sum(map(len, found)):,} tokens in ' if kind == 'tags' else ''}{rows} have a label that no training "
        f"example has ({shown}): they count as missed, and the loss leaves them out"
    )


def names_of_label(record: Record, kind: str) -> tuple[str, ...]:
    """What a label names: one class, several (a list, or a text with commas between them), or a tag for every token.

    Raises ValueError with the place of a record that has none, and of a list where one class is asked for.
    """
    if kind == "class" and not isinstance(record.label, str):
        raise ValueError(f"{record.where}: label {list(record.label)} is a list: use task.name=multilabel, or tag")
    names = (record.label,) if isinstance(record.label, str) else record.label
    if kind == "classes" and isinstance(record.label, str):
        names = tuple(map(str.strip, record.label.split(","))) if record.label.strip() else ()
    if not all(map(str.strip, names)):
        raise ValueError(f"{record.where}: label {record.label!r} has an empty name")
    return names


def label_names(records: Sequence[Record], kind: str) -> tuple[str, ...]:
    """The sorted labels of training records; of spans (`are_spans`) "O" comes first, then B- and I- of every type.

    Of numbers, 1 and 1.0 are one name. Raises ValueError for a kind that has names but fewer than two of them, for
    classes that are fractions, and for names that differ by white space alone.
    """
    if kind == "number":
        return ()
    found = {name for record in records for name in names_of_label(record, kind)}
    if kind == "tags" and are_spans(found):
        types = sorted({name[2:] for name in found if name != "O"})
        if not types:
            raise ValueError("tagging needs tags other than O in the training data")
        return ("O", *(f"{mark}-{name}" for name in types for mark in "BI"))
    if kind == "class" and all(map(_is_number, found)):
        for record in records:
            if not float(record.label).is_integer():
                raise ValueError(f"{record.where}: label {record.label!r} is a number, no class: use task.name=regress")
    if found and all(map(_is_number, found)):
        found -= {name for name in found if _whole(name) != name and _whole(name) in found}
    for name in found:
        if name != name.strip() and name.strip() in found:
            raise ValueError(f"labels {name.strip()!r} and {name!r} differ by white space alone")
    if len(found) < 2:
        task = "tagging" if kind == "tags" else "classification"
        raise ValueError(f"{task} needs two labels in the training data, there is only {sorted(found)}")
    return tuple(sorted(found))


def make_examples(
    records: Sequence[Record], tokenizer: Tokenizer, kind: str, names: tuple[str, ...], word_length: int = 0
) -> Examples:
    """Encode records. A tag stands at the piece that its word begins in; between words is a space.

    word_length: W, 0 where words are not spelt. Raises ValueError with the place of a bad label.
    """
    if kind == "tags":
        return Examples(*_tagged(records, tokenizer, names, word_length))
    tokens = tuple(_encode(tokenizer, record.text, word_length) for record in records)
    if kind == "number":
        return Examples(tokens, np.array([_number(record) for record in records], np.float32))
    find = _finder(names)
    if kind == "class":
        return Examples(tokens, np.array([_indices(find, record, kind)[0] for record in records], np.int32))
    labels = np.zeros((len(records), len(names)), np.float32)
    for row, record in zip(labels, records):
        row[_indices(find, record, kind)] = 1.0
    return Examples(tokens, labels)


def make_example_batches(examples: Examples, *, batch_size: int, length: int, seed: int) -> Batches:
    """Training batches: every epoch all examples in a random order; what is longer than `length` is cut at its end."""
    count = len(examples.tokens)

    @functools.lru_cache(maxsize=4)
    def order_of(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(count)

    def batch(step: int, rows: slice = slice(None)) -> Batch:
        row = np.arange(batch_size)[rows]
        epochs, places = np.divmod(step * batch_size + row, count)
        return _batch(examples, [order_of(epoch)[place] for epoch, place in zip(epochs.tolist(), places)], row, length)

    return Batches(batch, batch_size, -(-count // batch_size), batch_size * length)


def eval_examples(examples: Examples, *, batch_size: int, length: int) -> Sequence[Batch]:
    """All examples once, in order; the last batch is filled up with rows of padding."""
    count = len(examples.tokens)
    row = np.arange(batch_size)

    def batch(step: int) -> Batch:
        places = step * batch_size + row
        return _batch(examples, np.where(places < count, places, -1), row, length)

    return [batch(step) for step in range(-(-count // batch_size))]


def _batch(examples, places, row, length):
    """Rows of the examples at `places`; -1 is a row of padding."""
    tagged = isinstance(examples.labels, tuple)
    tokens = np.zeros((len(row), length, *examples.tokens[0].shape[1:]), np.int32)
    segment_ids = np.zeros((len(row), length), np.int32)
    shape = (len(row), length) if tagged else (len(row), *examples.labels.shape[1:])
    targets = np.zeros(shape, np.int32 if tagged else examples.labels.dtype)
    weights = np.zeros(shape[: 2 if tagged else 1], np.float32)
    for b, place in enumerate(places):
        if place < 0:
            continue
        ids = examples.tokens[place][:length]
        tokens[b, : len(ids)], segment_ids[b, : len(ids)] = ids, 1
        if tagged:
            tags = examples.labels[place][:length]
            targets[b, : len(ids)], weights[b, : len(ids)] = np.maximum(tags, 0), tags >= 0
        else:
            targets[b], weights[b] = examples.labels[place], 1.0
    return make_batch(tokens, segment_ids, targets, weights, row)


def _tagged(records, tokenizer, names, word_length):
    find = _finder(names)

    @functools.cache
    def pieces_of(text, begin):
        """The ids of a text, and the place of the piece that holds its character `begin`."""
        ends = np.cumsum(tokenizer.widths(text)[0])
        return _encode(tokenizer, text, word_length), int(np.searchsorted(ends, begin, side="right"))

    tokens, labels = [], []
    for record in records:
        pieces = [pieces_of(word if i == 0 else f" {word}", min(i, 1)) for i, word in enumerate(record.text)]
        starts = np.cumsum([0, *(len(ids) for ids, _ in pieces)])
        tags = np.full(starts[-1], -1, np.int32)
        places = starts[:-1] + [min(place, len(ids) - 1) for ids, place in pieces]
        tags[places] = _indices(find, record, "tags")
        tokens.append(np.concatenate([ids for ids, _ in pieces]))
        labels.append(tags)
    return tuple(tokens), tuple(labels)


def _encode(tokenizer, text, word_length):
    ids = tokenizer.encode(text).astype(np.int32)
    if word_length:
        ids = np.concatenate([ids[:, None], tokenizer.spell(text, word_length)], axis=1)
    # An example without any piece still needs a token to stand for it.
    return ids if len(ids) else np.zeros((1, *ids.shape[1:]), np.int32)


def _is_number(name):
    try:
        return np.isfinite(float(name))
    except ValueError:
        return False


def _whole(name):
    """1 of 1.0, and other names as they are."""
    return re.sub(r"(?<=\d)\.0+$", "", name)


def _finder(names) -> Callable[[str], int | None]:
    """The place of a label, None where it has none; among numbers, 1 and 1.0 are one."""
    places = {name: place for place, name in enumerate(names)}
    numbers = {_whole(name): place for name, place in places.items()} if all(map(_is_number, names)) else {}
    return lambda name: places.get(name, numbers.get(_whole(name)))


def _indices(find, record, kind):
    found = [find(name) for name in names_of_label(record, kind)]
    if None in found:
        name = names_of_label(record, kind)[found.index(None)]
        raise ValueError(f"{record.where}: label {name!r} does not occur in the training data")
    return found


def _number(record):
    try:
        value = float(record.label)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{record.where}: label {record.label!r} is no number")
    return value
