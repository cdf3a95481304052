"""Tokenizers: text to ids and back, and the width of every token in characters and bytes.

Bits per character and per byte compare models of different vocabularies only if every token knows how much of
the original text it covers, the unknown ones too: that is what `widths` is for.
"""

from __future__ import annotations

import abc
import codecs
import collections
import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNKNOWN = "<unk>"


class Tokenizer(abc.ABC):
    """Maps text to ids in [0, vocab_size) and back. Immutable, and equal where the vocabularies are."""

    name: ClassVar[str]
    unknown_id: ClassVar[int | None]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are, the unknown one included."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Text to ids, int32 [N]."""

    @abc.abstractmethod
    def decode(self, ids: Iterable) -> str:
        """Ids [N] to text; the unknown one is U+FFFD. Raises ValueError for an id outside the vocabulary."""

    @abc.abstractmethod
    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Characters and UTF-8 bytes of `text` under each token of `encode(text)`, int32 [N] each.

        They sum to `len(text)` and `len(text.encode())`, whether the tokens are known or not.
        """

    @abc.abstractmethod
    def to_dict(self) -> dict:
        """What `tokenizer_from_dict` needs to build an equal one; it survives JSON."""

    def _checked(self, ids: Iterable) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise ValueError(f"id {outside[0]} is outside the {self.vocab_size} ids of the {self.name} tokenizer")
        return ids


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8: every text in 256 ids, nothing unknown."""

    name = "byte"
    unknown_id = None
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable) -> str:
        return self._checked(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self.encode(text)
        # A character counts where it starts: at every byte that is not a continuation, 0b10xxxxxx.
        return (ids & 0xC0 != 0x80).astype(np.int32), np.ones_like(ids)

    def to_dict(self) -> dict:
        return {"name": self.name}


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Tokenizer):
    """One id per character of a fixed, sorted alphabet; 0 is every other character.

    Attributes:
      characters: the alphabet; its i-th character, by code point, has the id i + 1.
    """

    characters: str
    name = "char"
    unknown_id = 0

    def __post_init__(self):
        if not self.characters or sorted(set(self.characters)) != list(self.characters):
            raise ValueError("the characters of a char tokenizer must be some, different and sorted by code point")

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> np.ndarray:
        return self._id_of_code[np.minimum(_code_points(text), len(self._id_of_code) - 1)]

    def decode(self, ids: Iterable) -> str:
        return _code_points(_REPLACEMENT + self.characters)[self._checked(ids)].tobytes().decode("utf-32-le")

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        codes = _code_points(text)
        num_bytes = 1 + sum((codes >= first).astype(np.int32) for first in (0x80, 0x800, 0x10000))
        return np.ones(len(codes), np.int32), num_bytes

    def to_dict(self) -> dict:
        return {"name": self.name, "characters": self.characters}

    @functools.cached_property
    def _id_of_code(self) -> np.ndarray:
        """Ids by code point; the last entry stands for all code points beyond the alphabet."""
        codes = _code_points(self.characters)
        table = np.zeros(codes[-1] + 2, np.int32)
        table[codes] = np.arange(1, self.vocab_size)
        return table


@dataclasses.dataclass(frozen=True)
class WordTokenizer(Tokenizer):
    """Words with the space before them, and single other characters; 0 is every piece not in the vocabulary.

    The pieces of a text join to the text itself: only unknown ones are lost in a round trip.

    Attributes:
      pieces: the vocabulary; its i-th piece has the id i + 1.
    """

    pieces: tuple[str, ...]
    name = "word"
    unknown_id = 0

    def __post_init__(self):
        if not self.pieces or len(self._id_of_piece) != len(self.pieces):
            raise ValueError("the pieces of a word tokenizer must be some and all different")

    @property
    def vocab_size(self) -> int:
        return len(self.pieces) + 1

    def encode(self, text: str) -> np.ndarray:
        id_of = self._id_of_piece.get
        return np.fromiter((id_of(piece, 0) for piece in split_words(text)), np.int32)

    def decode(self, ids: Iterable) -> str:
        pieces = (_REPLACEMENT, *self.pieces)
        return "".join(pieces[i] for i in self._checked(ids).tolist())

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        pieces = split_words(text)
        num_chars = np.fromiter(map(len, pieces), np.int32, len(pieces))
        return num_chars, np.fromiter((len(piece.encode()) for piece in pieces), np.int32, len(pieces))

    def to_dict(self) -> dict:
        return {"name": self.name, "pieces": list(self.pieces)}

    @functools.cached_property
    def _id_of_piece(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces, start=1)}


@dataclasses.dataclass(frozen=True)
class WhitespaceTokenizer(Tokenizer):
    """What stands between white space, and line ends: text that others have cut into words, such as WikiText.

    The unknown piece, 0, is written "<unk>", in texts too. Decoding joins with single spaces.

    Attributes:
      pieces: the vocabulary; its i-th piece has the id i + 1.
    """

    pieces: tuple[str, ...]
    name = "whitespace"
    unknown_id = 0

    def __post_init__(self):
        if not self.pieces or len(self._id_of_piece) != len(self.pieces) + 1:
            raise ValueError("the pieces of a whitespace tokenizer must be some, all different, and none <unk>")

    @property
    def vocab_size(self) -> int:
        return len(self.pieces) + 1

    def encode(self, text: str) -> np.ndarray:
        id_of = self._id_of_piece.get
        return np.fromiter((id_of(piece, 0) for piece in _WRITTEN.findall(text)), np.int32)

    def decode(self, ids: Iterable) -> str:
        pieces = (_UNKNOWN, *self.pieces)
        return "".join(piece if piece == "\n" else f" {piece}" for piece in map(pieces.__getitem__, self._checked(ids)))

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ends = np.fromiter((match.end() for match in _WRITTEN.finditer(text)), np.int64)
        ends[-1:] = len(text)  # spaces at the very end belong to the last piece
        spans = [text[start:end] for start, end in zip([0, *ends[:-1]], ends)]
        return np.fromiter(map(len, spans), np.int32), np.fromiter((len(span.encode()) for span in spans), np.int32)

    def to_dict(self) -> dict:
        return {"name": self.name, "pieces": list(self.pieces)}

    @functools.cached_property
    def _id_of_piece(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate((_UNKNOWN, *self.pieces))}


@dataclasses.dataclass(frozen=True)
class SymbolTokenizer(Tokenizer):
    """The symbols of a formal language, written with spaces between them.

    Attributes:
      symbols: the vocabulary; its i-th symbol has the id i.
    """

    symbols: tuple[str, ...]
    name = "symbol"
    unknown_id = None

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """Raises ValueError for a symbol that is not in the vocabulary."""
        for symbol in text.split():
            if symbol not in self.symbols:
                raise ValueError(f"symbol {symbol!r} is none of {' '.join(self.symbols)}")
        return np.fromiter((self.symbols.index(symbol) for symbol in text.split()), np.int32)

    def decode(self, ids: Iterable) -> str:
        return " ".join(self.symbols[i] for i in self._checked(ids).tolist())

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.fromiter((len(piece) for piece in re.findall(r"\s*\S+(?:\s+$)?", text)), np.int32)
        return sizes, sizes

    def to_dict(self) -> dict:
        return {"name": self.name, "symbols": list(self.symbols)}


def split_words(text: str) -> list[str]:
    """Runs of letters, digits and apostrophes with up to one space before, and single other characters."""
    return _PIECE.findall(text)


def make_tokenizer(name: str, texts: Iterable[str], *, vocab_size: int = 10_000, min_count: int = 1) -> Tokenizer:
    """Builds the tokenizer called `name` ("byte", "char", "word" or "whitespace") from training texts.

    Args:
      name: the kind.
      texts: where "char" takes its alphabet and the others their pieces from; give no held-out text here.
      vocab_size: the most ids "word" and "whitespace" may have, the unknown one included; the most frequent pieces
        get them.
      min_count: how often a piece must occur to be in their vocabulary.

    Raises:
      ValueError: an unknown name, texts without any vocabulary, or numbers out of range.
    """
    if name not in _FROM_TEXT:
        raise ValueError(_unknown_name(name, _FROM_TEXT))
    if vocab_size < 2 or min_count < 1:
        raise ValueError(f"vocab_size {vocab_size} must be at least 2 and min_count {min_count} at least 1")
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        characters = sorted(set().union(*texts))
        if not characters:
            raise ValueError("a char tokenizer needs training text, and there is none")
        return CharTokenizer("".join(characters))
    counts = collections.Counter()
    for text in texts:
        counts.update(split_words(text) if name == "word" else _WRITTEN.findall(text))
    del counts[_UNKNOWN]
    # Ties go by the piece itself, so that the vocabulary does not depend on the order of the texts.
    frequent = sorted((-count, piece) for piece, count in counts.items() if count >= min_count)
    if not frequent:
        raise ValueError(f"a {name} tokenizer needs a piece that occurs min_count {min_count} times; there is none")
    kind = WordTokenizer if name == "word" else WhitespaceTokenizer
    return kind(tuple(piece for _, piece in frequent[: vocab_size - 1]))


def tokenizer_from_dict(d: dict) -> Tokenizer:
    """The tokenizer whose `to_dict()` was `d`. Raises ValueError for anything else."""
    options = dict(d)
    name = options.pop("name", None)
    if name not in _KINDS:
        raise ValueError(_unknown_name(name, _KINDS))
    fields = [field.name for field in dataclasses.fields(_KINDS[name])]
    if sorted(options) != fields:
        raise ValueError(f"a {name} tokenizer is made of {fields}, not of {sorted(options)}")
    # JSON has no tuples.
    return _KINDS[name](*(value if isinstance(value, str) else tuple(value) for value in options.values()))


def stream_decoder(tokenizer: Tokenizer) -> Callable[..., str]:
    """Returns `decode(ids, final=False) -> str` for text that comes a few ids at a time.

    A byte tokenizer's decoder holds back a character until its last byte is there; `final=True` gives up
    what is still held back as U+FFFD, so that the parts always join to `tokenizer.decode` of all ids.
    """
    if not isinstance(tokenizer, ByteTokenizer):
        return lambda ids, final=False: tokenizer.decode(ids)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return lambda ids, final=False: decoder.decode(tokenizer._checked(ids).astype(np.uint8).tobytes(), final)


_KINDS: dict[str, type[Tokenizer]] = {
    kind.name: kind for kind in (ByteTokenizer, CharTokenizer, WordTokenizer, WhitespaceTokenizer, SymbolTokenizer)
}
_FROM_TEXT = ("byte", "char", "word", "whitespace")

# [^\W_] is a letter or digit of any script; the straight and the typographic apostrophe belong to words.
_WRITTEN = re.compile(r"[^\S\n]*(\n|\S+)")
_PIECE = re.compile(r" ?(?:[^\W_]|['\u2019])+|.", re.DOTALL)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _unknown_name(name: object, known: Iterable[str]) -> str:
    message = f"unknown tokenizer {name!r}: one of {', '.join(known)}"
    nearest = difflib.get_close_matches(str(name), known, n=1)
    return message + (f"; did you mean {nearest[0]!r}?" if nearest else "")
