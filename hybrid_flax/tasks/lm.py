"""Language modelling: the next token of the same document, from those before it."""

import math

import jax.numpy as jnp

from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.tasks.base import Task

__all__ = ["language_modelling"]


def _loss(logits, batch, label_smoothing=0.0, z_loss=0.0):
    losses = cross_entropy(logits, batch["targets"], label_smoothing, z_loss)
    return {"loss": jnp.sum(losses * batch["weights"]), "count": jnp.sum(batch["weights"])}


def _evaluate(logits, batch):
    weights = batch["weights"]
    nll = cross_entropy(logits, batch["targets"])
    correct = jnp.argmax(logits, axis=-1) == batch["targets"]
    return {
        "loss": jnp.sum(nll * weights),
        "correct": jnp.sum(correct * weights),
        "count": jnp.sum(weights),
        "chars": jnp.sum(batch["num_chars"]).astype(jnp.float32),
        "bytes": jnp.sum(batch["num_bytes"]).astype(jnp.float32),
    }


def _metrics(sums):
    nats, count = sums["loss"], sums["count"]
    loss = nats / count
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_char": nats / math.log(2) / sums["chars"],
        "bits_per_byte": nats / math.log(2) / sums["bytes"],
        "accuracy": sums["correct"] / count,
    }


language_modelling = Task(_loss, _evaluate, _metrics)
