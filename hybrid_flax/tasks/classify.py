"""Classification of whole sequences: one class, or any number of them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.ops.losses import binary_cross_entropy, cross_entropy
from hybrid_flax.tasks.base import Metric, Task, known_targets, likeliest
from hybrid_flax.typing import Array, Float

__all__ = ["class_counts", "class_metrics", "f1_scores", "make_classification", "measure_classes"]


@functools.cache
def make_classification(multi_label: bool = False, num_unseen: int = 0) -> Task:
    """The task; equal arguments give the identical object.

    Outputs are logits [B, C]. multi_label: every class is a question of its own, answered yes above 0.
    num_unseen: classes of examples that follow the C, which no training example has and no model can predict. They
    count as missed in all metrics but the loss, which is of the examples without them.
    Metrics: loss in nats an example, accuracy (of whole examples), F1 macro, micro and weighted.
    """

    def evaluate(logits, batch):
        num_classes = logits.shape[-1] + num_unseen
        if multi_label:
            predicted = jnp.pad(_given(logits), ((0, 0), (0, num_unseen))).astype(jnp.float32)
            return _binary_loss(logits, batch) | class_counts(predicted, batch.targets, batch.weights)
        predicted, actual = (jax.nn.one_hot(c, num_classes) for c in (likeliest(logits), batch.targets))
        return _loss(logits, batch) | class_counts(predicted, actual, batch.weights)

    if multi_label:
        measure = functools.partial(measure_classes, all_classes=True, num_unseen=num_unseen)
        return Task(_binary_loss, evaluate, measure, class_metrics("nats"), _given)
    return Task(_loss, evaluate, measure_classes, class_metrics("nats"), likeliest)


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
    true_positive: np.ndarray, predicted: np.ndarray, actual: np.ndarray, all_classes: bool = False, num_unseen: int = 0
) -> dict[str, float]:
    """F1 "macro", "micro" and "weighted" (by actual counts), in [0, 1], as in scikit-learn.

    Counts are per class [C]. A class that neither occurs nor is predicted has no say in "macro", and with all_classes,
    for examples of any number of classes, an F1 of 0; one of the last num_unseen has none in either case.
    """
    both = predicted + actual
    f1 = np.divide(2.0 * true_positive, both, out=np.zeros(len(both)), where=both > 0)
    counted = (both > 0) | all_classes & (np.arange(len(both)) < len(both) - num_unseen)
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
        "scored": jnp.sum(weights),
    }


def measure_classes(sums: Mapping[str, Any], all_classes: bool = False, num_unseen: int = 0) -> dict[str, float]:
    """Loss, accuracy and F1 (`f1_scores`) of `class_counts` with "loss" and "count", 0 where all classes are unseen."""
    scores = f1_scores(sums["true_positive"], sums["predicted"], sums["actual"], all_classes, num_unseen)
    return {
        "loss": sums["loss"] / max(sums["count"], 1.0),
        "accuracy": sums["right"] / sums["scored"],
        **scores,
    }


def _loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    targets, weights = known_targets(batch, logits.shape[-1])
    losses = cross_entropy(logits, targets, label_smoothing, z_loss)
    return {"loss": jnp.sum(losses * weights), "count": jnp.sum(weights)}


def _binary_loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    del z_loss
    targets, unseen = jnp.split(batch.targets, [logits.shape[-1]], axis=-1)
    weights = jnp.where(jnp.all(unseen == 0, axis=-1), batch.weights, 0.0)
    losses = jnp.sum(binary_cross_entropy(logits, targets, label_smoothing), axis=-1)
    return {"loss": jnp.sum(losses * weights), "count": jnp.sum(weights)}


def _given(logits, live=None):
    del live
    return logits > 0
