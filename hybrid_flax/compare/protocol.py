"""The runs of a comparison: every learning rate with the first seed, then the other seeds at the best rate."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_flax.compare.definition import Contender, Definition, make_contenders
from hybrid_flax.compare.results import Comparison, Cost, Entry, Failure, Row, write_comparison
from hybrid_flax.config import call_experiment, load_module, with_values
from hybrid_flax.jobs.executor import Executor
from hybrid_flax.jobs.queue import ENDED, Grid, Queues, Standing
from hybrid_flax.jobs.study import make_pruner, open_store, open_study
from hybrid_flax.jobs.trial import Trial
from hybrid_flax.jobs.view import View
from hybrid_flax.jobs.worker import work_off
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.peak import PEAKS
from hybrid_flax.training.writers import read_jsonl

__all__ = ["best_rate", "num_runs", "plan_comparison", "plan_runs", "run_comparison"]

_AWAY = "it is done, and its results.json is not here: workers of a comparison share its folder"
Standings = Mapping[str, Standing]  # by the name of the run


def plan_comparison(experiment: str, overrides: Sequence[str] = ()) -> tuple[str, list[Contender]]:
    """(title, contenders) of `get_compare(arg)` in the experiment file `path.py[:arg]`, all checked.

    Raises ConfigError in one line for whatever cannot run.
    """
    module, arg = load_module(experiment)
    definition = call_experiment(module, "get_compare", arg, Definition)
    return definition.title, list(make_contenders(definition, overrides))


def run_comparison(
    title: str,
    contenders: Sequence[Contender],
    experiment: str,
    workdir: Path,
    executor: Executor,
    *,
    pruner: str = "none",
    storage: str | None = None,
    publish: Callable[[Comparison], object] = lambda comparison: None,
    console: Console | None = None,
) -> tuple[Comparison, int | None]:
    """Do all runs that are not done, as `work_off` does. Workers of one comparison share its folder.

    pruner: rule that stops a learning rate that is behind the others of its contender. After every run that ends
    here compare.json is written anew and `publish` called. Returns what was found, and the signal that asked to stop.
    """
    store = open_store(workdir, storage)
    open_study(store, {"search": "comparison"}, lower_is_better=True)  # so that no sweep comes into this folder
    queues = [_queue(contender, store, workdir, pruner) for contender in contenders]

    def write(standings: Sequence[Standing]) -> Comparison:
        found = _comparison(title, contenders, {one.run: one for one in standings}, workdir)
        write_comparison(found, workdir)
        publish(found)
        return found

    with closing(Queues(queues)) as queue:
        with View(queue.num_trials, executor.slots, functools.partial(_live, contenders), console=console) as view:
            stopped_by = work_off(queue, executor, workdir, experiment, view, on_end=write)
        return write(queue.standings()), stopped_by


def num_runs(contender: Contender) -> int:
    """How many runs a contender has where none fails; the first seed's run at the best rate is one of the search."""
    return len(contender.learning_rates) + len(contender.seeds) - 1


def plan_runs(contender: Contender) -> Callable[[Standings], list[Trial]]:
    """The trials of a contender, as far as what is known of them says which they are."""

    @functools.cache
    def trial(rate, seed):
        values = {"optim.learning_rate": rate, "seed": seed}
        names = {"task": contender.column.task, "row": contender.row}
        return Trial(_run(contender, rate, seed), names | values, with_values(contender.config, values))

    return lambda standings: [trial(rate, seed) for rate, seed in _planned(contender, standings)]


def best_rate(contender: Contender, standings: Standings) -> float | None:
    """The rate with the best validation metric, the first of equals; None until all are tried, or where all failed."""
    runs = {rate: _run(contender, rate, contender.seeds[0]) for rate in contender.learning_rates}
    tried = {rate: standings[run] for rate, run in runs.items() if run in standings}
    if len(tried) < len(runs) or not all(one.state in ENDED for one in tried.values()):
        return None
    sign = -1 if contender.column.metric.lower_is_better else 1
    figures = {rate: sign * one.value for rate, one in tried.items() if one.state == "done" and one.value is not None}
    return max(figures, key=figures.__getitem__, default=None)


def _planned(contender, standings: Standings) -> list[tuple[float, int]]:
    """(learning rate, seed) of the runs that are known to be needed."""
    first, *others = contender.seeds
    best = best_rate(contender, standings)
    return [(rate, first) for rate in contender.learning_rates] + [(best, seed) for seed in others if best is not None]


def _run(contender, rate, seed):
    return f"runs/{contender.name}-lr{rate}-seed{seed}"


def _queue(contender, store, workdir, pruner) -> Grid:
    config, column = contender.config, contender.column
    return Grid(
        open_study(
            store, {"contender": contender.name}, lower_is_better=column.metric.lower_is_better, part=contender.name
        ),
        make_pruner(pruner, config.eval.every, config.train.steps),
        plan_runs(contender),
        num_runs(contender),
        prunable=lambda trial: trial.values["seed"] == contender.seeds[0],
        is_lost=lambda run: not RunFolder(workdir / run).results.exists(),
    )


def _comparison(title, contenders, standings: Standings, workdir) -> Comparison:
    """What was found so far, rows before columns."""
    names = list(dict.fromkeys(contender.row for contender in contenders))
    of_row = {name: [contender for contender in contenders if contender.row == name] for name in names}
    folders = [RunFolder(workdir / run) for run in standings]
    devices = {str(folder.read_about().get("devices", "")) for folder in folders if folder.about.exists()}
    return Comparison(
        title=title,
        rows=tuple(Row(name, all(len(c.mechanisms) == 1 for c in of_row[name])) for name in names),
        columns=tuple(contender.column for contender in of_row[names[0]]),
        entries=tuple(_entry(contender, standings, workdir) for name in names for contender in of_row[name]),
        learning_rates=contenders[0].learning_rates,
        seeds=len(contenders[0].seeds),
        devices=", ".join(sorted(devices)),
    )


def _entry(contender, standings: Standings, workdir) -> Entry:
    """What has come of a contender so far."""
    metric, best = contender.column.metric.name, best_rate(contender, standings)
    runs = [_run(contender, rate, seed) for rate, seed in _planned(contender, standings)]
    planned = [standings[run] for run in runs if run in standings]
    tried = [one for one in planned if one.values["seed"] == contender.seeds[0]]
    ended = [one for one in planned if one.state == "done" and one.values["optim.learning_rate"] == best]
    done = [one for one in ended if RunFolder(workdir / one.run).results.exists()]
    away = [one._replace(reason=_AWAY) for one in ended if one not in done]
    results = [RunFolder(workdir / one.run).read_results() for one in done]
    return Entry(
        row=contender.row,
        task=contender.column.task,
        pattern=contender.config.model.pattern,
        width=contender.config.model.width,
        learning_rate=best,
        search=tuple(
            (o.values["optim.learning_rate"], o.value) for o in tried if o.state == "done" and o.value is not None
        ),
        seeds=tuple(one.values["seed"] for one in done),
        valid=tuple(result["valid"][metric] for result in results),
        test=tuple(result["test"][metric] for result in results),
        folders=tuple(one.run for one in done),
        cost=_measured(contender.cost, [RunFolder(workdir / one.run) for one in done]),
        failures=tuple(_failure(one) for one in [*planned, *away] if one.reason or one.state == "pruned"),
    )


def _failure(one):
    reason = one.reason or f"pruned at step {one.step}"
    return Failure(one.run, one.values["optim.learning_rate"], one.values["seed"], reason)


def _measured(cost: Cost, folders) -> Cost:
    """With the costs that only a run tells."""
    perf = [row for folder in folders for row in read_jsonl(folder.perf)]
    rates = [row["perf/tokens_per_sec"] for row in perf if "perf/tokens_per_sec" in row]
    peaks = {kind: [row[name] for row in perf if name in row] for name, kind in PEAKS.items()}
    kind, peak = next(((kind, max(found)) for kind, found in peaks.items() if found), ("", None))
    return cost._replace(tokens_per_sec=median(rates) if rates else None, peak_bytes=peak, peak_kind=kind)


def _live(contenders, standings: Sequence[Standing], active: Mapping[str, Any]) -> Table:
    """How far the contenders are: a row of the table for each row, a column for each task."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("runs", overflow="fold")
    for task in dict.fromkeys(contender.column.task for contender in contenders):
        table.add_column(Text(task), justify="right")
    texts: dict[str, list[Text]] = {}
    for contender in contenders:
        mine = [o for o in standings if (o.values["row"], o.values["task"]) == (contender.row, contender.column.task)]
        texts.setdefault(contender.row, []).append(_progress(mine, num_runs(contender), active))
    for row, states in texts.items():
        table.add_row(Text(row), *states)
    return table


def _progress(standings, wanted, active):
    done, failed = sum(o.state in ENDED for o in standings), sum(o.state == "failed" for o in standings)
    style = "bold" if any(o.run in active for o in standings) else "green" if done >= wanted else "dim"
    return Text(f"{done}/{wanted}{f' ({failed} failed)' if failed else ''}", style="red" if failed else style)
