"""Language modelling: the next token of the same document, from those before it."""

import functools
import math

import jax.numpy as jnp

from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.tasks.base import Metric, Task, likeliest

__all__ = ["make_language_modelling"]

METRICS = (
    Metric("loss", "nats/token", lower_is_better=True, text="loss {:.4f} nats/token"),
    Metric("perplexity", lower_is_better=True, text="  perplexity {:.3f}"),
    Metric("bits_per_char", "bits/char", lower_is_better=True, text="  {:.4f} bits/char"),
    Metric("bits_per_byte", "bits/byte", lower_is_better=True, text="  {:.4f} bits/byte"),
    Metric("accuracy", share=True, text="  accuracy {:.2f} %"),
)


@functools.cache
def make_language_modelling() -> Task:
    """The task; equal calls give the identical object. Loss and metrics are those of the cross-entropy in nats."""
    return Task(_loss, _evaluate, _measure, METRICS, likeliest, generates=True)


def _loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    losses = cross_entropy(logits, batch.targets, label_smoothing, z_loss)
    return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}


def _evaluate(logits, batch):
    weights = batch.weights
    nll = cross_entropy(logits, batch.targets)
    correct = jnp.argmax(logits, axis=-1) == batch.targets
    return {
        "loss": jnp.sum(nll * weights),
        "correct": jnp.sum(correct.astype(weights.dtype) * weights),
        "count": jnp.sum(weights),
        "chars": jnp.sum(batch.num_chars).astype(jnp.float32),
        "bytes": jnp.sum(batch.num_bytes).astype(jnp.float32),
    }


def _measure(sums):
    nats, count = sums["loss"], sums["count"]
    loss = nats / count
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_char": nats / math.log(2) / sums["chars"],
        "bits_per_byte": nats / math.log(2) / sums["bytes"],
        "accuracy": sums["correct"] / count,
    }
