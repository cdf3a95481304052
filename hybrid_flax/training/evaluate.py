"""Evaluation: batches that start from nothing, or streams with carried state."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from hybrid_flax.models.build import CARRIED_CAPACITY
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.tasks.base import Task
from hybrid_flax.training.parallel import Parallel
from hybrid_flax.training.step import make_eval_step
from hybrid_flax.typing import Batch, Params

__all__ = ["Track", "add_up", "evaluate"]

Track: TypeAlias = Callable[[Sequence[int]], Iterable[int]]


def evaluate(
    model: SequenceModel,
    task: Task,
    params: Params,
    batches: Sequence[Batch],
    parallel: Parallel,
    *,
    carried: bool = False,
    max_batches: int = 0,
    track: Track = iter,
) -> dict[str, float]:
    """Metrics of `params` over `batches`: `task.measure` of what `add_up` returns."""
    sums = add_up(model, task, params, batches, parallel, carried=carried, max_batches=max_batches, track=track)
    return {name: float(value) for name, value in task.measure(sums).items()}


def add_up(
    model: SequenceModel,
    task: Task,
    params: Params,
    batches: Sequence[Batch],
    parallel: Parallel,
    *,
    carried: bool = False,
    max_batches: int = 0,
    track: Track = iter,
) -> Mapping[str, Any]:
    """Sums of `task.evaluate` over `batches`, all of one shape, in float64.

    carried: whether states go from batch to batch. max_batches: stop there; 0 reads them all.
    track: what the numbers of batches pass through, to show how far they are.
    """
    batch_size = len(batches[0].row)
    step = parallel.wrap(make_eval_step(model, task, parallel.axis_name), donate=(1,))
    rows = parallel.rows(batch_size)
    carry = parallel.put_rows(_local(model.init_state(batch_size, CARRIED_CAPACITY), rows)) if carried else ()
    total: Mapping[str, Any] | None = None
    for index in track(range(min(len(batches), max_batches or len(batches)))):
        batch = parallel.put_rows(_local(batches[index], rows))
        _, carry, sums = step(params, carry, batch)
        # Sums are added on the host in float64: a split has more characters than float32 counts exactly.
        sums = {name: np.asarray(value, np.float64) for name, value in jax.device_get(sums).items()}
        total = sums if total is None else {name: total[name] + sums[name] for name in total}
    assert total is not None  # there is a batch: its rows were counted above
    return total


def _local(tree, rows):
    return jax.tree.map(lambda leaf: leaf[rows], tree)
