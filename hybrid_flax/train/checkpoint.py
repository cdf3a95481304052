"""Checkpoints: save, restore, latest and best. The only file that knows Orbax.

A checkpoint of step s holds everything that moves after s updates, as one tree of arrays; metrics of the evaluation
at s, where there was one, rank it. Saving is asynchronous; a save that was cut off is not a checkpoint.
"""

import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from hybrid_flax.tasks.base import Metric
from hybrid_flax.typing import PyTree

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints in one folder: the latest, and the best by a metric, the first of equally good ones."""

    def __init__(self, directory: str | os.PathLike, metric: Metric):
        _quieten()
        policies = ocp.training.preservation_policies
        self._metric, self._sign = f"eval/{metric.name}", -1 if metric.lower_is_better else 1
        self._checkpointer = ocp.training.Checkpointer(
            Path(directory).absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(
                        get_metric_fn=lambda metrics: self._score(metrics, metrics["step"]),
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=jax.process_index() == 0,
        )
        scores = [self._score(c.metrics, c.step) for c in self._checkpointer.checkpoints if c.metrics]
        self._best = max(scores, default=None)

    def save(self, step: int, tree: PyTree, metrics: dict[str, float] | None = None) -> None:
        """Start saving; returns once the arrays have been copied off the device.

        Raises RuntimeError where the step is already saved.
        """
        if step in {checkpoint.step for checkpoint in self._checkpointer.checkpoints}:
            raise RuntimeError(f"a checkpoint of step {step} already exists in {self._checkpointer.directory}")
        if metrics is not None:
            self._best = max(filter(None, (self._best, self._score(metrics, step))))
            metrics = {"step": step, **metrics}
        self._checkpointer.save_async(step, tree, metrics=metrics)

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The tree of `step` in the structure, shapes, dtypes and shardings of `like` (arrays or abstract ones).

        Raises ValueError in one line, naming the first difference, where the checkpoint holds something else.
        """
        return self._load(step, self._saved(step, ()), like, jax.tree.map(_abstract, like))

    def restore_part(self, step: int, path: tuple[str, ...], like: PyTree) -> PyTree:
        """The subtree at `path` alone, on the first device, in the structure, shapes and dtypes of `like`.

        Raises ValueError as `restore`.
        """
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like)
        saved = self._saved(step, path)
        options = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=options):
            part = self._load(step, saved, like, _nested(path, target))
        for name in path:
            part = part[name]
        return part

    def latest(self) -> int | None:
        """The largest saved step."""
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        return max(steps, default=None)

    def best(self) -> int | None:
        """The step whose metric is best, perhaps still being saved; None where none was evaluated."""
        return None if self._best is None else -self._best[1]

    def wait(self) -> None:
        """Block until what is being saved is on disk."""
        self._checkpointer.wait()

    def _score(self, metrics, step):
        """The higher, the better; of equals the first."""
        return self._sign * metrics[self._metric], -step

    def _saved(self, step, path):
        """Names, shapes and dtypes of the subtree at `path`."""
        try:
            saved = self._checkpointer.metadata(step).metadata
            for name in path:
                saved = saved[name]
        except Exception as error:
            raise self._unreadable(step, error) from error
        return saved

    def _load(self, step, saved, like, target):
        problem = _difference(saved, like)
        if problem:
            raise ValueError(f"checkpoint {self._checkpointer.directory}/{step} does not fit this model: {problem}")
        try:
            return self._checkpointer.load(step, target)
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step, error):
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return ValueError(f"checkpoint {self._checkpointer.directory}/{step} cannot be read: {reason}")

    def close(self) -> None:
        """Wait, and let go of the folder."""
        self._checkpointer.wait()
        self._checkpointer.close()


@functools.cache
def _quieten():
    """Keep Orbax's tracebacks off the screen: where one array cannot be read, it leaves one for every other array."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(event):
        if not (isinstance(event.exc_value, RuntimeError) and "Event loop is closed" in str(event.exc_value)):
            show(event)

    sys.unraisablehook = show_others


def _nested(path, leaf):
    for name in reversed(path):
        leaf = {name: leaf}
    return leaf


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _difference(saved, like):
    """What the checkpoint lacks, has too much, or has in another shape or dtype; empty where they agree."""
    saved = {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(saved)[0]}
    like = {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    for path in sorted(like.keys() - saved.keys()):
        return f"it has no {path}"
    for path in sorted(saved.keys() - like.keys()):
        return f"it has {path}, which the model has not"
    for path, leaf in like.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        if tuple(saved[path].shape) != tuple(leaf.shape):
            return f"{path} has shape {tuple(saved[path].shape)}, the model wants {tuple(leaf.shape)}"
        if np.dtype(saved[path].dtype) != np.dtype(leaf.dtype):
            return f"{path} is {np.dtype(saved[path].dtype)}, the model wants {np.dtype(leaf.dtype)}"
    return ""


def _path(path):
    names = (getattr(e, "key", getattr(e, "name", getattr(e, "idx", None))) for e in path)
    return "/".join(str(name) for name in names)
