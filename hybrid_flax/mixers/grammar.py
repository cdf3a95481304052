"""The grammar of layers, in prefix notation.

    layer = mixer{@option=value} | fusion{@option=value}:layer{+layer}

Every fusion has a known number of parts, which are layers, so that no brackets are needed: `gate:bi:lstm+attn` is
gate(bi(lstm), attn), and `add:cascade:lstm+attn+swa` is add(cascade(lstm, attn), swa).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from hybrid_flax.errors import ConfigError, nearest
from hybrid_flax.options import Option

__all__ = ["RESERVED", "Layer", "Named", "count_layers", "names_in", "read_layer"]

RESERVED = ":+,. =/@"  # characters that no name has
_DEEPEST = 8  # fusions within fusions: `bi` doubles what is in it
_SHOWN = 100  # characters of a layer in an error


@runtime_checkable
class Named(Protocol):
    """What is known of a name: of how many layers it is a fusion, 0 for a mixer, and its options."""

    @property
    def num_parts(self) -> int: ...

    @property
    def options(self) -> Mapping[str, Option]: ...


class Layer(NamedTuple):
    """A layer as it was read: a mixer by its name, or a fusion, by its name, of the layers in `parts`.

    options: (option, value) pairs that stand with the name, sorted.
    """

    name: str
    parts: tuple["Layer", ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def mixers(self) -> tuple[str, ...]:
        """The names of the mixers in it, from left to right."""
        return tuple(name for part in self.parts for name in part.mixers) if self.parts else (self.name,)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fusions and mixers in it, from left to right."""
        return (self.name, *(name for part in self.parts for name in part.names))

    def __str__(self) -> str:
        """The text that it is read from, options in alphabetical order."""
        word = self.name + "".join(f"@{key}={Option.write(value)}" for key, value in self.options)
        return f"{word}:{'+'.join(map(str, self.parts))}" if self.parts else word


class _Word(NamedTuple):
    """text: a name with its options. mark: what follows it, ":", "+" or, at the end, nothing."""

    text: str
    mark: str

    @property
    def name(self) -> str:
        return self.text.partition("@")[0]


def read_layer(text: str, known: Mapping[str, Named]) -> Layer:
    """The layer that `text` says. Raises ConfigError in one line, with the nearest of the `known` names."""
    words = _split(text)
    reader = _LayerReader(_short(text), known, words)
    layer = reader.layer(0)
    if reader.place < len(words):
        reader.name()
        whole, left = _short(str(layer)), _short(words[reader.place].text)
        reader.refuse(f"goes on after {whole!r} with {left!r}: write fusion:layer+layer, as in add:{whole}+{left}")
    return layer


def count_layers(text: str, known: Mapping[str, Named]) -> int:
    """How many layers stand in "layer+layer"; an unknown name counts as a mixer."""
    names = [word.name for word in _split(text)]
    return len(names) - sum(known[name].num_parts for name in names if name in known)


def names_in(pattern: str) -> tuple[set[str], set[str]]:
    """The names of the mixers and of the fusions in a comma-separated pattern, whether they are known or not."""
    words = [word for layer in pattern.split(",") for word in _split(layer) if word.name]
    return {word.name for word in words if word.mark != ":"}, {word.name for word in words if word.mark == ":"}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _split(text: str) -> list[_Word]:
    texts = re.split("([:+])", text.strip())
    return list(map(_Word, texts[::2], [*texts[1::2], ""]))


class _LayerReader:
    """Reads words from left to right. shown: the whole text, for errors. place: of the next word."""

    def __init__(self, shown: str, known: Mapping[str, Named], words: Sequence[_Word]):
        self.shown, self.known, self.words, self.place = shown, known, words, 0

    def layer(self, depth: int) -> Layer:
        """The layer that begins at the next word, within `depth` fusions."""
        name, options = self.name(), self._options()
        self.place += 1
        num_parts = self.known[name].num_parts
        if depth == _DEEPEST and num_parts:
            self.refuse(f"has more than {_DEEPEST} fusions within one another")
        parts: list[Layer] = []
        while len(parts) < num_parts:
            if parts and self._last_mark() != "+":
                self._refuse_number(name, len(parts), num_parts)
            parts.append(self.layer(depth + 1))
        return Layer(name, tuple(parts), options)

    def refuse(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"layer {self.shown!r} {message}")

    def name(self) -> str:
        """The name of the next word, which is known and has parts if, and only if, it is one of a fusion."""
        word = self.words[self.place]
        name, is_fusion = word.name, word.mark == ":"
        if not name:
            self.refuse("has an empty name: write name, or fusion:name+name")
        named = self.known.get(name)
        if named is None:
            alike = [other for other, entry in self.known.items() if bool(entry.num_parts) == is_fusion]
            kind = "fusion" if is_fusion else "mixer"
            raise ConfigError(f"unknown {kind} {_short(name)!r} in layer {self.shown!r}; {nearest(name, alike)}")
        if named.num_parts and not is_fusion:
            self._refuse_number(name, 0, named.num_parts)
        if is_fusion and not named.num_parts:
            fusions = [other for other, entry in self.known.items() if entry.num_parts]
            self.refuse(f"has parts for {name!r}, which is no fusion; {nearest(name, fusions)}")
        return name

    def _last_mark(self) -> str:
        return self.words[self.place - 1].mark

    def _options(self) -> tuple[tuple[str, Any], ...]:
        name, *texts = self.words[self.place].text.split("@")
        known = self.known[name].options
        values: dict[str, Any] = {}
        for text in texts:
            key, _, value = text.partition("=")
            if key not in known:
                rule = nearest(key, known) if known else "it has none"
                self.refuse(f"has an unknown option {_short(key)!r} of {name}; {rule}")
            if key in values:
                self.refuse(f"has {name}@{key} twice")
            if not value or "=" in value or any(letter.isspace() for letter in value):
                self.refuse(f"has @{_short(text)!r}: write {name}@{key}=VALUE, without spaces")
            values[key] = known[key].read(f"layer {self.shown!r}: {name}@{key}", value)
        return tuple(sorted(values.items()))

    def _refuse_number(self, name: str, found: int, wanted: int) -> NoReturn:
        form = f"{name}:{'+'.join(['layer'] * wanted)}"
        self.refuse(f"has {found} of the {wanted} parts of {name}: write {form}")
