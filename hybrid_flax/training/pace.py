"""How long it takes to start, to compile and to train a step, here and now; nothing is kept."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import Setup
from hybrid_flax.training.step import make_train_step

__all__ = ["Pace", "measure_pace", "quickest", "start_seconds"]


class Pace(NamedTuple):
    """Seconds of a step of one run, and of what comes before the first: initialising and compiling."""

    step: float
    compile: float


def measure_pace(setup: Setup, config: Any) -> Pace:
    """The pace of a run. Where this process has compiled the step already, that is not measured again."""
    begin = time.perf_counter()
    parallel = setup.parallel
    step = parallel.wrap(make_train_step(setup.model, setup.task, setup.traits, parallel.axis_name))
    state, carry = fresh_position(setup, config, starts=False)
    rows = parallel.put_rows(setup.batches.batch(0, parallel.rows(setup.batch_size)))

    def once():
        nonlocal state, carry
        state, carry, _ = step(state, carry, rows)
        jax.block_until_ready(state.step)

    once()
    compile_seconds = time.perf_counter() - begin
    return Pace(quickest(once), compile_seconds)


def start_seconds() -> float:
    """Seconds until a fresh process has imported the package and found its devices."""
    code = "import jax; import hybrid_flax.training.loop; jax.devices()"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - begin


def quickest(call: Callable[[], None]) -> float:
    """Seconds of the quickest of some calls: at least two, and as many more as half a second has room for."""
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < 0.5:
        since = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - since)
    return min(seconds)
