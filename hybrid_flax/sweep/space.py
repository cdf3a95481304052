"""Sweeps as data: rows of values for config keys, and what combines them.

A row is a flat dict, {"model.pattern": "gate:lstm+attn", "optim.learning_rate": 3e-3}: one trial. Values may also be
spaces (`choice`, `int_range`, `float_range`, `when`): such a row stands for as many trials as it is searched for.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Choice",
    "FloatRange",
    "IntRange",
    "When",
    "as_space",
    "axis",
    "chain",
    "choice",
    "draw",
    "expand",
    "float_range",
    "has_spaces",
    "int_range",
    "product",
    "sample",
    "space_size",
    "when",
    "zip_",
]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FloatRange:
    """Numbers from low to high."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class IntRange:
    """Whole numbers low, low + step, ... up to high."""

    low: int
    high: int
    step: int
    log: bool


@dataclass(frozen=True)
class Choice:
    """One of the options."""

    options: tuple[Any, ...]


@dataclass(frozen=True)
class When:
    """`space` where the row's value of `key` is one of `values`; otherwise nothing is set."""

    key: str
    values: tuple[Any, ...]
    space: Any


# --- Rows ---


def axis(key: str, values: Iterable[Any]) -> list[Row]:
    """A row for every value of one key."""
    return [{key: value} for value in values]


def product(*parts: Iterable[Row]) -> Iterator[Row]:
    """Every row of the first with every row of the second, and so on; the last varies fastest."""
    return (_merge(rows, "product") for rows in itertools.product(*parts))


def zip_(*parts: Iterable[Row]) -> Iterator[Row]:
    """The first row of each as one, the second of each, and so on. Raises ValueError where their numbers differ."""
    listed = [list(part) for part in parts]
    if len({len(part) for part in listed}) > 1:
        raise ValueError(f"zip_ of parts of {', '.join(str(len(part)) for part in listed)} rows: make them as many")
    return (_merge(rows, "zip_") for rows in zip(*listed))


def chain(*parts: Iterable[Row]) -> Iterator[Row]:
    """The rows of the first, then those of the second, and so on."""
    return itertools.chain(*parts)


def sample(rows: Iterable[Row], count: int, seed: int = 0) -> list[Row]:
    """`count` random rows, none twice; from rows with spaces, `count` random values of random rows of them."""
    rows, rng = list(rows), random.Random(seed)
    if not any(map(has_spaces, rows)):
        if count > len(rows):
            raise ValueError(f"sample of {count} out of {len(rows)} rows: take at most {len(rows)}")
        return rng.sample(rows, count)
    return [draw(rng.choice(rows), lambda _, space: _random_value(space, rng)) for _ in range(count)]


# --- Spaces ---


def float_range(low: float | int, high: float | int, *, log: bool = False) -> FloatRange:
    """Numbers from low to high, evenly or (log) evenly in their logarithm."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"float_range({low}, {high}): both must be finite")
    _check_range("float_range", low, high, log)
    return FloatRange(float(low), float(high), log)


def int_range(low: int, high: int, *, step: int = 1, log: bool = False) -> IntRange:
    """Whole numbers low, low + step, ... up to and with high; log: evenly in their logarithm (step 1)."""
    if not all(isinstance(value, int) for value in (low, high, step)):
        raise ValueError(f"int_range({low}, {high}, step={step}): all must be whole numbers")
    _check_range("int_range", low, high, log)
    if step < 1 or (log and step != 1):
        raise ValueError(f"int_range(..., step={step}, log={log}): step must be at least 1, and 1 with log")
    return IntRange(low, high, step, log)


def choice(*options: Any) -> Choice:
    """One of the options: texts, numbers, truth values."""
    options = tuple(option.item() if hasattr(option, "item") else option for option in options)  # of numpy
    if not options:
        raise ValueError("choice() of nothing: give it options")
    wrong = [option for option in options if not isinstance(option, str | int | float | bool | None)]
    if wrong:
        raise ValueError(f"choice of {wrong[0]!r}: options are texts, numbers and truth values, given one by one")
    if len(set(map(repr, options))) < len(options):
        raise ValueError(f"choice{options}: every option once")
    return Choice(options)


def when(key: str, values: Sequence[Any], space: Any) -> When:
    """`space` (or one value) in rows whose `key`, which stands before, is one of `values`."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"when({key!r}, {values!r}, ...): values is a list")
    return When(key, tuple(values), space)


def has_spaces(row: Row) -> bool:
    """Whether any value of the row is a space."""
    return any(isinstance(value, _SPACES) for value in row.values())


def draw(row: Row, pick: Callable[[str, Any], Any]) -> Row:
    """The row with pick(key, space) in place of every space; what a `when` rules out is left out."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, When):
            if not _holds(value, key, values):
                continue
            value = value.space
        values[key] = pick(key, value) if isinstance(value, _SPACES) else value
    return values


def expand(row: Row) -> Iterator[Row]:
    """All trials of a row: each choice and whole number with each. Raises ValueError for a float_range."""
    return _expand(list(row.items()), {})


def space_size(row: Row, limit: int) -> int:
    """The number of different trials of a row, counted up to `limit`; a float_range has no end of them."""
    if any(isinstance(getattr(value, "space", value), FloatRange) for value in row.values()):
        return limit
    return sum(1 for _ in itertools.islice(expand(row), limit))


def as_space(rows: Sequence[Row]) -> Row:
    """The one row of spaces that `rows` are: a row with spaces, or a full product of values.

    Raises ValueError in one line for rows that are neither.
    """
    if len(rows) == 1:
        return rows[0]
    if any(map(has_spaces, rows)):
        raise ValueError(f"{len(rows)} rows, some with spaces: a search takes one row; make a `choice` of what differs")
    values = {key: _distinct([row[key] for row in rows if key in row]) for key in rows[0]}
    full = math.prod(map(len, values.values())) == len(rows) and all(row.keys() == values.keys() for row in rows)
    if not full:
        raise ValueError(f"{len(rows)} rows that are no full product: a search takes one row with spaces")
    return {key: choice(*options) if len(options) > 1 else options[0] for key, options in values.items()}


_SPACES = (FloatRange, IntRange, Choice, When)


def _merge(rows, name):
    merged: dict[str, Any] = {}
    for row in rows:
        twice = merged.keys() & row.keys()
        if twice:
            raise ValueError(f"{sorted(twice)[0]!r} is in two parts of {name}")
        merged |= row
    return merged


def _distinct(values):
    return list({repr(value): value for value in values}.values())


def _check_range(name, low, high, log):
    if not low < high:
        raise ValueError(f"{name}({low}, {high}): the first must be below the second")
    if log and low <= 0:
        raise ValueError(f"{name}({low}, {high}, log=True): both must be above 0")


def _holds(condition, key, values):
    if condition.key == key:
        raise ValueError(f"{key!r} depends on itself")
    return values.get(condition.key, _Nothing) in condition.values


class _Nothing:
    """No value of a config."""


def _expand(items, done):
    if not items:
        yield done
        return
    (key, value), *rest = items
    if isinstance(value, When):
        if not _holds(value, key, done):
            yield from _expand(rest, done)
            return
        value = value.space
    for option in _options(key, value):
        yield from _expand(rest, {**done, key: option})


def _options(key, value):
    if isinstance(value, Choice):
        return value.options
    if isinstance(value, IntRange):
        return range(value.low, value.high + 1, value.step)
    if isinstance(value, FloatRange):
        raise ValueError(f"{key}: a grid cannot try every number of a float_range: use --search=random or tpe")
    return (value,)


def _random_value(space, rng):
    if isinstance(space, Choice):
        return rng.choice(space.options)
    if isinstance(space, IntRange) and not space.log:
        return rng.randrange(space.low, space.high + 1, space.step)
    # A whole number is the floor of one that is as likely between it and the next.
    low, high = space.low, space.high + isinstance(space, IntRange)
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if space.log else rng.uniform(low, high)
    return min(max(math.floor(value), space.low), space.high) if isinstance(space, IntRange) else value
