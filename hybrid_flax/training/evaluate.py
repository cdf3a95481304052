"""Evaluation: batches that start from nothing, or streams with carried state."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from hybrid_flax.data.sources import Source
from hybrid_flax.models.build import CARRIED_CAPACITY
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.tasks.base import Task
from hybrid_flax.tasks.registry import label_kind
from hybrid_flax.training.parallel import Parallel
from hybrid_flax.training.setup import Setup
from hybrid_flax.training.state import TrainState
from hybrid_flax.training.step import make_eval_step
from hybrid_flax.typing import Batch, Params

__all__ = ["Track", "add_up", "eval_length", "eval_params", "evaluate", "evaluate_split", "split_batches"]

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


def evaluate_split(
    setup: Setup,
    config: Any,
    params: Params,
    split: str,
    *,
    carried: bool = False,
    max_batches: int = 0,
    track: Track = iter,
) -> dict[str, float]:
    """Metrics of `params` on one split, as config.eval says; the rest as in `evaluate`."""
    return evaluate(
        setup.model,
        setup.task,
        params,
        split_batches(setup.source, config, split, carried),
        setup.parallel,
        carried=carried,
        max_batches=max_batches,
        track=track,
    )


def eval_length(config: Any, source: Source) -> int:
    """Tokens of a row in evaluation: eval.length, or that of training, which cuts what is longer.

    Where tags are scored it is the longest example of any split: a tag that is cut off would be none to find.
    """
    longest = max((length for split in source.splits.values() for length in split.lengths), default=0)
    return config.eval.length or (longest if label_kind(config.task.name) == "tags" else config.data.length)


def split_batches(source: Source, config: Any, split: str, carried: bool = False) -> Sequence[Batch]:
    """The batches of one split, as config.eval says."""
    return source.splits[split].batches(config.eval.batch_size, eval_length(config, source), carried)


def eval_params(state: TrainState) -> Params:
    """The parameters that are evaluated: their running mean where there is one."""
    return state.params if state.ema is None else state.ema


def _local(tree, rows):
    return jax.tree.map(lambda leaf: leaf[rows], tree)
