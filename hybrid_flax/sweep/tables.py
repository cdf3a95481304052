"""The trials of a sweep, the best first: on the screen, as CSV for programs, as Markdown for people."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from hybrid_flax.files import write_whole
from hybrid_flax.jobs.queue import ENDED, Standing
from hybrid_flax.jobs.trial import values_text
from hybrid_flax.jobs.view import View, format_value
from hybrid_flax.tasks.base import Metric
from hybrid_flax.training.signals import stopped_by
from hybrid_flax.units import markdown_table

__all__ = ["REPEATS", "SweepTable", "best_first", "best_of", "by_repeats", "print_end", "short_names", "varying"]
__all__ += ["write_tables"]

REPEATS = ("seed", "data.fold")  # what repeats a setting and is none itself
_ROWS = 12  # finished trials in the live table


class SweepTable:
    """The table of a sweep that is judged by `metric`."""

    def __init__(self, metric: Metric):
        self._metric = metric

    def live(self, standings: Sequence[Standing], active: Mapping[str, Any]) -> Table:
        """What runs, and the best of what has ended. active: what runs here, with its step and value, by name."""
        running = [one for one in standings if one.state == "running"]
        ended = [one for one in best_first(standings, self._metric) if one.state in ENDED]
        return self.drawn(running + ended[:_ROWS], active, varying(standings))

    def drawn(
        self, standings: Sequence[Standing], active: Mapping[str, Any], keys: Sequence[str] | None = None
    ) -> Table:
        """The table in the order given; keys: of the values that are shown, by default those that vary."""
        table = Table(box=SIMPLE_HEAD)
        keys = varying(standings) if keys is None else keys
        for name in ("trial", "state", *short_names(keys), "step", self._metric.name):
            justify: Any = "right" if name in ("trial", "step", self._metric.name) else "left"
            table.add_column(Text(name), justify=justify, overflow="fold")
        for one in standings:
            now = active.get(one.run, one)
            cells = [values_text({"": one.values[key]})[1:] if key in one.values else "" for key in keys]
            texts = [str(one.number), one.state, *cells, str(now.step), format_value(now.value)]
            table.add_row(*map(Text, texts))
        return table

    def best_in_words(self, standings: Sequence[Standing]) -> str:
        """ "best 1.2345 of trial 3"."""
        best = best_of(standings, self._metric)
        return f"best {format_value(best.value)} of trial {best.number}" if best else "none done"


def print_end(
    standings: Sequence[Standing], workdir: Path, metric: Metric, signal_number: int | None, view: View
) -> None:
    """The best trial, the table, what failed, and where all of it is."""
    view.console.print(SweepTable(metric).drawn(best_first(standings, metric), {}))
    best = best_of(standings, metric)
    if best is not None:
        view.print(f"best: trial {best.number}, {metric.name} {format_value(best.value)}: {values_text(best.values)}")
        view.print(f"      {workdir / best.run}")
    for one in standings:
        if one.state == "failed":
            view.print(f"failed: trial {one.number} ({values_text(one.values)}): {one.reason}")
    if signal_number is not None:
        view.print(f"{stopped_by(signal_number)}; run the same command to go on")
    view.print(f"{workdir / 'sweep.md'}, {workdir / 'sweep.csv'}")


def best_of(standings: Sequence[Standing], metric: Metric) -> Standing | None:
    """The finished trial of the best metric, the first of equally good ones."""
    first = best_first(standings, metric)
    return first[0] if first and first[0].state == "done" else None


def best_first(standings: Sequence[Standing], metric: Metric) -> list[Standing]:
    """Finished trials from the best metric to the worst, then the others; what is no number comes after what is."""
    order, sign = ("done", "pruned", "running", "waiting", "failed"), 1 if metric.lower_is_better else -1

    def key(one):
        missing = one.value is None or math.isnan(one.value)
        return order.index(one.state), missing, 0.0 if missing else sign * one.value, one.number

    return sorted(standings, key=key)


def by_repeats(standings: Sequence[Standing]) -> dict[str, list[Standing]]:
    """Finished trials by their setting, seeds and folds apart; empty where none was trained with more than one."""
    keys, groups = varying(standings), dict[str, list[Standing]]()
    for one in standings:
        if one.state == "done" and one.value is not None and not math.isnan(one.value) and set(REPEATS) & {*one.values}:
            rest = {key: value for key, value in one.values.items() if key in keys and key not in REPEATS}
            groups.setdefault(values_text(rest) if rest else "all", []).append(one)
    return groups if any(len(group) > 1 for group in groups.values()) else {}


def varying(standings: Sequence[Standing]) -> list[str]:
    """The keys that differ among trials."""
    keys = dict.fromkeys(key for one in standings for key in one.values)
    return [key for key in keys if len({repr(one.values.get(key)) for one in standings}) > 1]


def short_names(keys: Sequence[str]) -> list[str]:
    """The last name of every key, the whole key where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys)]


def write_tables(standings: Sequence[Standing], workdir: str | os.PathLike, metric: Metric) -> None:
    """sweep.csv and sweep.md: every trial with its values, the best first; sweep.md has the means over seeds too."""
    keys = list(dict.fromkeys(key for one in standings for key in one.values))
    header: list[Any] = ["trial", "run", "state", "step", metric.name, *keys, "reason"]
    rows = [
        [one.number, one.run, one.state, one.step, "" if one.value is None else one.value]
        + [one.values.get(key, "") for key in keys]
        + [one.reason]
        for one in best_first(standings, metric)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(Path(workdir) / "sweep.csv", text.getvalue())
    texts = [row[:5] + [values_text({"": cell})[1:] for cell in row[5:-1]] + row[-1:] for row in rows]
    tables = [markdown_table([header, *texts])]
    if groups := by_repeats(standings):
        tables.append(
            markdown_table([["setting", "runs", f"mean {metric.name}", "standard deviation"], *_means(groups, metric)])
        )
    write_whole(Path(workdir) / "sweep.md", "\n".join(tables))


def _means(groups, metric):
    """The settings by their mean, the best first."""
    rows = []
    for setting, group in groups.items():
        values = [one.value for one in group]
        rows.append([setting, len(values), fmean(values), stdev(values) if len(values) > 1 else ""])
    return sorted(rows, key=lambda row: row[2], reverse=not metric.lower_is_better)
