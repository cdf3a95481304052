"""Regression: a number for every sequence."""

import functools
import math

import jax.numpy as jnp

from hybrid_flax.ops.losses import squared_error
from hybrid_flax.tasks.base import Task

__all__ = ["make_regression"]


@functools.cache
def make_regression() -> Task:
    """The task; equal calls give the identical object. Outputs are [B, 1]. Metrics: loss (= mse), r (Pearson), sign.

    sign: the share of examples whose prediction has the sign of the label (zero counts as negative).
    """
    return Task(_loss, _evaluate, _metrics, _describe, lambda outputs, live: outputs[:, 0])


def _loss(outputs, batch, label_smoothing=0.0, z_loss=0.0):
    del label_smoothing, z_loss
    losses = squared_error(outputs[:, 0], batch["labels"])
    return {"loss": jnp.sum(losses * batch["weights"]), "count": jnp.sum(batch["weights"])}


def _evaluate(outputs, batch):
    x, y, weights = outputs[:, 0].astype(jnp.float32), batch["labels"], batch["weights"]
    moments = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y, "sign": (x > 0) == (y > 0)}
    return _loss(outputs, batch) | {name: jnp.sum(value * weights) for name, value in moments.items()}


def _metrics(sums):
    n = sums["count"]
    mean_x, mean_y = sums["x"] / n, sums["y"] / n
    variances = (sums["xx"] / n - mean_x**2) * (sums["yy"] / n - mean_y**2)
    covariance = sums["xy"] / n - mean_x * mean_y
    loss = sums["loss"] / n
    r = covariance / math.sqrt(variances) if variances > 0 else 0.0
    return {"loss": loss, "mse": loss, "r": r, "sign": sums["sign"] / n}


def _describe(metrics):
    return f"mean squared error {metrics['mse']:.4f}  Pearson r {metrics['r']:.4f}  sign {100 * metrics['sign']:.2f} %"
