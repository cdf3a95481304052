"""What users own: tables of what is registered under a name, and options that are read from keyword-only arguments.

    register_optimizer("mine", make_mine)    # def make_mine(hparams, *, beta: Share = 0.9)
    config.optim.name = "mine"; config.optimizers.mine.beta = 0.5

Built-ins are registered by the same calls, in the module that a table calls its home. It is imported when the table is
first read, so that whoever reads a config knows all names without knowing who makes what.
"""

import importlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from hybrid_flax.errors import ConfigError, nearest, one_line
from hybrid_flax.options import Option, options_of, source_of

__all__ = [
    "LOGGERS",
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "READERS",
    "SCHEDULES",
    "SECTIONS",
    "TASKS",
    "TOKENIZERS",
    "Chosen",
    "Registered",
    "Table",
    "calling",
    "chosen",
    "options_in_use",
    "options_without_effect",
    "registered_options",
]

Passes: TypeAlias = type[Exception] | tuple[()]

_SEPARATORS = ":+,.=/@()"


class Registered(NamedTuple):
    """What a name stands for; equal entries do the same.

    make: the function that was registered. traits: what was said of it. options: (name, option) of its keyword-only
    arguments.
    """

    name: str
    make: Callable[..., Any]
    traits: Any = None
    options: tuple[tuple[str, Option], ...] = ()

    def __repr__(self) -> str:
        return f"{self.name} ({source_of(self.make)}, {self.traits})"  # alike in every process


class Chosen(NamedTuple):
    """An entry and values of its options, as sorted pairs: hashable, so that what is made of it can be kept."""

    entry: Registered
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The name that was chosen."""
        return self.entry.name

    def make(self, *args: Any, **changes: Any) -> Any:
        """entry.make(*args, **options); changes: other values of some.

        Raises ConfigError in one line for what goes wrong in it, and ValueError as it does.
        """
        with calling(self.entry.name, self.entry.make, passes=ValueError):
            return self.entry.make(*args, **dict(self.values) | changes)

    def split(self, kind: type) -> tuple["Chosen", dict[str, Any]]:
        """The choice without its options of a type, and the values of those."""
        apart = {key for key, option in self.entry.options if option.type is kind}
        kept = tuple((key, value) for key, value in self.values if key not in apart or value is None)
        return self._replace(values=kept), {key: value for key, value in self.values if (key, value) not in kept}


class Table(Mapping[str, Registered]):
    """The entries of one kind by name, in the order in which they were registered.

    kind: in words. knob: the key of a config that names one of them, "" where none does. home: the module that
    registers the built-ins.
    """

    def __init__(self, kind: str, knob: str, home: str):
        self.kind, self.knob = kind, knob
        self._home = home
        self._entries: dict[str, Registered] = {}

    def register(self, name: str, make: Callable[..., Any], traits: Any = None, *, reads_options: bool = True) -> None:
        """Make `name` stand for `make`; registered again, from the same place, it stands for the new function.

        reads_options: whether the keyword-only arguments of `make` are options.
        Raises ValueError for a name that cannot stand in a config or is taken, and for options that cannot.
        """
        if not isinstance(name, str) or name.split() != [name] or set(name) & set(_SEPARATORS):
            shown = " ".join(_SEPARATORS)
            raise ValueError(f"{self.kind} {name!r}: a name must be free of spaces and of {shown}")
        if not callable(make):
            raise ValueError(f"{self.kind} {name!r}: {make!r} is no function")
        options = options_of(make) if reads_options else {}
        for key, option in options.items():
            if option.type not in (int, float, str, bool):
                raise ValueError(f"{self.kind} {name!r}: option {key!r} must be an int, a float, a str or a bool")
        taken = self._entries.get(name)
        if taken is not None and source_of(taken.make) != source_of(make):
            raise ValueError(f"{self.kind} {name!r} is already registered for {source_of(taken.make)}")
        entry = Registered(name, make, traits, tuple(options.items()))
        if taken != entry:
            self._entries[name] = entry

    def choose(self, name: str, options: Mapping[str, Any] | None = None) -> Chosen:
        """The entry called `name`, with values of its options: those that are not given are at their default.

        Raises ConfigError for an unknown name or option, with the nearest ones, and for a value out of its range.
        """
        if name not in self:
            knob = f"{self.knob}=" if self.knob else f"{self.kind} "
            raise ConfigError(f"{knob}{name!r} is none of {', '.join(self)}; {nearest(str(name), self)}")
        entry = self[name]
        known = dict(entry.options)
        for key, value in (options or {}).items():
            if key not in known:
                raise ConfigError(f"unknown option {key!r} of {self.kind} {name}; {nearest(key, known)}")
            known[key].check(f"{self.kind} {name}: {key}", value)
        values = {key: option.default for key, option in known.items()} | dict(options or {})
        return Chosen(entry, tuple(sorted(values.items())))

    def options(self) -> dict[str, dict[str, Option]]:
        """The options by name, of those entries that have any."""
        return {name: dict(entry.options) for name, entry in self._known().items() if entry.options}

    def __getitem__(self, name: str) -> Registered:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> dict[str, Registered]:
        importlib.import_module(self._home)
        return self._entries


OPTIMIZERS = Table("optimizer", "optim.name", "hybrid_flax.training.optimizer")
SCHEDULES = Table("schedule", "schedule.name", "hybrid_flax.training.optimizer")
TASKS = Table("task", "task.name", "hybrid_flax.tasks.registry")
LOSSES = Table("loss", "loss.name", "hybrid_flax.tasks.registry")
METRICS = Table("metric", "eval.metric", "hybrid_flax.tasks.registry")
READERS = Table("reader", "", "hybrid_flax.data.readers")
TOKENIZERS = Table("tokenizer", "data.tokenizer", "hybrid_flax.data.tokenizers")
LOGGERS = Table("logger", "", "hybrid_flax.training.loggers")

# The tables whose options stand in a config, by their section: optimizers.NAME.OPTION.
SECTIONS = {
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "tasks": TASKS,
    "losses": LOSSES,
    "tokenizers": TOKENIZERS,
    "loggers": LOGGERS,
}


def registered_options() -> dict[str, dict[str, dict[str, Option]]]:
    """{"optimizers": {name: {option: ...}}} of those sections that have any."""
    found = {section: table.options() for section, table in SECTIONS.items()}
    return {section: options for section, options in found.items() if options}


def chosen(table: Table, config: Any) -> Chosen:
    """What a config chooses from a table, with the options that it has there.

    Raises ConfigError for an unknown name, with the nearest ones.
    """
    section = next(name for name, own in SECTIONS.items() if own is table)
    name = _named(table, config)
    return table.choose(name, dict(config.get(section, {}).get(name, {})))


def options_in_use(config: Any) -> list[str]:
    """ "optimizers.mine.beta=0.5": the options of what the config chooses, those of loggers that are on among them."""
    return [f"{key}={value}" for key, value, option, used in _options_in(config) if used]


def options_without_effect(config: Any) -> list[str]:
    """Options that are set and belong to what the config does not choose, as `options_in_use` writes them."""
    found = _options_in(config)
    return [f"{key}={value}" for key, value, option, used in found if not used and value != option.default]


@contextmanager
def calling(name: str, function: Callable[..., Any], passes: Passes = ConfigError) -> Iterator[None]:
    """Whatever goes wrong in a function that is registered as `name`, as a ConfigError of one line with its place.

    passes: exceptions that say themselves what is wrong.
    """
    try:
        yield
    except passes:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}"
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{name} ({source_of(function)}) fails: {said[:300]} ({where})") from error


def _options_in(config: Any) -> Iterator[tuple[str, Any, Option, bool]]:
    """(key, value, option, whether the config makes something with it)."""
    on = {"loggers": [name for name, value in config.log.items() if value]}
    for section, entries in registered_options().items():
        for name, options in entries.items():
            used = name in on.get(section, [_named(SECTIONS[section], config)])
            given = config.get(section, {}).get(name, {})
            for key, option in options.items():
                yield f"{section}.{name}.{key}", given.get(key, option.default), option, used


def _named(table: Table, config: Any) -> str:
    """What a config calls the entry that it takes from a table; "" where no knob says so."""
    section, _, key = table.knob.rpartition(".")
    return config[section][key] if key else ""
