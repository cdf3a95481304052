"""How long a training step takes, here and now; nothing is kept."""

import time
from collections.abc import Callable
from typing import Any

import jax

from hybrid_flax.train.experiment import Experiment
from hybrid_flax.train.session import fresh_position
from hybrid_flax.train.step import make_train_step

__all__ = ["quickest", "step_seconds"]


def step_seconds(experiment: Experiment, config: Any) -> float:
    """Seconds of a step of one run, compiled where it was not yet."""
    parallel = experiment.parallel
    step = parallel.wrap(make_train_step(experiment.model, experiment.task, experiment.spec, parallel.axis_name))
    state, carry = fresh_position(experiment, config, vectors=False)
    rows = parallel.put_rows(experiment.batches.batch(0, parallel.rows(experiment.batch_size)))

    def once():
        nonlocal state, carry
        state, carry, _ = step(state, carry, rows)
        jax.block_until_ready(state.step)

    once()
    return quickest(once)


def quickest(call: Callable[[], None]) -> float:
    """Seconds of the quickest of some calls: at least two, and as many more as half a second has room for."""
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < 0.5:
        since = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - since)
    return min(seconds)
