"""A sweep from its definition to its tables: a queue of its trials, worked off."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from hybrid_flax.config import flatten
from hybrid_flax.jobs.executor import Executor
from hybrid_flax.jobs.queue import Grid, Queue, Standing
from hybrid_flax.jobs.study import make_pruner, open_store, open_study
from hybrid_flax.jobs.view import View
from hybrid_flax.jobs.worker import work_off
from hybrid_flax.sweep.definition import Sweep
from hybrid_flax.sweep.search import Search
from hybrid_flax.sweep.tables import SweepTable, print_end, write_tables
from hybrid_flax.sweep.trials import check_config, make_trial

__all__ = ["run_sweep"]


def run_sweep(
    sweep: Sweep,
    workdir: Path,
    executor: Executor,
    *,
    pruner: str = "none",
    storage: str | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> tuple[list[Standing], int | None]:
    """Train every trial of the sweep that is not finished, each in its folder under `workdir`, as `work_off` does.

    Returns the standings by number, and the signal that asked to stop. Raises ConfigError where the folder or the
    storage holds another sweep.
    """
    with closing(_queue(sweep, workdir, pruner, storage, seed)) as queue:
        table = SweepTable(sweep.metric)
        view = View(queue.num_trials, executor.slots, table.live, table.best_in_words, console)
        with view:
            stopped_by = work_off(queue, executor, workdir, sweep.experiment, view)
        standings = queue.standings()
    write_tables(standings, workdir, sweep.metric)
    print_end(standings, workdir, sweep.metric, stopped_by, view)
    return standings, stopped_by


def _queue(sweep, workdir, pruner, storage, seed) -> Queue:
    chosen = make_pruner(pruner, sweep.base.eval.every, sweep.base.train.steps)
    study = open_study(open_store(workdir, storage), _identity(sweep), lower_is_better=sweep.metric.lower_is_better)
    if sweep.space is None:
        return Grid(study, chosen, lambda standings: sweep.trials, len(sweep.trials))
    return Search(
        study,
        chosen,
        make=lambda values: make_trial(sweep.base, values),
        check=lambda trial: check_config(trial.config),
        space=sweep.space,
        num_trials=sweep.num_trials,
        method=sweep.method,
        seed=seed,
    )


def _identity(sweep) -> Mapping[str, Any]:
    """What a sweep folder is bound to; the settings of a grid may grow."""
    space = {key: repr(value) for key, value in (sweep.space or {}).items()}
    return {**flatten(sweep.base), "search": space or "grid"}
