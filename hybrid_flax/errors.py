"""What is said where something of the user's is wrong."""

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "nearest", "one_line"]


class ConfigError(ValueError):
    """A config that cannot run: one line with the value, the rule it breaks and what would be right."""


def nearest(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.4) -> str:
    """ "nearest: a, b", at most `count` of the known names that are spelt most alike; "known: ..." where none is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=cutoff)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(sorted(known)) or 'none'}"


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks; its type where it says nothing."""
    text: object = error
    while isinstance(text, KeyError | AttributeError) and text.args:
        text = text.args[0]  # their own text is a quoted one
    return " ".join(str(text).split()) or type(error).__name__
