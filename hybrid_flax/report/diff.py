"""Two runs side by side: what differs in their configs, and their metrics."""

import os
import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hybrid_flax.config import ConfigError, flatten, read_values
from hybrid_flax.console import make_console
from hybrid_flax.files import read_json
from hybrid_flax.jobs.trial import values_text
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.writers import read_jsonl

__all__ = ["diff_runs", "print_diff"]


def diff_runs(one: str | os.PathLike, other: str | os.PathLike) -> dict[str, list[tuple[str, Any, Any]]]:
    """Rows (name, of the one, of the other), None where it has none.

    "config": values that differ; "run": versions and devices that differ; "metrics": all final ones, or those of the
    last rows of runs that are not finished. Raises ConfigError for a folder that is no run.
    """
    sides = [_read(folder) for folder in (one, other)]
    rows = {}
    for part in ("config", "run", "metrics"):
        a, b = (side[part] for side in sides)
        names = [*a, *(name for name in b if name not in a)]
        every = [(name, a.get(name), b.get(name)) for name in names]
        rows[part] = [row for row in every if part == "metrics" or row[1] != row[2]]
    return rows


def print_diff(one: str | os.PathLike, other: str | os.PathLike, console: Console | None = None) -> None:
    """The rows of `diff_runs` as tables; metrics with the difference."""
    console = console or make_console(highlight=False)
    for part, rows in diff_runs(one, other).items():
        if not rows:
            console.print(f"{part}: the same" if part != "metrics" else "metrics: none")
            continue
        table = Table(box=SIMPLE_HEAD)
        table.add_column(part, overflow="fold")
        for name in (one, other, *(["difference"] if part == "metrics" else [])):
            table.add_column(str(name), overflow="fold", justify="right" if part == "metrics" else "left")
        for name, a, b in rows:
            if part == "metrics":
                table.add_row(name, _figure(a), _figure(b), _difference(a, b))
            else:
                table.add_row(name, _text(a), _text(b))
        console.print(table)


def _read(path):
    folder = RunFolder(path)
    if not folder.config.exists():
        raise ConfigError(f"{folder.path} is no run: it has no config.json")
    config, about = flatten(read_values(folder.config)), folder.read_about() if folder.about.exists() else {}
    if not about:
        print(f"{folder.path} has no {folder.about.name}: its versions and devices are not known", file=sys.stderr)
    return {"config": config, "run": flatten(about), "metrics": _metrics(folder)}


def _metrics(folder):
    if folder.results.exists():
        results = read_json(folder.results, dict)
        return {"step": results.pop("step", None)} | {key.replace(".", "/"): v for key, v in flatten(results).items()}
    last: dict[str, Any] = {}
    for row in read_jsonl(folder.metrics):
        last |= row
    if not last:
        print(f"{folder.path} has no figures in {folder.metrics.name}", file=sys.stderr)
    return last


def _text(value):
    return "" if value is None else values_text({"": value})[1:]


def _figure(value):
    return f"{value:.6g}" if isinstance(value, float) else _text(value)


def _difference(a, b):
    both = all(isinstance(value, int | float) for value in (a, b))
    return f"{b - a:+.4g}" if both else ""
