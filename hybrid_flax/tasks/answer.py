"""Answering: a symbol under every input, scored where the source says so."""

import functools

import jax.numpy as jnp

from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.tasks.base import Metric, Task, likeliest

__all__ = ["make_answering"]

METRICS = (
    Metric("loss", "nats", lower_is_better=True, text="loss {:.4f} nats"),
    Metric("accuracy", share=True, text="  accuracy {:.2f} % of targets"),
    Metric("exact", share=True, text=", {:.2f} % of rows without error"),
)


@functools.cache
def make_answering() -> Task:
    """The task; equal calls give the identical object. accuracy is that of targets, exact that of whole rows."""
    return Task(_loss, _evaluate, _measure, METRICS, likeliest)


def _loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    losses = cross_entropy(logits, batch.targets, label_smoothing, z_loss)
    return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}


def _evaluate(logits, batch):
    weights = batch.weights
    correct = jnp.argmax(logits, axis=-1) == batch.targets
    scored = jnp.any(weights > 0, axis=-1)
    whole = jnp.all(correct | (weights == 0), axis=-1) & scored
    return {
        "loss": jnp.sum(cross_entropy(logits, batch.targets) * weights),
        "correct": jnp.sum(correct.astype(weights.dtype) * weights),
        "count": jnp.sum(weights),
        "whole": jnp.sum(whole).astype(jnp.float32),
        "rows": jnp.sum(scored).astype(jnp.float32),
    }


def _measure(sums):
    return {
        "loss": sums["loss"] / sums["count"],
        "accuracy": sums["correct"] / sums["count"],
        "exact": sums["whole"] / sums["rows"],
    }
