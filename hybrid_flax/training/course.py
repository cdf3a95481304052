"""The end of a run, which may be moved: what that does to the course of its learning rate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.errors import ConfigError
from hybrid_flax.registration import SCHEDULES, chosen
from hybrid_flax.training.optimizer import make_unit_schedule

__all__ = ["ENDS", "check_course", "schedule_pairs"]

ENDS = ("train.steps", "train.patience")  # knobs that say when a run ends, and that may change when it goes on


def schedule_pairs(config: Any) -> tuple[tuple[str, Any], ...]:
    """The arguments of `make_unit_schedule` that a config stands for, as sorted pairs."""
    schedule: Mapping[str, Any] = {
        "name": chosen(SCHEDULES, config),
        "num_steps": config.train.steps,
        "warmup_steps": config.schedule.warmup_steps,
        "final_fraction": config.schedule.final_fraction,
        "decay_rate": config.schedule.decay_rate,
        "decay_every": config.schedule.decay_every,
        "decay_fraction": config.schedule.decay_fraction,
    }
    return tuple(sorted(schedule.items()))


def check_course(path: Path, old: Any, new: Any, start: int, *, changed_schedule: bool) -> str:
    """What to say of a run of config `old` in folder `path` that goes on as `new` says, after `start` steps.

    Where both give every step up to the next one the same learning rate, the run is the one that was of config `new`
    from the start. Elsewhere it goes on only with `changed_schedule`. Raises ConfigError in one line with both rates,
    and where the run has more steps than `new` asks for.
    """
    steps = new.train.steps
    if start > steps:
        raise ConfigError(
            f"{path} has done {start} steps: train.steps={steps} is less; ask for more, or use another --workdir"
        )
    count = min(start + 1, steps) if start else 0
    before, after = (_rates(config, count) for config in (old, new))
    if np.array_equal(before, after):
        return ""
    if start == steps:
        change = f"was {before[-1]:.4g} at step {start}, and by its own schedule would have been {after[-1]:.4g}"
    else:
        change = f"goes from {before[start - 1]:.4g} at step {start} to {after[start]:.4g} at step {start + 1}"
    if not changed_schedule:
        raise ConfigError(
            f"{path} was trained by schedule.name={old.schedule.name} for train.steps={old.train.steps}, and with "
            f"train.steps={steps} the learning rate {change}: go on all the same with --changed_schedule, or use "
            "another --workdir"
        )
    return f"going on with another schedule: the learning rate {change}"


def _rates(config, count):
    """The learning rates of the first `count` steps."""
    unit = jax.vmap(make_unit_schedule(**dict(schedule_pairs(config))))(jnp.arange(count))
    return config.optim.learning_rate * np.broadcast_to(np.asarray(unit), (count,))
