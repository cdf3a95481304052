"""Tokenizers: text to ids and back, and the width of every token in characters and bytes.

Bits per character and per byte compare models of different vocabularies only if every token knows how much of
the original text it covers, the unknown ones too: that is what `widths` is for.
"""

from __future__ import annotations

import abc
import codecs
import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hybrid_flax.data import bpe
from hybrid_flax.errors import nearest
from hybrid_flax.registration import TOKENIZERS, Chosen, calling

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNKNOWN = "<unk>"


class Vocabulary(NamedTuple):
    """What is asked of a tokenizer that is made from texts: the arguments of `make_tokenizer`."""

    vocab_size: int
    min_count: int
    lowercase: bool
    cut: str
    spells: bool


class Tokenizer(abc.ABC):
    """Maps text to ids in [0, vocab_size) and back. Immutable, and equal where the vocabularies are.

    name: of the kind. lowercases: whether it can be made of texts in lower case. One whose ids are bytes, and may end
    inside a character, has join(ids) -> bytes; `decode` of any other joins what it gives for single ids.
    """

    name: ClassVar[str]
    unknown_id: ClassVar[int | None]
    lowercases: ClassVar[bool] = False

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        """Made from training texts; raises ValueError where they hold no vocabulary."""
        raise ValueError(f"a {cls.name} tokenizer is not made from texts")

    @property
    def num_characters(self) -> int:
        """How many ids `WordTokenizer.spell` gives; 0: words are not spelt."""
        return 0

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

    def tokens(self) -> tuple[str | bytes | None, ...]:
        """What every id stands for, in the order of ids; None for the unknown one."""
        return tuple(None if i == self.unknown_id else self.decode([i]) for i in range(self.vocab_size))

    @abc.abstractmethod
    def to_dict(self) -> dict:
        """What `tokenizer_from_dict` needs to build an equal one, and its "name"; it survives JSON."""

    def note_unknown(self, name: str, text: str) -> str:
        """What to say where `text`, which is called `name`, has unknown tokens; "" where it has none."""
        unknown = int(np.sum(self.encode(text) == self.unknown_id)) if self.unknown_id is not None else 0
        return f"note: {name}={text!r} has {unknown} tokens unseen in training, read as unknown" if unknown else ""

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

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        return cls()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable) -> str:
        return self.join(ids).decode("utf-8", errors="replace")

    def join(self, ids: Iterable) -> bytes:
        """The bytes under ids, which may end inside a character."""
        return self._checked(ids).astype(np.uint8).tobytes()

    def tokens(self) -> tuple[str | bytes | None, ...]:
        return tuple(bytes([i]) for i in range(256))

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

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        characters = sorted(set().union(*texts))
        if not characters:
            raise ValueError("a char tokenizer needs training text, and there is none")
        return cls("".join(characters))

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> np.ndarray:
        return self._id_of_code[np.minimum(_code_points(text), len(self._id_of_code) - 1)]

    def decode(self, ids: Iterable) -> str:
        return _code_points(_REPLACEMENT + self.characters)[self._checked(ids)].tobytes().decode("utf-32-le")

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        codes = _code_points(text)
        return np.ones(len(codes), np.int32), _utf8_sizes(codes)

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
    """Words and single other characters; 0 is every piece not in the vocabulary.

    Attributes:
      pieces: the vocabulary; its i-th piece has the id i + 1.
      cut: what a piece is. "text": a word with the space before it, or any other character, so that pieces join to the
        text itself; "sentence": a word, or another character that is no white space; "token": the whole text, less
        spaces before it, because others have cut it.
      lowercase: whether pieces are those of the text in lower case.
      characters: the alphabet of `spell`; "" where words are not spelt.
    """

    pieces: tuple[str, ...]
    cut: str = "text"
    lowercase: bool = False
    characters: str = ""
    name = "word"
    unknown_id = 0
    lowercases = True

    def __post_init__(self):
        if not self.pieces or len(self._id_of_piece) != len(self.pieces):
            raise ValueError("the pieces of a word tokenizer must be some and all different")
        if self.cut not in _CUTS:
            raise ValueError(f"the cut of a word tokenizer is one of {', '.join(_CUTS)}, not {self.cut!r}")

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        letters: collections.Counter[str] = collections.Counter()

        def pieces():
            for text in texts:
                cut = cut_words(text, vocabulary.cut)
                if vocabulary.spells:
                    letters.update("".join(cut))
                yield map(str.lower, cut) if vocabulary.lowercase else cut

        frequent = _frequent(cls.name, pieces(), vocabulary)
        alphabet = "".join(sorted(letter for letter, count in letters.items() if count >= vocabulary.min_count))
        return cls(frequent, vocabulary.cut, vocabulary.lowercase, alphabet)

    @property
    def vocab_size(self) -> int:
        return len(self.pieces) + 1

    @property
    def num_characters(self) -> int:
        """How many ids of characters there are: none, the unknown one, the alphabet; 0 without an alphabet."""
        return len(self.characters) + 2 if self.characters else 0

    def encode(self, text: str) -> np.ndarray:
        id_of = self._id_of_piece.get
        return np.fromiter((id_of(piece, 0) for piece in cut_words(text, self.cut, self.lowercase)), np.int32)

    def decode(self, ids: Iterable) -> str:
        pieces = (_REPLACEMENT, *self.pieces)
        return ("" if self.cut == "text" else " ").join(pieces[i] for i in self._checked(ids).tolist())

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return _widths_of_matches(_CUTS[self.cut], text)

    def tokens(self) -> tuple[str | bytes | None, ...]:
        return None, *self.pieces

    def spell(self, text: str, length: int) -> np.ndarray:
        """Ids of the characters of every piece, int32 [N, length]: 0 none, 1 unknown; of a long one both ends.

        They are those of the text as it is, in upper case too.
        """
        pieces = cut_words(text, self.cut)
        ids = np.zeros((len(pieces), length), np.int32)
        for row, piece in zip(ids, pieces):
            spelling = _spelling(self._alphabet, piece, length)
            row[: len(spelling)] = spelling
        return ids

    def unspell(self, ids: Iterable) -> str:
        """The characters of one row of `spell`; the unknown one is U+FFFD."""
        return self._alphabet.decode([i - 1 for i in ids if i])

    def to_dict(self) -> dict:
        return {"name": self.name, **dataclasses.asdict(self), "pieces": list(self.pieces)}

    @functools.cached_property
    def _id_of_piece(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces, start=1)}

    @functools.cached_property
    def _alphabet(self) -> CharTokenizer:
        return CharTokenizer(self.characters)


@functools.lru_cache(maxsize=2**16)  # most words of a text are not new
def _spelling(alphabet, piece, length):
    ids = 1 + alphabet.encode(piece)
    if len(ids) <= length:
        return ids
    end = length // 2
    return np.concatenate([ids[: length - end], ids[len(ids) - end :]])


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

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        return cls(_frequent(cls.name, map(_WRITTEN.findall, texts), vocabulary))

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
        return _widths_of_matches(_WRITTEN, text)

    def tokens(self) -> tuple[str | bytes | None, ...]:
        return None, *self.pieces

    def to_dict(self) -> dict:
        return {"name": self.name, "pieces": list(self.pieces)}

    @functools.cached_property
    def _id_of_piece(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate((_UNKNOWN, *self.pieces))}


@dataclasses.dataclass(frozen=True)
class BpeTokenizer(Tokenizer):
    """Byte-pair encoding of UTF-8 (Sennrich et al. 2016; of bytes, Radford et al. 2019): nothing is unknown.

    Attributes:
      model: the JSON of the `tokenizers` library.
      lowercase: whether ids are those of the text in lower case; else every text comes back from them.
    """

    model: str
    lowercase: bool = False
    name = "bpe"
    unknown_id = None
    lowercases = True

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        texts = map(_lower, texts) if vocabulary.lowercase else texts
        return cls(bpe.train(texts, vocabulary.vocab_size), vocabulary.lowercase)

    @property
    def vocab_size(self) -> int:
        return len(self._bpe.pieces)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._bpe.encode(_lower(text) if self.lowercase else text), np.int32)

    def decode(self, ids: Iterable) -> str:
        return self.join(ids).decode("utf-8", errors="replace")

    def join(self, ids: Iterable) -> bytes:
        """The bytes under ids, which may end inside a character."""
        return b"".join(map(self._bpe.pieces.__getitem__, self._checked(ids).tolist()))

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        # A character counts with all its bytes where it starts.
        num_chars = self._begun[self.encode(text)]
        sizes = np.cumsum(np.append(0, _utf8_sizes(_code_points(text))))
        return num_chars, np.diff(sizes[np.cumsum(np.append(0, num_chars))]).astype(np.int32)

    def tokens(self) -> tuple[str | bytes | None, ...]:
        return tuple(self._bpe.pieces)

    def to_dict(self) -> dict:
        return {"name": self.name, **dataclasses.asdict(self)}

    @functools.cached_property
    def _bpe(self) -> bpe.Bpe:
        return bpe.load(self.model)

    @functools.cached_property
    def _begun(self) -> np.ndarray:
        """Characters that start in each piece: bytes that are no continuation, 0b10xxxxxx."""
        return np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self._bpe.pieces], np.int32)


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


def cut_words(text: str, cut: str = "text", lowercase: bool = False) -> list[str]:
    """The pieces of a text, as `WordTokenizer` describes them. A word is a run of letters, digits and apostrophes."""
    pieces = _CUTS[cut].findall(text)
    return [piece.lower() for piece in pieces] if lowercase else pieces


class _Loader(NamedTuple):
    """load: what `Tokenizer.to_dict` gave -> the tokenizer. lowercases: as `Tokenizer` has it."""

    load: Callable[[dict[str, Any]], Tokenizer]
    lowercases: bool


def register_tokenizer(
    name: str,
    make: Callable[..., Tokenizer],
    load: Callable[[dict[str, Any]], Tokenizer],
    *,
    lowercases: bool = False,
) -> None:
    """Make `name` a tokenizer: make(texts, vocabulary, **options) -> `Tokenizer`, from the training texts.

    vocabulary: a `Vocabulary`, with what data.vocab_size and its like ask for. load: what its `to_dict` wrote into
    tokenizer.json, with "name" -> an equal one. lowercases: whether data.lowercase goes with it. Options are the
    keyword-only arguments of `make`, `tokenizers.NAME.OPTION` in a config.
    Raises ValueError as `Table.register`.
    """
    TOKENIZERS.register(name, make, _Loader(load, lowercases))


def make_tokenizer(
    name: str | Chosen,
    texts: Iterable[str],
    *,
    vocab_size: int = 10_000,
    min_count: int = 1,
    lowercase: bool = False,
    cut: str = "text",
    spells: bool = False,
) -> Tokenizer:
    """Builds a tokenizer from training texts.

    Args:
      name: the kind, or one of `TOKENIZERS` with its options.
      texts: where all but "byte" take their vocabulary from; give no held-out text here.
      vocab_size: the most ids "word", "whitespace" and "bpe" may have, the unknown one included; the most frequent
        pieces get them.
      min_count: how often a piece, and a character of `spell`, must occur to be in the vocabulary of words.
      lowercase: of "word" and "bpe".
      cut, spells: of "word": its `cut`, and whether it has an alphabet for `spell`.

    Raises:
      ValueError: an unknown name, texts without any vocabulary, options out of range, or a tokenizer that does not
        come back from its `to_dict`.
    """
    choice = TOKENIZERS.choose(name) if isinstance(name, str) else name
    if vocab_size < 2 or min_count < 1:
        raise ValueError(f"vocab_size {vocab_size} must be at least 2 and min_count {min_count} at least 1")
    if lowercase and not choice.entry.traits.lowercases:
        takers = " and ".join(other for other in TOKENIZERS if TOKENIZERS[other].traits.lowercases)
        raise ValueError(f"lower case goes with the tokenizers {takers}, not with {choice.name}")
    made = choice.make(texts, Vocabulary(vocab_size, min_count, lowercase, cut, spells))
    if not isinstance(made, Tokenizer):
        raise ValueError(
            f"tokenizer {choice.name} made {type(made).__name__}, no hybrid_flax.data.tokenizers.Tokenizer"
        )
    with calling(f"to_dict of tokenizer {choice.name}", choice.entry.make):
        saved = json.loads(json.dumps(made.to_dict()))
    if saved.get("name") != choice.name or tokenizer_from_dict(saved) != made:
        raise ValueError(
            f"tokenizer {choice.name} must come back from its to_dict: that holds name={choice.name!r}, and what is "
            "loaded from it equals it"
        )
    return made


def tokenizer_from_dict(d: dict) -> Tokenizer:
    """The tokenizer whose `to_dict()` was `d`. Raises ValueError for anything else."""
    name = d.get("name")
    if not isinstance(name, str) or name not in TOKENIZERS:
        known = f"one of {', '.join(TOKENIZERS)}; {nearest(str(name), TOKENIZERS, count=1)}"
        raise ValueError(f"no tokenizer {name!r} is registered: {known}")
    load = TOKENIZERS[name].traits.load
    with calling(f"load of tokenizer {name}", load, passes=ValueError):
        return load(dict(d))


def _from_fields(kind: Any, saved: dict[str, Any]) -> Tokenizer:
    """A dataclass from the values of its fields."""
    options = dict(saved)
    name = options.pop("name")
    fields = dataclasses.fields(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not needed <= options.keys() <= {field.name for field in fields}:
        raise ValueError(f"a {name} tokenizer is made of {[field.name for field in fields]}, not of {sorted(options)}")
    # JSON has no tuples.
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def stream_decoder(tokenizer: Tokenizer) -> Callable[..., str]:
    """Returns `decode(ids, final=False) -> str` for text that comes a few ids at a time.

    The decoder of a tokenizer of bytes holds back a character until its last byte is there; `final=True` gives up
    what is still held back as U+FFFD, so that the parts always join to `tokenizer.decode` of all ids.
    """
    join = getattr(tokenizer, "join", None)
    if join is not None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda ids, final=False: decoder.decode(join(ids), final)
    if isinstance(tokenizer, WordTokenizer) and tokenizer.cut != "text":
        return lambda ids, final=False: "".join(f" {tokenizer.decode([i])}" for i in ids)
    return lambda ids, final=False: tokenizer.decode(ids)


# [^\W_] is a letter or digit of any script; the straight and the typographic apostrophe belong to words.
_WRITTEN = re.compile(r"[^\S\n]*(\n|\S+)")
_CUTS = {
    "text": re.compile(r"( ?(?:[^\W_]|['\u2019])+|.)", re.DOTALL),
    "sentence": re.compile(r"\s*((?:[^\W_]|['\u2019])+|\S)"),
    "token": re.compile(r" *(.+)", re.DOTALL),
}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _utf8_sizes(codes: np.ndarray) -> np.ndarray:
    """Bytes of each code point in UTF-8, int32 [N]."""
    sizes = np.ones(codes.shape, np.int32)
    for first in (0x80, 0x800, 0x10000):
        sizes += codes >= first
    return sizes


def _widths_of_matches(pattern: re.Pattern, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Characters and bytes from the end of one match to that of the next; what comes after the last belongs to it."""
    ends = np.fromiter((match.end() for match in pattern.finditer(text)), np.int64)
    ends[-1:] = len(text)
    spans = [text[start:end] for start, end in zip([0, *ends[:-1]], ends)]
    return np.fromiter(map(len, spans), np.int32), np.fromiter((len(span.encode()) for span in spans), np.int32)


def _lower(text: str) -> str:
    """Lower case, character by character: one that becomes two stays as it is, so that widths hold."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _frequent(name: str, pieces: Iterable[Iterable[str]], vocabulary: Vocabulary) -> tuple[str, ...]:
    """The most frequent pieces of all texts; ties go by the piece itself, not by the order of the texts."""
    counts: collections.Counter[str] = collections.Counter()
    for some in pieces:
        counts.update(some)
    del counts[_UNKNOWN]
    least = vocabulary.min_count
    frequent = sorted((-count, piece) for piece, count in counts.items() if count >= least)
    if not frequent:
        raise ValueError(f"a {name} tokenizer needs a piece that occurs min_count {least} times; there is none")
    return tuple(piece for _, piece in frequent[: vocabulary.vocab_size - 1])


for _kind in (ByteTokenizer, CharTokenizer, WordTokenizer, WhitespaceTokenizer, BpeTokenizer, SymbolTokenizer):
    register_tokenizer(
        _kind.name, _kind.from_texts, functools.partial(_from_fields, _kind), lowercases=_kind.lowercases
    )
