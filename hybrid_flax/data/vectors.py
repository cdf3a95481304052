"""Word vectors as GloVe and word2vec write them in text: a word and its numbers a line."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hybrid_flax.data.text_files import find_path, regular_file, stream_lines
from hybrid_flax.data.tokenizers import Tokenizer, WhitespaceTokenizer, WordTokenizer

__all__ = ["WordVectors", "read_vectors"]

_LONGEST_LINE = 100_000  # bytes


class WordVectors(NamedTuple):
    """ids [K] of the words that have a vector, and rows [K, E]. lowered: how many have that of their lower case."""

    ids: np.ndarray
    rows: np.ndarray
    lowered: int


def read_vectors(path: str, tokenizer: Tokenizer, width: int) -> WordVectors:
    """The vectors of a tokenizer's words; one without its own has that of its lower case, if there is one.

    The file is read line by line and only what is wanted is kept. A first line of two whole numbers, "count width", is
    word2vec's; GloVe has none. The first of several vectors of one word counts.
    Raises ValueError in one line for vectors of another width, with file and line for what is no vector, and for a
    tokenizer that has no words.
    """
    if not isinstance(tokenizer, WordTokenizer | WhitespaceTokenizer):
        raise ValueError(f"model.vectors needs data.tokenizer=word or whitespace, not {tokenizer.name}")
    wanted = [piece.strip() for piece in tokenizer.pieces]
    exact, lowered = set(wanted), {word.lower() for word in wanted}
    found: dict[str, np.ndarray] = {}
    for where, word, numbers in _lines(path, width):
        if word in found or (word not in exact and word not in lowered):
            continue
        try:
            row = np.array(numbers, np.float32)
        except ValueError:
            row = np.array([np.nan])
        if not np.all(np.isfinite(row)):
            raise ValueError(f"{where}: the vector of {word!r} is not {width} finite numbers")
        found[word] = row
    return _pick(wanted, found, path)


def _pick(wanted: Sequence[str], found: dict[str, np.ndarray], path: str) -> WordVectors:
    words = [word if word in found else word.lower() for word in wanted]
    places = [place for place, word in enumerate(words) if word in found]
    if not places:
        raise ValueError(f"model.vectors={path!r} has a vector for none of the {len(wanted)} words of the vocabulary")
    lowered = sum(words[place] != wanted[place] for place in places)
    return WordVectors(np.array(places, np.int32) + 1, np.stack([found[words[place]] for place in places]), lowered)


def _lines(path, width) -> Iterator[tuple[str, str, list[str]]]:
    """(place, word, numbers as text) of every line but blank ones; a word may hold spaces."""
    try:
        file = regular_file(find_path(path))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"model.vectors: {error}") from None
    for number, (where, line) in enumerate(stream_lines(file, _LONGEST_LINE), start=1):
        if number > 1 and not line.strip():
            continue
        parts = line.rstrip().split(" ")
        if number == 1:
            header = len(parts) == 2 and all(part.isdecimal() for part in parts)
            given = int(parts[1]) if header else len(parts) - 1
            if given != width:
                raise ValueError(f"{where}: vectors of width {given}, the embedding has {width}: set them equal")
            if header:
                continue
        if len(parts) <= width:
            raise ValueError(f"{where}: {max(len(parts) - 1, 0)} numbers after the word, not {width}")
        yield where, " ".join(parts[:-width]), parts[-width:]
