"""Synthetic languages with exact generators: what a mechanism can track, count and recall, measured at any length.

An example is a row of symbols with a target under each and a mark where the target is scored. Lengths are those of the
input; a row is padded to the longest, so that every length runs in the same program.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hybrid_flax.data.pipeline import Batches

__all__ = ["LANGUAGES", "Language", "eval_language", "find_language", "make_language_batches"]

EVAL_ROWS = 512  # of a split


class Language(NamedTuple):
    """A source of exact examples.

    symbols: the vocabulary, inputs and targets alike. row: (rng, length) -> (tokens, targets, scored), equally long
    sequences. total: (length) -> how long those are. shortest: the least length that has an example.
    """

    symbols: tuple[str, ...]
    row: Callable[[np.random.Generator, int], tuple[Sequence[int], Sequence[int], Sequence[bool]]]
    total: Callable[[int], int] = lambda length: length
    shortest: int = 1


def find_language(name: str) -> Language:
    """The language of that name; raises ValueError with the nearest names."""
    if name not in LANGUAGES:
        near = difflib.get_close_matches(name, LANGUAGES, n=3) or LANGUAGES
        raise ValueError(f"unknown synthetic language {name!r}; nearest: {', '.join(near)}")
    return LANGUAGES[name]


def make_language_batches(language: Language, *, batch_size: int, length: int, seed: int) -> Batches:
    """Training batches: lengths uniform in [shortest, length], examples a function of (seed, step, row) alone.

    Raises ValueError for a length below the shortest.
    """
    if length < language.shortest:
        raise ValueError(f"data.length={length} must be at least {language.shortest} for this synthetic language")
    total = language.total(length)

    def batch(step: int, rows: slice = slice(None)) -> dict:
        places = np.arange(batch_size)[rows]
        return _batch(language, (language.shortest, length), total, places, [seed, 0, step])

    return Batches(batch, batch_size, 1, batch_size * total)


def eval_language(language: Language, *, batch_size: int, lengths: tuple[int, int]) -> Sequence[dict]:
    """EVAL_ROWS examples (rounded up to whole batches) of lengths uniform in `lengths`, both ends included.

    They are the same whatever the seed of the training run, and none of them depends on it.
    """
    total = language.total(lengths[1])

    def batch(step: int) -> dict:
        places = np.arange(batch_size) + step * batch_size
        return _batch(language, lengths, total, places, [1, *lengths]) | {"row": np.arange(batch_size, dtype=np.int32)}

    return [batch(step) for step in range(-(-EVAL_ROWS // batch_size))]


def _batch(language, lengths, total, places, seed):
    tokens, targets, segment_ids = np.zeros((3, len(places), total), np.int32)
    weights = np.zeros((len(places), total), np.float32)
    for place, number in enumerate(places):
        rng = np.random.default_rng([*seed, int(number)])
        row = language.row(rng, int(rng.integers(lengths[0], lengths[1] + 1)))
        size = len(row[0])
        tokens[place, :size], targets[place, :size], weights[place, :size] = row
        segment_ids[place, :size] = 1
    positions = np.arange(total, dtype=np.int32) * segment_ids
    row = places.astype(np.int32)
    return {
        "tokens": tokens,
        "targets": targets,
        "weights": weights,
        "segment_ids": segment_ids,
        "positions": positions,
        "row": row,
    }


# State tracking: a target under every symbol.


def _counting(modulus):
    """How many ones there were so far, modulo `modulus`; parity is modulus 2."""

    def row(rng, length):
        tokens = rng.integers(0, 2, length)
        return tokens, np.cumsum(tokens) % modulus, np.ones(length, bool)

    return Language(tuple(str(i) for i in range(max(modulus, 2))), row)


LANGUAGES: dict[str, Language] = {
    "parity": _counting(2),
    "count3": _counting(3),
    "count5": _counting(5),
}
