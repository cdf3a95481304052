"""Classification of whole sequences: one class, or any number of them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.ops.losses import binary_cross_entropy, cross_entropy
from hybrid_flax.tasks.base import Metric, Task, likeliest
from hybrid_flax.typing import Array, Float

__all__ = ["class_counts", "class_metrics", "f1_scores", "make_classification", "measure_classes"]


@functools.cache
def make_classification(multi_label: bool = False) -> Task:
    """The task; equal arguments give the identical object.

    Outputs are logits [B, C]. multi_label: every class is a question of its own, answered yes above 0.
    Metrics: loss in nats an example, accuracy (of whole examples), F1 macro, micro and weighted.
    """
    if multi_label:
        measure = functools.partial(measure_classes, all_classes=True)
        return Task(_binary_loss, _evaluate_binary, measure, class_metrics("nats"), _given)
    return Task(_loss, _evaluate, measure_classes, class_metrics("nats"), likeliest)


def class_metrics(unit: str) -> tuple[Metric, ...]:
    """What `measure_classes` measures; unit: of the loss."""
    return (
        Metric("loss", unit, lower_is_better=True, text=f"loss {{:.4f}} {unit}"),
        Metric("accuracy", share=True, text="  accuracy {:.2f} %"),
        Metric("f1_macro", share=True, text="  F1 macro {:.2f}"),
        Metric("f1_micro", share=True, text=" micro {:.2f}"),
        Metric("f1_weighted", share=True, text=" weighted {:.2f}"),
    )


def f1_scores(
    true_positive: np.ndarray, predicted: np.ndarray, actual: np.ndarray, all_classes: bool = False
) -> dict[str, float]:
    """F1 "macro", "micro" and "weighted" (by actual counts), in [0, 1], as in scikit-learn.

    Counts are per class [C]. A class that neither occurs nor is predicted has no say in "macro", and with all_classes,
    for examples of any number of classes, an F1 of 0.
    """
    both = predicted + actual
    f1 = np.divide(2.0 * true_positive, both, out=np.zeros(len(both)), where=both > 0)
    counted = (both > 0) | all_classes
    total = max(both.sum(), 1.0)
    return {
        "f1_macro": float(f1[counted].mean()) if np.any(counted) else 0.0,
        "f1_micro": float(2.0 * true_positive.sum() / total),
        "f1_weighted": float((f1 * actual).sum() / max(actual.sum(), 1.0)),
    }


def class_counts(
    predicted: Float[Array, "N C"], actual: Float[Array, "N C"], weights: Float[Array, "N"]
) -> dict[str, Any]:
    """What `measure_classes` and the report on classes need, from zeros and ones.

    confusion[i, j]: examples of class i in whose prediction class j is.
    """
    confusion = jnp.einsum("ni,nj,n->ij", actual, predicted, weights)
    right = jnp.all(predicted == actual, axis=-1)
    return {
        "confusion": confusion,
        "true_positive": jnp.einsum("ni,ni,n->i", actual, predicted, weights),
        "predicted": weights @ predicted,
        "actual": weights @ actual,
        "right": jnp.sum(right.astype(weights.dtype) * weights),
    }


def measure_classes(sums: Mapping[str, Any], all_classes: bool = False) -> dict[str, float]:
    """Loss, accuracy and F1 (`f1_scores`) of `class_counts` with "loss" and "count"."""
    scores = f1_scores(sums["true_positive"], sums["predicted"], sums["actual"], all_classes)
    return {
        "loss": sums["loss"] / sums["count"],
        "accuracy": sums["right"] / sums["count"],
        **scores,
    }


def _loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    losses = cross_entropy(logits, batch.targets, label_smoothing, z_loss)
    return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}


def _binary_loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    del z_loss
    losses = jnp.sum(binary_cross_entropy(logits, batch.targets, label_smoothing), axis=-1)
    return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}


def _evaluate(logits, batch):
    num_classes = logits.shape[-1]
    predicted = jax.nn.one_hot(likeliest(logits), num_classes)
    actual = jax.nn.one_hot(batch.targets, num_classes)
    return _loss(logits, batch) | class_counts(predicted, actual, batch.weights)


def _evaluate_binary(logits, batch):
    given = _given(logits).astype(jnp.float32)
    return _binary_loss(logits, batch) | class_counts(given, batch.targets, batch.weights)


def _given(logits, live=None):
    del live
    return logits > 0
