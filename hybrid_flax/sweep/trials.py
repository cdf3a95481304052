"""Trials: the rows of a sweep as configs and run folders, all checked before anything trains."""

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hybrid_flax.config import ConfigError, config_hash, flatten, value_at, with_values
from hybrid_flax.sweep.claims import is_locked
from hybrid_flax.sweep.space import draw, expand, has_spaces
from hybrid_flax.train.experiment import Experiment, make_experiment
from hybrid_flax.train.folder import RunFolder, read_json
from hybrid_flax.train.writers import read_jsonl

__all__ = [
    "MAX_TRIALS",
    "Status",
    "Trial",
    "TrialFolder",
    "check_config",
    "check_space",
    "describe",
    "expand_rows",
    "make_trial",
    "make_trials",
    "read_status",
    "sweep_rows",
]

MAX_TRIALS = 10_000
Row = Mapping[str, Any]


class Trial(NamedTuple):
    """One run of a sweep. name: the hash of its config. values: what the sweep sets."""

    name: str
    values: Row
    config: ConfigDict


class Status(NamedTuple):
    """What the folder of a trial says.

    state: waiting, running, done, failed or pruned. step: the last that is known of. value: the last eval.metric of the
    validation split, None before the first. reason: why it failed.
    """

    state: str
    step: int = 0
    value: float | None = None
    reason: str = ""


class TrialFolder(RunFolder):
    """Paths of a trial's run folder: besides those of a run, what the sweep keeps there.

    trial.json (the experiment and the config, as `launch.py --config` takes it), output.log, outcome.json (why it
    failed, or where it was pruned), writer.lock (held by the process that trains).
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self.trial = self.path / "trial.json"
        self.output = self.path / "output.log"
        self.outcome = self.path / "outcome.json"
        self.lock = self.path / "writer.lock"

    def prepare(self, trial: Trial, experiment: str) -> None:
        """Make the folder with the config to train."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.outcome.unlink(missing_ok=True)
        saved = {"experiment": experiment, "values": dict(trial.values), "config": trial.config.to_dict()}
        _write(self.trial, saved)

    def write_outcome(self, state: str, step: int, reason: str = "") -> None:
        """Note how the trial ended where it did not reach its last step."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.outcome, {"state": state, "step": step, "reason": reason})


def sweep_rows(module: ModuleType, names: Sequence[str]) -> list[Row]:
    """The rows of `sweep()` of an experiment, or of sweep_NAME() of each name, one after another.

    Raises ConfigError in one line for functions that are missing, do not run, or yield something else than rows.
    """
    known = [name for name in vars(module) if name == "sweep" or name.startswith("sweep_")]
    rows: list[Row] = []
    for function in [f"sweep_{name}" for name in names] or ["sweep"]:
        where = f"{module.__file__}, {function}()"
        if function not in known:
            listed = ", ".join(name.removeprefix("sweep_") for name in known if name != "sweep")
            have = "sweep() without --sweep" if "sweep" in known else "no sweep()"
            raise ConfigError(f"{where}: there is none; the file has {have}, and --sweep={listed or '(none)'}")
        try:
            rows += itertools.islice(getattr(module, function)(), MAX_TRIALS + 1)
        except Exception as error:
            raise ConfigError(f"{where}: {' '.join(str(error).split()) or type(error).__name__}") from error
        if len(rows) > MAX_TRIALS:
            raise ConfigError(f"{where}: more than {MAX_TRIALS:,} trials; take a `sample` of them, or --search=random")
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
                raise ConfigError(f'{where}: row {number} is no {{"a.b": value}} dict but {str(row)[:80]!r}')
    if not rows:
        raise ConfigError(f"{module.__file__}: an empty sweep; yield at least one row")
    return rows


def expand_rows(rows: Iterable[Row]) -> list[Row]:
    """The trials of a grid. Raises ConfigError where they are without end or too many."""
    try:
        expanded = list(itertools.islice(itertools.chain.from_iterable(map(expand, rows)), MAX_TRIALS + 1))
    except ValueError as error:
        raise ConfigError(f"sweep: {error}") from error
    if len(expanded) > MAX_TRIALS:
        raise ConfigError(f"sweep: more than {MAX_TRIALS:,} trials; take a `sample` of them, or --search=random")
    return expanded


def make_trial(base: ConfigDict, values: Row, label: str = "trial", flat: Row | None = None) -> Trial:
    """The trial of a row. Raises ConfigError that names it for keys and values that the config cannot hold.

    flat: `base` flattened, where there are many.
    """
    try:
        config = with_values(base, values)
    except ConfigError as error:
        raise ConfigError(f"{label} ({describe(values)}): {error}") from error
    values = {key: value_at(config, key) for key in values}
    return Trial(config_hash({**(flat or flatten(base)), **values}), values, config)


def make_trials(base: ConfigDict, rows: Sequence[Row], given: Iterable[str] = ()) -> list[Trial]:
    """Every trial of a grid, checked: its data, model and step are built, nothing is computed.

    given: keys set on the command line, which a sweep may not set too. Raises ConfigError that names the first trial
    at fault.
    """
    trials: list[Trial] = []
    first: dict[str, int] = {}
    flat = flatten(base)
    for number, values in enumerate(rows):
        label = f"trial {number}"
        _check_given(values, given, label)
        trial = make_trial(base, values, label, flat)
        if trial.name in first:
            raise ConfigError(f"trials {first[trial.name]} and {number} ({describe(values)}) are the same run")
        first[trial.name] = number
        _check_trial(trial, label)
        trials.append(trial)
    return trials


def check_space(base: ConfigDict, space: Row, given: Iterable[str] = ()) -> None:
    """Check what can be known of a search space before it is searched: every end of a range and every option.

    One space at a time goes through its values while the others keep their first. Raises ConfigError.
    """
    if not has_spaces(space):
        raise ConfigError("a search needs a row with spaces: choice, int_range, float_range")
    _check_given(space, given, "the search space")
    seen = set()
    for key in space:
        for index in range(_num_ends(space[key])):
            try:
                values = draw(space, partial(_end, key, index))
            except ValueError as error:
                raise ConfigError(f"the search space: {error}") from error
            trial = make_trial(base, values, "a trial of the search space")
            if trial.name not in seen:
                seen.add(trial.name)
                _check_trial(trial, "a trial of the search space")


def check_config(config: ConfigDict) -> Experiment:
    """The experiment of a trial's config. Raises ConfigError where there is none, or nothing to compare it by."""
    experiment = make_experiment(config)
    if "valid" not in experiment.source.splits:
        raise ConfigError(
            f"a sweep compares validation metrics and {config.data.path!r} has no validation part: raise "
            "data.valid_fraction"
        )
    return experiment


def describe(values: Row) -> str:
    """A row in one line, as the command line has it."""
    return " ".join(f"{key}={_text(value)}" for key, value in values.items()) or "the config as it is"


def read_status(path: str | os.PathLike, metric: str) -> Status:
    """What is on disk of a trial that is judged by `metric`."""
    folder = TrialFolder(path)
    name = f"eval/{metric}"
    rows = [row for row in read_jsonl(folder.metrics) if name in row]
    step, value = (rows[-1]["step"], rows[-1][name]) if rows else (0, None)
    if folder.results.exists():
        results = read_json(folder.results)
        return Status("done", results["last_step"], results["valid"][metric])
    if is_locked(folder.lock):
        return Status("running", step, value)
    if folder.outcome.exists():
        outcome = read_json(folder.outcome)
        return Status(outcome["state"], outcome["step"], value, outcome["reason"])
    return Status("waiting", step, value)


def _text(value):
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _check_given(values, given, label):
    twice = sorted(set(given) & set(values))
    if "eval.metric" in values:
        raise ConfigError(f"{label}: eval.metric is what trials are compared by: set it by --config.eval.metric")
    if twice:
        raise ConfigError(f"{label}: {twice[0]} is set by the sweep and by --config.{twice[0]}; leave out one")


def _check_trial(trial, label):
    try:
        check_config(trial.config)
    except ConfigError as error:
        raise ConfigError(f"{label} ({describe(trial.values)}): {error}") from error


def _num_ends(value):
    return len(_ends(value.space if hasattr(value, "space") else value))


def _end(key: str, index: int, name: str, part: Any) -> Any:
    """The end at `index` of the part that is called `key`, the first end of any other."""
    return _ends(part)[index if name == key else 0]


def _ends(value):
    """Values to check a space by."""
    if hasattr(value, "options"):
        return value.options
    return (value.low, value.high) if hasattr(value, "low") else (value,)


def _write(path, value):
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, Path(path))
