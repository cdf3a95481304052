"""Losses per token, in float32 at least; callers sum and count."""

import jax
import jax.numpy as jnp
import optax

from hybrid_flax.typing import Array, Float, Int, Scalar, state_dtype

__all__ = ["binary_cross_entropy", "cross_entropy", "squared_error"]


def cross_entropy(
    logits: Float[Array, "*B V"],
    targets: Int[Array, "*B"],
    label_smoothing: Scalar | float = 0.0,
    z_loss: Scalar | float = 0.0,
) -> Float[Array, "*B"]:
    """-log p(target) in nats, with uniform label smoothing (Szegedy et al. 2016, section 7) and
    z_loss * log(Z)² (Chowdhery et al. 2022, section 5). Both factors may be traced.
    """
    logits = logits.astype(state_dtype(logits.dtype))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if isinstance(label_smoothing, float) and isinstance(z_loss, float) and label_smoothing == z_loss == 0.0:
        return loss
    log_z = jax.nn.logsumexp(logits, axis=-1)
    uniform = log_z - jnp.mean(logits, axis=-1)
    return (1.0 - label_smoothing) * loss + label_smoothing * uniform + z_loss * jnp.square(log_z)


def binary_cross_entropy(
    logits: Float[Array, "*B"], labels: Float[Array, "*B"], label_smoothing: Scalar | float = 0.0
) -> Float[Array, "*B"]:
    """-log p(label) in nats of yes (1) or no (0), p(yes) = σ(logit), with label smoothing towards 1/2."""
    labels = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(logits.astype(state_dtype(logits.dtype)), labels)


def squared_error(predictions: Float[Array, "*B"], targets: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """(prediction - target)²."""
    wide = predictions.astype(state_dtype(predictions.dtype))
    return jnp.square(wide - targets.astype(wide.dtype))
