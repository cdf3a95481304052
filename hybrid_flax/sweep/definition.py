"""What is swept: the definition in an experiment file, all of it checked."""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from hybrid_flax.config import apply_overrides, load_experiment
from hybrid_flax.errors import ConfigError
from hybrid_flax.jobs.trial import Trial
from hybrid_flax.sweep.search import METHODS
from hybrid_flax.sweep.space import Setting, as_space, expand_settings, read_settings, space_size
from hybrid_flax.sweep.trials import check_config, check_space, make_trials
from hybrid_flax.tasks.base import Metric, find_metric

__all__ = ["SEARCHES", "Sweep", "read_sweep"]

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
    settings = read_settings(module, names)
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
