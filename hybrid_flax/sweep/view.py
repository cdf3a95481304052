"""What a person sees of a sweep: a live table, lines where there is no terminal, and the tables at its end."""

import csv
import datetime
import io
import math
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybrid_flax.sweep.search import Record, Ticket
from hybrid_flax.sweep.trials import describe
from hybrid_flax.tasks.base import lower_is_better

__all__ = ["View", "best_first", "best_of", "short_names", "varying", "write_tables"]

_PAUSE = 1.0  # seconds between two drawings
_ROWS = 12  # finished trials in the live table


class View:
    """The display of a running sweep of `num_trials` trials, `slots` at a time, judged by `metric`."""

    def __init__(self, num_trials: int, slots: int, metric: str, console: Console | None = None):
        self._num_trials, self._slots, self._metric = num_trials, slots, metric
        self._console = console or Console(highlight=False)
        self._live: Live | None = None
        self._seconds: list[float] = []
        self._waits = False
        self._begin = self._drawn = time.monotonic()

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None

    def update(self, records: Callable[[], list[Record]], active: Mapping[int, Any]) -> None:
        """Draw the live table, not too often."""
        if self._live is not None and time.monotonic() - self._drawn >= _PAUSE:
            self._drawn = time.monotonic()
            self._live.update(self._render(records(), active), refresh=True)

    def started(self, ticket: Ticket) -> None:
        """A trial was launched."""
        if self._live is None:
            self._print(f"trial {ticket.number} started: {describe(ticket.trial.values)}")

    def waits(self) -> None:
        """There is nothing to do here, but trials of other workers may fall to this one yet."""
        if not self._waits:
            self._print("waiting for the trials of other workers")
        self._waits = True

    def ended(self, ticket: Ticket, records: Sequence[Record], seconds: float) -> None:
        """A trial has ended."""
        self._seconds.append(seconds)
        record = next(record for record in records if record.run == ticket.trial.name)
        if self._live is not None and record.state != "failed":
            return
        text = f"trial {record.number} {record.state} at step {record.step}"
        text += f": {record.reason}" if record.reason else f": {self._metric} {_number(record.value)}"
        self._print(f"{text} ({describe(record.values)}); {self._summary(records)}")

    def finish(self, records: Sequence[Record], workdir: Path, stopped_by: int | None) -> None:
        """The best trial, the table, and where it is."""
        if self._live is not None:
            self._live.update(Text(""), refresh=True)
        self._console.print(_table(best_first(records, self._metric), {}, self._metric))
        best = best_of(records, self._metric)
        if best is not None:
            self._print(f"best: trial {best.number}, {self._metric} {_number(best.value)}: {describe(best.values)}")
            self._print(f"      {workdir / best.run}")
        for record in records:
            if record.state == "failed":
                self._print(f"failed: trial {record.number} ({describe(record.values)}): {record.reason}")
        if stopped_by is not None:
            self._print(f"stopped by {signal.Signals(stopped_by).name}; run the same command to go on")
        self._print(f"{workdir / 'sweep.md'}, {workdir / 'sweep.csv'}")

    def _render(self, records, active):
        running = [record for record in records if record.state == "running"]
        ended = [record for record in best_first(records, self._metric) if record.state in ("done", "pruned", "failed")]
        return Group(
            Text(self._summary(records)), _table(running + ended[:_ROWS], active, self._metric, varying(records))
        )

    def _summary(self, records):
        ended = sum(record.state in ("done", "pruned", "failed") for record in records)
        best = best_of(records, self._metric)
        shown = f"best {_number(best.value)} of trial {best.number}" if best else "none done"
        return f"{ended}/{self._num_trials} trials, {shown}, eta {self._eta(ended)}"

    def _eta(self, ended):
        """At the pace of the trials that this worker has seen through."""
        left = self._num_trials - ended
        if not self._seconds or left <= 0:
            return "-:--" if left > 0 else "0:00:00"
        seconds = sum(self._seconds) / len(self._seconds) * -(-left // self._slots)
        return str(datetime.timedelta(seconds=round(seconds)))

    def _print(self, text):
        self._console.print(Text(text), soft_wrap=True)


def best_of(records: Sequence[Record], metric: str) -> Record | None:
    """The finished trial of the best metric, the first of equally good ones."""
    first = best_first(records, metric)
    return first[0] if first and first[0].state == "done" else None


def best_first(records: Sequence[Record], metric: str) -> list[Record]:
    """Finished trials from the best metric to the worst, then the others; what is no number comes after what is."""
    order, sign = ("done", "pruned", "running", "waiting", "failed"), 1 if lower_is_better(metric) else -1

    def key(record):
        missing = record.value is None or math.isnan(record.value)
        return order.index(record.state), missing, 0.0 if missing else sign * record.value, record.number

    return sorted(records, key=key)


def varying(records: Sequence[Record]) -> list[str]:
    """The keys that differ among trials."""
    keys = dict.fromkeys(key for record in records for key in record.values)
    return [key for key in keys if len({repr(record.values.get(key)) for record in records}) > 1]


def short_names(keys: Sequence[str]) -> list[str]:
    """The last name of every key, the whole key where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys)]


def write_tables(records: Sequence[Record], workdir: str | os.PathLike, metric: str) -> None:
    """sweep.csv and sweep.md: every trial with its values, the best first."""
    keys = list(dict.fromkeys(key for record in records for key in record.values))
    header: list[Any] = ["trial", "run", "state", "step", metric, *keys, "reason"]
    rows = [
        [record.number, record.run, record.state, record.step, "" if record.value is None else record.value]
        + [record.values.get(key, "") for key in keys]
        + [record.reason]
        for record in best_first(records, metric)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    _write(Path(workdir) / "sweep.csv", text.getvalue())
    cells = [[f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    _write(Path(workdir) / "sweep.md", "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]]) + "\n")


def _table(records, active, metric, keys=None):
    table = Table(box=SIMPLE_HEAD)
    keys = varying(records) if keys is None else keys
    for name in ("trial", "state", *short_names(keys), "step", metric):
        table.add_column(name, justify="right" if name in ("trial", "step", metric) else "left", overflow="fold")
    for record in records:
        now = active.get(record.number, record)
        cells = [describe({"": record.values[key]})[1:] if key in record.values else "" for key in keys]
        table.add_row(str(record.number), record.state, *cells, str(now.step), _number(now.value))
    return table


def _number(value):
    return "-" if value is None else f"{value:.4f}"


def _write(path, text):
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")  # other workers end at the same time
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
