"""The contract of a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from hybrid_flax.typing import Array, Float, Int, Scalar

__all__ = ["Sums", "Task", "likeliest", "lower_is_better"]

Sums = dict[str, Scalar]


class Metric(NamedTuple):
    """What a task measures."""

    name: str
    lower_is_better: bool
    share: bool
    unit: str = ""


def find_metric(task, name: str) -> Metric:
    share = name in ("accuracy", "exact", "precision", "recall", "sign") or name.startswith("f1")
    return Metric(name, lower_is_better(name), share, "nats" if name == "loss" else "")


class Task(NamedTuple):
    """What is learnt from a batch, as sums that may be added over devices, steps and batches.

    loss: (outputs, batch, label_smoothing=0, z_loss=0) -> sums with "loss" (to be minimised) and "count".
    evaluate: (outputs, batch) -> sums for `metrics`, among them "confusion" [C, C] where there are classes: examples
        of class i (first axis) that were taken for class j.
    metrics: (sums on the host) -> metrics by name, without prefix.
    describe: (metrics) -> one line for people, with units.
    predict: (outputs, live[B, T]) -> what is predicted: token, symbol or tag ids [B, T], classes [B], whether each
        class is given [B, C], or numbers [B]; live marks the tokens that are no padding.
    generates: whether outputs are next tokens, so that text can be sampled.
    """

    loss: Callable[..., Sums]
    evaluate: Callable[[Any, Mapping[str, Any]], Sums]
    metrics: Callable[[Mapping[str, float]], dict[str, float]]
    describe: Callable[[Mapping[str, float]], str]
    predict: Callable[[Any, Any], Any]
    generates: bool = False


def likeliest(logits: Float[Array, "... C"], live: Any = None) -> Int[Array, "..."]:
    """The class of the greatest logit, wherever it is live or not: `Task.predict` of most tasks."""
    del live
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def lower_is_better(metric: str) -> bool:
    """Whether a metric of a task counts what is wrong: loss, mse, perplexity, bits_*."""
    return metric in ("loss", "mse", "perplexity") or metric.startswith("bits_")
