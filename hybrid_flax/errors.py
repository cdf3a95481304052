"""What is said where something of the user's is wrong."""

import difflib
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["ConfigError", "nearest", "one_line", "running"]


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


@contextmanager
def running(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Whatever goes wrong in the experiment file `path` as a ConfigError of one line, with the number of its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == str(path) else []
        words = error.msg if isinstance(error, SyntaxError) else one_line(error)
        if isinstance(error, SystemExit):
            words = f"it calls sys.exit({error.code!r}), and must return"
        where = f", line {lines[-1]}" if lines and lines[-1] else ""
        raise ConfigError(f"config file {str(path)!r} {what}{where}: {one_line(ValueError(words))}") from error
