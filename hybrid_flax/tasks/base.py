"""The contract of a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from hybrid_flax.errors import ConfigError
from hybrid_flax.typing import Array, Batch, Float, Int, Scalar

__all__ = ["Metric", "Sums", "Task", "describe", "find_metric", "known_targets", "likeliest"]

Sums = dict[str, Scalar]


class Metric(NamedTuple):
    """A figure that a task measures.

    name: in results, without prefix. unit: "nats/token", "" where it has none. share: whether it is in [0, 1] and read
    as per cent. text: how it stands in the line of `describe`, with what separates it from the one before; "" where it
    is left out.
    """

    name: str
    unit: str = ""
    lower_is_better: bool = False
    share: bool = False
    text: str = ""


class Task(NamedTuple):
    """What is learnt from a batch, as sums that may be added over devices, steps and batches.

    loss: (outputs, batch, label_smoothing=0, z_loss=0) -> sums with "loss" (to be minimised) and "count". It needs no
        factors that `register_task` does not name.
    evaluate: (outputs, batch) -> sums for `measure`, among them "confusion" [C, C] where there are classes: examples
        of class i (first axis) that were taken for class j. C counts classes that training has not, behind the others.
    measure: (sums on the host, under names without "/") -> the values of `metrics` by name.
    metrics: what is measured, "loss" first.
    predict: (outputs, live[B, T]) -> what is predicted: token, symbol or tag ids [B, T], classes [B], whether each
        class is given [B, C], or numbers [B]; live marks the tokens that are no padding.
    generates: whether outputs are next tokens, so that text can be sampled.
    """

    loss: Callable[..., Sums]
    evaluate: Callable[[Any, Batch], Sums]
    measure: Callable[[Mapping[str, float]], dict[str, float]]
    metrics: tuple[Metric, ...]
    predict: Callable[[Any, Any], Any]
    generates: bool = False


def find_metric(task: Task, name: str) -> Metric:
    """The metric called `name`; raises ConfigError where the task has none."""
    found = {metric.name: metric for metric in task.metrics}
    if name not in found:
        raise ConfigError(f"eval.metric={name!r} is none of {', '.join(found)}, which this task has")
    return found[name]


def describe(task: Task, values: Mapping[str, float]) -> str:
    """One line for people, with units."""
    return "".join(
        metric.text.format(100 * values[metric.name] if metric.share else values[metric.name])
        for metric in task.metrics
        if metric.text
    )


def likeliest(logits: Float[Array, "... C"], live: Any = None) -> Int[Array, "..."]:
    """The class of the greatest logit, wherever it is live or not: `Task.predict` of most tasks."""
    del live
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def known_targets(batch: Batch, num_classes: int) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Targets and weights for a loss: a target beyond the classes, a label that training has not, has no weight."""
    known = batch.targets < num_classes
    return jnp.where(known, batch.targets, 0), jnp.where(known, batch.weights, 0.0)
