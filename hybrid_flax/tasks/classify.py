"""Classification of whole sequences: one class, or any number of them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.ops.losses import binary_cross_entropy, cross_entropy
from hybrid_flax.tasks.base import Task, likeliest
from hybrid_flax.typing import Array, Float

__all__ = ["class_counts", "class_metrics", "describe_classes", "f1_scores", "make_classification"]


@functools.cache
def make_classification(multi_label: bool = False) -> Task:
    """The task; equal arguments give the identical object.

    Outputs are logits [B, C]. multi_label: every class is a question of its own, answered yes above 0.
    Metrics: loss in nats an example, accuracy (of whole examples), F1 macro, micro and weighted.
    """
    if multi_label:
        return Task(
            _binary_loss, _evaluate_binary, functools.partial(class_metrics, all_classes=True), describe_classes, _given
        )
    return Task(_loss, _evaluate, class_metrics, describe_classes, likeliest)


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
    """What `class_metrics` and the report on classes need, from zeros and ones.

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


def class_metrics(sums: Mapping[str, Any], all_classes: bool = False) -> dict[str, float]:
    """Loss, accuracy and F1 (`f1_scores`) of `class_counts` with "loss" and "count"."""
    scores = f1_scores(sums["true_positive"], sums["predicted"], sums["actual"], all_classes)
    return {
        "loss": sums["loss"] / sums["count"],
        "accuracy": sums["right"] / sums["count"],
        **scores,
    }


def _loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    losses = cross_entropy(logits, batch["labels"], label_smoothing, z_loss)
    return {"loss": jnp.sum(losses * batch["weights"]), "count": jnp.sum(batch["weights"])}


def _binary_loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    del z_loss
    losses = jnp.sum(binary_cross_entropy(logits, batch["labels"], label_smoothing), axis=-1)
    return {"loss": jnp.sum(losses * batch["weights"]), "count": jnp.sum(batch["weights"])}


def _evaluate(logits, batch):
    num_classes = logits.shape[-1]
    predicted = jax.nn.one_hot(likeliest(logits), num_classes)
    actual = jax.nn.one_hot(batch["labels"], num_classes)
    return _loss(logits, batch) | class_counts(predicted, actual, batch["weights"])


def _evaluate_binary(logits, batch):
    given = _given(logits).astype(jnp.float32)
    return _binary_loss(logits, batch) | class_counts(given, batch["labels"], batch["weights"])


def _given(logits, live=None):
    del live
    return logits > 0


def describe_classes(metrics: Mapping[str, float], unit: str = "nats") -> str:
    """`class_metrics` in words; unit: of the loss."""
    f1 = " ".join(f"{how} {100 * metrics[f'f1_{how}']:.2f}" for how in ("macro", "micro", "weighted"))
    return f"loss {metrics['loss']:.4f} {unit}  accuracy {100 * metrics['accuracy']:.2f} %  F1 {f1}"
