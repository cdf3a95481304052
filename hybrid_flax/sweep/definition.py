"""A sweep from its file to its tables: read it, check it, train its trials."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console

from hybrid_flax.config import apply_overrides, flatten, load_experiment
from hybrid_flax.errors import ConfigError
from hybrid_flax.jobs.executor import Executor
from hybrid_flax.jobs.queue import Grid, Queue, Standing
from hybrid_flax.jobs.study import make_pruner, open_store, open_study
from hybrid_flax.jobs.trial import Trial
from hybrid_flax.jobs.view import View
from hybrid_flax.jobs.worker import work_off
from hybrid_flax.sweep.search import METHODS, Search
from hybrid_flax.sweep.space import Setting, as_space, space_size
from hybrid_flax.sweep.tables import Table, print_end, write_tables
from hybrid_flax.sweep.trials import (
    check_config,
    check_space,
    expand_settings,
    make_trial,
    make_trials,
    sweep_settings,
)
from hybrid_flax.tasks.base import Metric, find_metric

__all__ = ["SEARCHES", "Sweep", "read_sweep", "run_sweep"]

SEARCHES = ("grid", *METHODS)


class Sweep(NamedTuple):
    """A sweep that can run.

    experiment: the file and argument of the config. base: the config that settings change. metric: what trials are
    judged by. trials: those of a grid. space: the setting that is searched otherwise, by `method`, for `num_trials`
    trials.
    """

    experiment: str
    base: ConfigDict
    metric: Metric
    method: str
    trials: Sequence[Trial]
    space: Setting | None
    num_trials: int


def read_sweep(
    experiment: str,
    overrides: Sequence[str],
    names: Sequence[str] = (),
    method: str = "grid",
    num_trials: int | None = None,
) -> Sweep:
    """The sweep of `path.py[:arg]` with `--config` overrides, all of it checked. Raises ConfigError in one line.

    names: of its sweep_NAME functions; none: sweep(). num_trials: to search for; of a grid, the first so many.
    """
    if method not in SEARCHES:
        raise ConfigError(f"--search={method!r} is none of {', '.join(SEARCHES)}")
    if num_trials is not None and num_trials < 1:
        raise ConfigError(f"--trials={num_trials} must be at least 1")
    module, config = load_experiment(experiment)
    base = apply_overrides(config, overrides)
    given = [text.partition("=")[0] for text in overrides]
    settings = sweep_settings(module, names)
    if method == "grid":
        trials = make_trials(base, expand_settings(settings)[:num_trials], given)
        metric = find_metric(check_config(trials[0].config).task, base.eval.metric)
        return Sweep(experiment, base, metric, method, trials, None, len(trials))
    if num_trials is None:
        raise ConfigError(f"--search={method} needs --trials=N: how many to try")
    try:
        space = as_space(settings)
    except ValueError as error:
        raise ConfigError(f"--search={method}: {error}") from error
    metric = find_metric(check_space(base, space, given).task, base.eval.metric)
    size = space_size(space, num_trials)
    if size < num_trials:
        raise ConfigError(f"--trials={num_trials}: the search space has only {size}; --search=grid tries them all")
    return Sweep(experiment, base, metric, method, (), space, num_trials)


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
    metric = sweep.metric
    with closing(_queue(sweep, workdir, pruner, storage, seed)) as queue:
        table = Table(metric)
        view = View(queue.num_trials, executor.slots, table.live, table.best_in_words, console)
        with view:
            stopped_by = work_off(queue, executor, workdir, sweep.experiment, view)
        standings = queue.standings()
    write_tables(standings, workdir, metric)
    print_end(standings, workdir, metric, stopped_by, view)
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
