"""A command line as a table: what verbs, flags and values are; parsing, refusals and help are made from it.

Nothing here needs JAX, so that a mistake in a call is answered at once.
"""

import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hybrid_flax.errors import ConfigError, nearest
from hybrid_flax.spelling import read_whole

__all__ = [
    "ADDRESS",
    "STORAGE",
    "TEXT",
    "Flag",
    "Kind",
    "Verb",
    "Words",
    "answer",
    "command",
    "names",
    "one_of",
    "parse",
    "place",
    "real",
    "whole",
    "word",
]


class Kind(NamedTuple):
    """What a value must be. shown: how help writes it. read: its text to the value, or ValueError("is ...")."""

    shown: str
    read: Callable[[str], Any]


class Flag(NamedTuple):
    """--name=VALUE; kind None: a switch, False unless it is given.

    about: a sentence for help. default: the value where it is not given. absent: what holds then, in words, where
    `default` does not say it. needed: what could be given ("runs here: ..."), for a flag that must be.
    """

    name: str
    kind: Kind | None
    about: str
    default: Any = None
    absent: str = ""
    needed: Callable[[], str] | None = None


class Words(NamedTuple):
    """What stands after a verb without a flag: from `least` to `most` words, each a `what`."""

    least: int
    most: int
    shown: str
    what: str


class Verb(NamedTuple):
    """A command.

    example: what may follow its name. knobs: it takes --config.NAME=VALUE. check: raises ConfigError for options that
    do not go together. instead: remedies for flags that it does not take, with VALUE for what was given.
    """

    name: str
    about: str
    example: str
    flags: tuple[Flag, ...] = ()
    knobs: bool = False
    words: Words | None = None
    check: Callable[[SimpleNamespace], None] = lambda options: None
    instead: Mapping[str, str] = {}


def parse(verbs: Mapping[str, Verb], argv: Sequence[str]) -> tuple[str, SimpleNamespace]:
    """The name of the verb, and its options.

    They are a value for each of its flags, and besides `given` (the names of flags that were), `words`, and `overrides`
    ("a.b=value" of every --config.a.b=value). A flag is --name=VALUE or --name VALUE. The verb comes first; where there
    is none it is the first of `verbs`. Raises ConfigError in one line for whatever the verb does not know or take.
    """
    rest = list(argv)
    verb = _find_verb(verbs, rest.pop(0)) if rest and not rest[0].startswith("-") else next(iter(verbs.values()))
    flags = {f"--{flag.name}": flag for flag in verb.flags}
    values: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    words: list[str] = []
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("-"):
            words.append(name + equals + text)
        elif name.startswith("--config.") and verb.knobs:
            text = text if equals else _next_word(rest, name, "VALUE")
            before = overrides.setdefault(name.removeprefix("--config."), text)
            if before != text:
                raise ConfigError(f"{name} is given twice: {before} and {text}")
        elif name not in flags:
            raise ConfigError(_refusal(verbs, verb, name, text or "VALUE"))
        elif name[2:] in values:
            raise ConfigError(f"{name} is given twice")
        else:
            values[name[2:]] = _read(flags[name], text if equals else None, rest)
    _check_words(verbs, verb, words)
    for flag in verb.flags:
        if flag.needed and flag.name not in values:
            raise ConfigError(f"no --{flag.name} given; {flag.needed()}")
    defaults = {flag.name: flag.default if flag.kind else False for flag in verb.flags}
    changes = [f"{key}={text}" for key, text in overrides.items()]
    options = SimpleNamespace(**defaults | values, given=set(values), words=words, overrides=changes)
    verb.check(options)
    return verb.name, options


def answer(verbs: Mapping[str, Verb], argv: Sequence[str], version: str) -> str | None:
    """The help or the version that is asked for, None where neither is. Raises ConfigError for an unknown verb."""
    words = [word for word in argv if word not in ("-h", "--help")]
    if words == ["--version"]:
        return version
    if words[:1] == ["help"]:
        del words[0]
        if len(words) > 1 or any(word.startswith("-") for word in words):
            raise ConfigError(f"help takes 1 command and no flags, not {' '.join(words)}")
    elif len(words) == len(argv):
        return None
    return _help_verb(_find_verb(verbs, words[0])) if words and not words[0].startswith("-") else _help_all(verbs)


def command() -> str:
    """The command that started this process."""
    name = Path(sys.argv[0]).name
    return {"launch.py": "python launch.py", "__main__.py": "python -m hybrid_flax"}.get(name, "hybrid-flax")


# --- what values must be ---


def word(shown: str) -> Kind:
    """A name."""

    def read(text: str) -> str:
        if not text.strip():
            raise ValueError("is blank")
        return text

    return Kind(shown, read)


def place(shown: str) -> Kind:
    """A file or a folder of this machine, with ~ for the user's own."""

    def read(text: str) -> str:
        if not text.strip():
            raise ValueError("is blank")
        if (scheme := re.match(r"([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE)) is not None:
            raise ValueError(f"is no path: {scheme[1]}: is not read or written; mount it, or copy from and to a folder")
        return os.path.expanduser(text)

    return Kind(shown, read)


def names(shown: str) -> Kind:
    """Names with commas between them, as a list."""

    def read(text: str) -> list[str]:
        parts = text.split(",")
        if not all(part.strip() for part in parts):
            raise ValueError("has an empty name between its commas")
        return parts

    return Kind(shown, read)


def one_of(*choices: str) -> Kind:
    """One of the choices."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is none of {', '.join(choices)}; {nearest(text, choices)}")
        return text

    return Kind("|".join(choices), read)


def whole(least: int, below: int = 2**31) -> Kind:
    """A whole number in [least, below)."""

    def read(text: str) -> int:
        try:
            value = read_whole(text)
        except ValueError:
            raise ValueError("is no whole number") from None
        if value < least:
            raise ValueError(f"must be at least {least}")
        if value >= below:
            raise ValueError(f"must be below {below}")
        return value

    return Kind("N", read)


def real(rule: str, holds: Callable[[float], bool]) -> Kind:
    """A finite number for which `holds` is true; `rule` says so in words."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("is no number") from None
        if not (math.isfinite(value) and holds(value)):
            raise ValueError(f"must be {rule}")
        return value

    return Kind("X", read)


def _read_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host.strip() or "/" in host or (":" in host and not host.startswith("[")):
        raise ValueError("is no HOST:PORT, such as localhost:1234")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"has port {port!r}, which must be a number from 1 to 65535")
    return text


def _read_storage(text: str) -> str:
    scheme, separator, place = text.partition("://")
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator or not place:
        raise ValueError("is no postgresql://USER@HOST/DATABASE; leave it out for a journal file")
    return text


TEXT = Kind("TEXT", str)
ADDRESS = Kind("HOST:PORT", _read_address)
STORAGE = Kind("postgresql://...", _read_storage)


# --- parsing and its refusals ---


def _find_verb(verbs: Mapping[str, Verb], name: str) -> Verb:
    if name not in verbs:
        raise ConfigError(f"unknown command {name!r}; {nearest(name, verbs, cutoff=0.6)}")
    return verbs[name]


def _read(flag: Flag, text: str | None, rest: list[str]) -> Any:
    """The value of a flag, from the text after "=" or else from the next word."""
    name = f"--{flag.name}"
    if flag.kind is None:
        if text is not None:
            raise ConfigError(f"{name} takes no value: leave out ={text}")
        return True
    text = _next_word(rest, name, flag.kind.shown) if text is None else text
    if not text:
        raise ConfigError(f"{name}= is empty: write {name}={flag.kind.shown}, or leave it out")
    try:
        return flag.kind.read(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text} {error}") from None


def _next_word(rest: list[str], name: str, shown: str) -> str:
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"{name} has no value: write {name}={shown}")
    return rest.pop(0)


def _check_words(verbs: Mapping[str, Verb], verb: Verb, words: list[str]) -> None:
    if verb.words is None and words:
        first = words[0]
        if first in verbs:
            raise ConfigError(f"unexpected {first!r}: the command comes first, as in {command()} {first} ...")
        known = {"config", *(flag.name for flag in verb.flags)}
        near = f": write --{first}" if first.partition("=")[0].partition(".")[0] in known else ""
        raise ConfigError(f"{verb.name} takes nothing but flags, not {first!r}{near}")
    if verb.words is not None:
        least, most, shown, what = verb.words
        if not least <= len(words) <= most:
            count = f"{'' if least == most else 'at most '}{most} {what}{'s' * (most > 1)}"
            raise ConfigError(f"{verb.name} takes {count}, {len(words)} given")
        if not all(text.strip() for text in words):
            raise ConfigError(f"{verb.name}: the name of a {what} is empty: write {verb.name} {shown}")
        for number, text in enumerate(words):
            try:
                words[number] = place(shown).read(text)
            except ValueError as error:
                raise ConfigError(f"{verb.name}: {what} {text!r} {error}; write {verb.name} {shown}") from None


def _refusal(verbs: Mapping[str, Verb], verb: Verb, name: str, text: str) -> str:
    """Why a verb does not take the flag `name`, and what to write."""
    bare = name.lstrip("-").replace("-", "_")
    takers = [other.name for other in verbs.values() if any(flag.name == bare for flag in other.flags)]
    if verb.name in takers:
        return f"{verb.name} takes no {name}: write --{bare}"
    if (remedy := verb.instead.get(bare.partition(".")[0])) is not None:
        return f"{verb.name} takes no {name}: {remedy.replace('VALUE', text)}"
    if takers:
        listed = " and ".join(filter(None, [", ".join(takers[:-1]), takers[-1]]))
        return f"{verb.name} takes no {name}: {listed} {'do' if len(takers) > 1 else 'does'}"
    return (
        f"unknown flag {name} of {verb.name}; {nearest(name, [f'--{flag.name}' for flag in verb.flags], cutoff=0.65)}"
    )


# --- help ---


def _help_all(verbs: Mapping[str, Verb]) -> str:
    first = next(iter(verbs))
    lines = [f"{command()} [COMMAND] [--flag=VALUE ...] [--config.NAME=VALUE ...]", ""]
    lines += [*_table((verb.name, verb.about) for verb in verbs.values()), ""]
    lines.append(f"`{command()} COMMAND --help` shows the flags of one. Where none is given it is {first}.")
    return "\n".join(lines)


def _help_verb(verb: Verb) -> str:
    rows = [(verb.words.shown, f"Name of a {verb.words.what}.")] if verb.words else []
    for flag in verb.flags:
        default = "needed" if flag.needed else f"default: {flag.absent or flag.default}"
        if flag.kind is None:
            rows.append((f"--{flag.name}", f"{flag.about} (default: off)"))
        else:
            rows.append((f"--{flag.name}={flag.kind.shown}", f"{flag.about} ({default})"))
    if verb.knobs:
        rows.append(("--config.NAME=VALUE", "Set a knob; hybrid_flax/knobs.py lists them. (default: as the file says)"))
    return "\n".join([verb.about, "", *_table(rows), "", f"Example: {command()} {verb.name} {verb.example}"])


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns; a wide left cell has its line for itself."""
    rows = list(rows)
    width = min(26, max(len(left) for left, _ in rows)) + 2
    lines = []
    for left, right in rows:
        first, *more = textwrap.wrap(right, 110 - width)
        lines += [left, f"{'':{width}}{first}"] if len(left) > width - 2 else [f"{left:{width}}{first}"]
        lines += [f"{'':{width}}{line}" for line in more]
    return lines
