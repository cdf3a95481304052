"""What a comparison found, as it lies in compare.json: everything that tables, statistics and pages are made of."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.files import read_json, write_json
from hybrid_flax.tasks.base import Metric

__all__ = ["Budget", "Column", "Comparison", "Cost", "Entry", "Failure", "Row", "read_comparison", "write_comparison"]

FILE = "compare.json"
_FORMAT = 1  # version of the file's format; version 0.1 wrote none


class Budget(NamedTuple):
    """What every row of a task is brought to, within 2 %. kind: "parameters" or "flops" (forward, a token)."""

    kind: str
    amount: float


class Row(NamedTuple):
    """A model. single: whether one mechanism alone mixes along time: fusions are held against the best of those."""

    name: str
    single: bool


class Column(NamedTuple):
    """A task and what is measured on it.

    kind: config.task.name. steps: of every run. length: tokens a row.
    """

    task: str
    kind: str
    metric: Metric
    budget: Budget
    steps: int
    length: int


class Cost(NamedTuple):
    """What an entry costs.

    parameters: all of them. flops_per_token: of the forward pass. state_bytes: that one row carries from token to
    token after a row of the task's length, caches included; None for a model that reads the future. tokens_per_sec:
    of training, the median over log points and seeds. peak_bytes: the most memory that a process of its runs held.
    peak_kind: what that is: "resident memory of the process" or "device memory". The last three are None, None and ""
    until they are measured.
    """

    parameters: int
    flops_per_token: float
    state_bytes: int | None
    tokens_per_sec: float | None = None
    peak_bytes: int | None = None
    peak_kind: str = ""


class Failure(NamedTuple):
    """A run that did not get to its end. folder: as in `Entry`."""

    folder: str
    learning_rate: float
    seed: int
    reason: str


class Entry(NamedTuple):
    """One row on one task.

    pattern, width: of the model. learning_rate: chosen on the validation split with the first seed; None where every
    run of the search failed or none is done yet. search: (rate, validation metric) of its runs, in the order tried.
    seeds: those whose run is finished, and for each of them, in this order: valid, test: the metric at the best
    checkpoint; folders: the run, relative to the comparison's folder. failures: whatever else happened.
    """

    row: str
    task: str
    pattern: str
    width: int
    learning_rate: float | None
    search: tuple[tuple[float, float], ...]
    seeds: tuple[int, ...]
    valid: tuple[float, ...]
    test: tuple[float, ...]
    folders: tuple[str, ...]
    cost: Cost
    failures: tuple[Failure, ...] = ()


class Comparison(NamedTuple):
    """Rows x columns. entries: a row of every column, in the order of rows, then columns, also where nothing ran yet.

    seeds: how many every entry is to get. learning_rates: of the search. devices: what it ran on, "" before it did.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    learning_rates: tuple[float, ...]
    seeds: int
    devices: str

    def entry(self, row: str, task: str) -> Entry:
        """The entry of a row on a task, by their names."""
        return next(entry for entry in self.entries if (entry.row, entry.task) == (row, task))

    def finished(self) -> bool:
        """Whether every entry has all its seeds."""
        return all(len(entry.seeds) == self.seeds for entry in self.entries)


def write_comparison(comparison: Comparison, workdir: str | os.PathLike) -> Path:
    """Write compare.json in `workdir`, whole or not at all, and return its path."""
    path = Path(workdir) / FILE
    write_json(path, {"format": _FORMAT, **_plain(comparison)}, indent=1)
    return path


def read_comparison(workdir: str | os.PathLike) -> Comparison:
    """What `write_comparison` wrote. Raises ConfigError in one line where it is not there or cannot be read."""
    path = Path(workdir) / FILE
    if not path.exists():
        raise ConfigError(f"{Path(workdir)} holds no comparison: it has no {FILE}")
    saved = read_json(path, dict)
    if saved.pop("format", None) != _FORMAT:
        raise ConfigError(f"{path} is of another version: start its comparison again, which keeps all finished runs")
    try:
        return Comparison(
            **saved
            | {
                "rows": tuple(Row(**row) for row in saved["rows"]),
                "columns": tuple(
                    Column(**c | {"budget": Budget(**c["budget"]), "metric": Metric(**c["metric"])})
                    for c in saved["columns"]
                ),
                "entries": tuple(_entry(entry) for entry in saved["entries"]),
                "learning_rates": tuple(saved["learning_rates"]),
            }
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error


def _entry(saved: dict[str, Any]) -> Entry:
    tuples = {name: tuple(saved[name]) for name in ("seeds", "valid", "test", "folders")}
    search = tuple((rate, value) for rate, value in saved["search"])
    failures = tuple(Failure(**failure) for failure in saved["failures"])
    return Entry(**saved | tuples | {"search": search, "cost": Cost(**saved["cost"]), "failures": failures})


def _plain(value: Any) -> Any:
    """NamedTuples as objects, by name; other tuples as lists."""
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
