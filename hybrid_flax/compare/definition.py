"""What is compared: the definition in an experiment file, and the contenders, a row on a task each."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hybrid_flax.compare.equalise import model_cost, solve_width
from hybrid_flax.compare.results import Budget, Column, Cost
from hybrid_flax.config import apply_overrides, config_hash, validate, with_values
from hybrid_flax.errors import ConfigError
from hybrid_flax.mixers.registry import parse_layer
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.training.config_model import model_from_config
from hybrid_flax.training.setup import make_setup, missing_split, read_source

__all__ = ["ComparedTask", "Contender", "Definition", "make_contenders"]

Values = Mapping[str, Any]  # {"model.pattern": "gate:lstm+attn"}


class ComparedTask(NamedTuple):
    """A task of a comparison.

    config: of every row, but for what rows change. eval.metric on the validation split is what the best checkpoint,
    the learning rate and the reference go by, and on the test split what is reported. budget: as in `Definition`, for
    this task alone. rows: {row: values} that stand here for those of the definition.
    """

    config: ConfigDict
    budget: Mapping[str, float] | None = None
    rows: Mapping[str, Values] = MappingProxyType({})


class Definition(NamedTuple):
    """What `get_compare(arg="")` of an experiment file returns.

    rows: {name: {"model.pattern": ..., "mixers.attn.num_heads": ...}}. tasks: {name: ComparedTask}. budget:
    {"parameters": N} or {"flops": N}, of the forward pass by token; model.width is solved for it. learning_rates: that
    every row tries on every task, with the first seed. seeds: how many runs every row gets at its best rate; they begin
    at config.seed of the task.
    """

    title: str
    rows: Mapping[str, Values]
    tasks: Mapping[str, ComparedTask]
    budget: Mapping[str, float]
    learning_rates: Sequence[float]
    seeds: int


class Contender(NamedTuple):
    """A row on a task, with its width solved.

    name: unique in the comparison, with a hash of the config, fit for a file. config: of its runs but for learning rate
    and seed. mechanisms: the names of what mixes along time. cost: what is known before it runs.
    """

    name: str
    row: str
    column: Column
    config: ConfigDict
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    mechanisms: frozenset[str]
    cost: Cost


_MOST_SEEDS = 1000
_SOLVED = {
    "model.width": "the budget gives the width",
    "optim.learning_rate": "the search gives the learning rate",
    "seed": "every row has the same seeds",
}


def make_contenders(definition: Definition, overrides: Sequence[str] = ()) -> Iterator[Contender]:
    """Every contender, task by task, checked as it is made: its data, model and step are built, nothing is computed.

    overrides: `a.b=value` texts for the configs of all tasks. Raises ConfigError in one line that names what is wrong.
    """
    _check_definition(definition)
    _check_values({text.partition("=")[0]: None for text in overrides}, "--config", _SOLVED.keys() - {"seed"})
    for name, task in definition.tasks.items():
        base = apply_overrides(copy.deepcopy(task.config), overrides)
        budget = _budget(definition.budget if task.budget is None else task.budget, f"task {name!r}")
        for row, values in {**definition.rows, **task.rows}.items():
            try:
                yield _make_contender(definition, row, values, name, base, budget)
            except (ValueError, FileNotFoundError) as error:
                raise ConfigError(f"row {row!r} on task {name!r}: {error}") from error


def _make_contender(definition, row, values, task, base, budget) -> Contender:
    first = {"eval.best": True, "optim.learning_rate": definition.learning_rates[0]}
    config = with_values(base, {**values, **first})
    validate(config)
    if not config.eval.every:
        raise ConfigError("eval.every=0 leaves no best checkpoint to find: raise it")
    source = read_source(config)
    for split in ("valid", "test"):
        if split not in source.splits:
            raise ConfigError(missing_split(config, split))
    train = source.train(config.data.mode, config.data.batch_size, config.data.length, config.seed)
    tokens = train.batch(0, slice(0, 1)).tokens

    def make_model(width: int) -> SequenceModel:
        config.model.width = width
        tokenizer = source.tokenizer
        return model_from_config(config, tokenizer.vocab_size, source.labels, tokenizer.num_characters)

    model = make_model(solve_width(make_model, budget, tokens))
    config.model.width = model.design.width
    column = Column(task, config.task.name, make_setup(config).metric, budget, config.train.steps, tokens.shape[1])
    seeds = tuple(config.seed + number for number in range(definition.seeds))
    cost, rates = model_cost(model, tokens), tuple(map(float, definition.learning_rates))
    # Without the learning rate: the runs of a grid remain those of a grid with other rates beside them.
    identity = config_hash(with_values(config, {"optim.learning_rate": 0.0}))
    name = "".join(c if c.isalnum() or c in "-+:,.=" else "_" for c in f"{task}-{row}-{identity}")
    return Contender(name, row, column, config, rates, seeds, _mechanisms(model.design.layers), cost)


def _mechanisms(layers):
    """The names that mix along time; a fusion of one part has a mechanism besides it, unless it is `bi`."""
    own, waiting = set(), [parse_layer(layer) for layer in layers]
    while waiting:
        layer = waiting.pop()
        waiting += layer.parts
        if not layer.parts or (len(layer.parts) == 1 and layer.name != "bi"):
            own.add(layer.name)
    return frozenset(own)


def _check_definition(definition):
    for field in ("rows", "tasks", "budget"):
        if not isinstance(getattr(definition, field), Mapping) or not getattr(definition, field):
            raise ConfigError(f"comparison: {field} must be a dict with something in it")
    _budget(definition.budget, "comparison")
    rates, seeds = definition.learning_rates, definition.seeds
    if isinstance(rates, str) or not isinstance(rates, Sequence):
        raise ConfigError(f"comparison: learning_rates={rates!r} must be a list of numbers")
    good = [isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates]
    if not good or not all(good) or len(set(rates)) < len(good):
        raise ConfigError(f"comparison: learning_rates={rates!r} must be different numbers above 0, at least one")
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= _MOST_SEEDS:
        raise ConfigError(f"comparison: seeds={seeds!r} must be a number of runs in [1, {_MOST_SEEDS}]")
    for name, values in definition.rows.items():
        _check_values(values, f"row {name!r}", _SOLVED)
    for name, task in definition.tasks.items():
        if not isinstance(task, ComparedTask) or not isinstance(task.config, ConfigDict):
            raise ConfigError(f"task {name!r}: must be a ComparedTask with a ConfigDict, not {type(task).__name__}")
        if not isinstance(task.rows, Mapping):
            raise ConfigError(f"task {name!r}: rows={task.rows!r} must be a dict of rows")
        for row, values in task.rows.items():
            if row not in definition.rows:
                raise ConfigError(f"task {name!r}: {row!r} is none of the rows {', '.join(definition.rows)}")
            _check_values(values, f"row {row!r} of task {name!r}", _SOLVED)
    names = [name for field in (definition.rows, definition.tasks) for name in field]
    for name in (definition.title, *names):
        if not isinstance(name, str) or not name.strip() or name != name.encode(errors="ignore").decode():
            raise ConfigError(f"comparison: {name!r} is no name of a comparison, a row or a task: want a text")


def _check_values(values, where, refused):
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f'{where}: must be {{"a.b": value}}, not {str(values)[:80]!r}')
    for key in values:
        if key in refused:
            raise ConfigError(f"{where}: sets {key}, but {_SOLVED[key]}: leave it out")


def _budget(given, where) -> Budget:
    single = isinstance(given, Mapping) and len(given) == 1
    kind, amount = next(iter(given.items())) if single else ("", None)
    if kind not in ("parameters", "flops") or not isinstance(amount, int | float) or not 0 < amount < math.inf:
        raise ConfigError(f'{where}: budget={given!r} must be {{"parameters": N}} or {{"flops": N}}')
    return Budget(kind, float(amount))
