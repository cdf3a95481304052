"""The contract of a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hybrid_flax.typing import Array, Float

__all__ = ["Sums", "Task", "lower_is_better"]

Sums = dict[str, Float[Array, ""]]


class Task(NamedTuple):
    """What is learnt from a batch, as sums that may be added over devices, steps and batches.

    loss: (outputs, batch, label_smoothing=0, z_loss=0) -> sums with "loss" (to be minimised) and "count".
    evaluate: (outputs, batch) -> sums for `metrics`.
    metrics: (sums on the host) -> metrics by name, without prefix.
    describe: (metrics) -> one line for people, with units.
    generates: whether outputs are next tokens, so that text can be sampled.
    """

    loss: Callable[..., Sums]
    evaluate: Callable[[Any, Mapping[str, Any]], Sums]
    metrics: Callable[[Mapping[str, float]], dict[str, float]]
    describe: Callable[[Mapping[str, float]], str]
    generates: bool = False


def lower_is_better(metric: str) -> bool:
    """Whether a metric of a task counts what is wrong: loss, mse, perplexity, bits_*."""
    return metric in ("loss", "mse", "perplexity") or metric.startswith("bits_")
