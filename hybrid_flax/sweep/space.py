"""Sweeps as data: settings of config keys, and what combines them.

A setting is a flat dict, {"model.pattern": "gate:lstm+attn", "optim.learning_rate": 3e-3}: one trial. Values may be
spaces (`choice`, `int_range`, `float_range`, `when`): such a setting stands for as many trials as it is searched for.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

from hybrid_flax.errors import ConfigError, running

__all__ = [
    "MAX_TRIALS",
    "Choice",
    "FloatRange",
    "IntRange",
    "Setting",
    "When",
    "as_space",
    "axis",
    "chain",
    "choice",
    "draw",
    "expand",
    "expand_settings",
    "float_range",
    "has_spaces",
    "int_range",
    "product",
    "read_settings",
    "sample",
    "space_size",
    "when",
    "zip_",
]

Setting: TypeAlias = Mapping[str, Any]
MAX_TRIALS = 10_000


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
    """`space` where the setting's value of `key` is one of `values`; otherwise nothing is set."""

    key: str
    values: tuple[Any, ...]
    space: Any


# --- Rows ---


def axis(key: str, values: Iterable[Any]) -> list[Setting]:
    """A setting for every value of one key."""
    return [{key: value} for value in values]


def product(*parts: Iterable[Setting]) -> Iterator[Setting]:
    """Every setting of the first with every setting of the second, and so on; the last varies fastest."""
    return (_merge(settings, "product") for settings in itertools.product(*parts))


def zip_(*parts: Iterable[Setting]) -> Iterator[Setting]:
    """The first setting of each as one, the second of each, and so on. Raises ValueError where their numbers differ."""
    listed = [list(part) for part in parts]
    if len({len(part) for part in listed}) > 1:
        raise ValueError(f"zip_ of parts of {', '.join(str(len(part)) for part in listed)} settings: make them as many")
    return (_merge(settings, "zip_") for settings in zip(*listed))


def chain(*parts: Iterable[Setting]) -> Iterator[Setting]:
    """The settings of the first, then those of the second, and so on."""
    return itertools.chain(*parts)


def sample(settings: Iterable[Setting], count: int, seed: int = 0) -> list[Setting]:
    """`count` random settings, none twice; from settings with spaces, `count` random values of random ones of them."""
    settings, rng = list(settings), random.Random(seed)
    if not any(map(has_spaces, settings)):
        if count > len(settings):
            raise ValueError(f"sample of {count} out of {len(settings)} settings: take at most {len(settings)}")
        return rng.sample(settings, count)
    return [draw(rng.choice(settings), lambda _, space: _random_value(space, rng)) for _ in range(count)]


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
    """`space` (or one value) in settings whose `key`, which stands before, is one of `values`."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"when({key!r}, {values!r}, ...): values is a list")
    return When(key, tuple(values), space)


def has_spaces(setting: Setting) -> bool:
    """Whether any value of the setting is a space."""
    return any(isinstance(value, _SPACES) for value in setting.values())


def draw(setting: Setting, pick: Callable[[str, Any], Any]) -> Setting:
    """The setting with pick(key, space) in place of every space; what a `when` rules out is left out."""
    values: dict[str, Any] = {}
    for key, value in setting.items():
        if isinstance(value, When):
            if not _holds(value, key, values):
                continue
            value = value.space
        values[key] = pick(key, value) if isinstance(value, _SPACES) else value
    return values


def expand(setting: Setting) -> Iterator[Setting]:
    """All trials of a setting: each choice and whole number with each. Raises ValueError for a float_range."""
    return _expand(list(setting.items()), {})


def space_size(setting: Setting, limit: int) -> int:
    """The number of different trials of a setting, counted up to `limit`; a float_range has no end of them."""
    if any(isinstance(getattr(value, "space", value), FloatRange) for value in setting.values()):
        return limit
    return sum(1 for _ in itertools.islice(expand(setting), limit))


def as_space(settings: Sequence[Setting]) -> Setting:
    """The one setting of spaces that `settings` are: a setting with spaces, or a full product of values.

    Raises ValueError in one line for settings that are neither.
    """
    if len(settings) == 1:
        return settings[0]
    if any(map(has_spaces, settings)):
        raise ValueError(
            f"{len(settings)} settings, some with spaces: a search takes one setting; make a `choice` of what differs"
        )
    values = {key: _distinct([setting[key] for setting in settings if key in setting]) for key in settings[0]}
    full = math.prod(map(len, values.values())) == len(settings) and all(
        setting.keys() == values.keys() for setting in settings
    )
    if not full:
        raise ValueError(f"{len(settings)} settings that are no full product: a search takes one setting with spaces")
    return {key: choice(*options) if len(options) > 1 else options[0] for key, options in values.items()}


# --- What an experiment file says ---


def read_settings(module: ModuleType, names: Sequence[str]) -> list[Setting]:
    """The settings of `sweep()` of an experiment, or of sweep_NAME() of each name, one after another.

    Raises ConfigError in one line for functions that are missing, do not run, or yield something else than settings.
    """
    known = [name for name in vars(module) if name == "sweep" or name.startswith("sweep_")]
    settings: list[Setting] = []
    for function in [f"sweep_{name}" for name in names] or ["sweep"]:
        where = f"{module.__file__}, {function}()"
        if function not in known:
            listed = ", ".join(name.removeprefix("sweep_") for name in known if name != "sweep")
            have = "sweep() without --sweep" if "sweep" in known else "no sweep()"
            raise ConfigError(f"{where}: there is none; the file has {have}, and --sweep={listed or '(none)'}")
        with running(str(module.__file__), f"fails in {function}"):
            settings += itertools.islice(getattr(module, function)(), MAX_TRIALS + 1)
        if len(settings) > MAX_TRIALS:
            raise ConfigError(f"{where}: more than {MAX_TRIALS:,} trials; take a `sample` of them, or --search=random")
        for number, setting in enumerate(settings):
            if not isinstance(setting, Mapping) or not all(isinstance(key, str) for key in setting):
                raise ConfigError(f'{where}: setting {number} is no {{"a.b": value}} dict but {str(setting)[:80]!r}')
    if not settings:
        raise ConfigError(f"{module.__file__}: an empty sweep; yield at least one setting")
    return settings


def expand_settings(settings: Iterable[Setting]) -> list[Setting]:
    """The trials of a grid. Raises ConfigError where they are without end or too many."""
    try:
        expanded = list(itertools.islice(itertools.chain.from_iterable(map(expand, settings)), MAX_TRIALS + 1))
    except ValueError as error:
        raise ConfigError(f"sweep: {error}") from error
    if len(expanded) > MAX_TRIALS:
        raise ConfigError(f"sweep: more than {MAX_TRIALS:,} trials; take a `sample` of them, or --search=random")
    return expanded


_SPACES = (FloatRange, IntRange, Choice, When)


def _merge(settings, name):
    merged: dict[str, Any] = {}
    for setting in settings:
        twice = merged.keys() & setting.keys()
        if twice:
            raise ValueError(f"{sorted(twice)[0]!r} is in two parts of {name}")
        merged |= setting
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
