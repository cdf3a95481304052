"""The settings of a sweep as trials, all checked before anything trains."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from hybrid_flax.config import config_hash, value_at, with_values
from hybrid_flax.errors import ConfigError
from hybrid_flax.jobs.trial import Trial, values_text
from hybrid_flax.sweep.space import Setting, draw, has_spaces
from hybrid_flax.training.setup import Setup, make_setup

__all__ = [
    "check_config",
    "check_space",
    "make_trial",
    "make_trials",
]


def make_trial(base: ConfigDict, values: Setting, label: str = "trial") -> Trial:
    """The trial of a setting. Raises ConfigError that names it for keys and values that the config cannot hold."""
    try:
        config = with_values(base, values)
    except ConfigError as error:
        raise ConfigError(f"{label} ({values_text(values)}): {error}") from error
    values = {key: value_at(config, key) for key in values}
    return Trial(config_hash(config), values, config)


def make_trials(base: ConfigDict, settings: Sequence[Setting], given: Iterable[str] = ()) -> list[Trial]:
    """Every trial of a grid, checked: its data, model and step are built, nothing is computed.

    given: keys set on the command line, which a sweep may not set too. Raises ConfigError that names the first trial
    at fault.
    """
    trials: list[Trial] = []
    first: dict[str, int] = {}
    for number, values in enumerate(settings):
        label = f"trial {number}"
        _check_given(values, given, label)
        trial = make_trial(base, values, label)
        if trial.name in first:
            raise ConfigError(f"trials {first[trial.name]} and {number} ({values_text(values)}) are the same run")
        first[trial.name] = number
        _check_trial(trial, label)
        trials.append(trial)
    return trials


def check_space(base: ConfigDict, space: Setting, given: Iterable[str] = ()) -> Setup:
    """Check what can be known of a search space before it is searched: every end of a range and every option.

    One space at a time goes through its values while the others keep their first. Returns the setup of one trial.
    Raises ConfigError.
    """
    if not has_spaces(space):
        raise ConfigError("a search needs a setting with spaces: choice, int_range, float_range")
    _check_given(space, given, "the search space")
    checked = {}
    for key in space:
        for index in range(_num_ends(space[key])):
            try:
                values = draw(space, partial(_end, key, index))
            except ValueError as error:
                raise ConfigError(f"the search space: {error}") from error
            trial = make_trial(base, values, "a trial of the search space")
            if trial.name not in checked:
                checked[trial.name] = _check_trial(trial, "a trial of the search space")
    return next(iter(checked.values()))


def check_config(config: ConfigDict) -> Setup:
    """The setup of a trial's config. Raises ConfigError where there is none, or nothing to compare it by."""
    setup = make_setup(config)
    if "valid" not in setup.source.splits:
        raise ConfigError(
            f"a sweep compares validation metrics and {config.data.path!r} has no validation part: raise "
            "data.valid_fraction"
        )
    return setup


def _check_given(values, given, label):
    twice = sorted(set(given) & set(values))
    if "eval.metric" in values:
        raise ConfigError(f"{label}: eval.metric is what trials are compared by: set it by --config.eval.metric")
    if twice:
        raise ConfigError(f"{label}: {twice[0]} is set by the sweep and by --config.{twice[0]}; leave out one")


def _check_trial(trial, label):
    try:
        return check_config(trial.config)
    except ConfigError as error:
        raise ConfigError(f"{label} ({values_text(trial.values)}): {error}") from error


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
