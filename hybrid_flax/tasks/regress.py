"""Regression: a number for every sequence."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from hybrid_flax.ops.losses import squared_error
from hybrid_flax.tasks.base import Metric, Task

__all__ = ["make_regression"]

METRICS = (
    Metric("loss", lower_is_better=True),
    Metric("mse", lower_is_better=True, text="mean squared error {:.4f}"),
    Metric("r", text="  Pearson r {:.4f}"),
    Metric("sign", share=True, text="  sign {:.2f} %"),
)

_GRIDS = tuple(2.0**power for power in range(32, -33, -8))


@functools.cache
def make_regression() -> Task:
    """The task; equal calls give the identical object. Outputs are [B, 1]. Metrics: loss (= mse), r (Pearson), sign.

    r: of float32 values wherever they lie, as in float64; 0 where predictions or labels do not vary. sign: the share
    of examples whose prediction has the sign of the label (zero counts as negative).
    """
    return Task(_loss, _evaluate, _measure, METRICS, lambda outputs, live: outputs[:, 0])


def _loss(outputs, batch, label_smoothing=0.0, z_loss=0.0):
    del label_smoothing, z_loss
    losses = squared_error(outputs[:, 0], batch.targets)
    return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}


def _evaluate(outputs, batch):
    x, y, weights = outputs[:, 0].astype(jnp.float32), batch.targets, batch.weights
    pieces = jnp.stack([jnp.ones_like(x), *_pieces(x), *_pieces(y)], axis=1)
    products = jnp.matmul((pieces * weights[:, None]).T, pieces, precision=lax.Precision.HIGHEST)
    agree = (x > 0) == (y > 0)
    return _loss(outputs, batch) | {"products": products, "sign": jnp.sum(agree.astype(weights.dtype) * weights)}


def _pieces(values):
    """values as sums of multiples of fixed grids, of eight bits each, and what is left.

    Sums of products of such pieces are exact over a thousand rows, and their sums on the host nearly so. Those of the
    values themselves are not: of numbers near 2000, the variance would drown in the rounding of the squares.
    """
    for grid in _GRIDS:
        piece = jnp.round(values / grid) * grid
        yield piece
        values = values - piece
    yield values


def _measure(sums):
    n = sums["count"]
    kinds = np.repeat(np.eye(3), (1, len(_GRIDS) + 1, len(_GRIDS) + 1), axis=1)  # one, x, y: of which piece
    moments = kinds @ sums["products"] @ kinds.T / n
    covariances = moments[1:, 1:] - np.outer(moments[0, 1:], moments[0, 1:])
    variances = np.diag(covariances)
    vary = np.all(variances > 8 * np.finfo(np.float64).eps * np.diag(moments)[1:])
    r = covariances[0, 1] / math.sqrt(variances.prod()) if vary else 0.0
    loss = sums["loss"] / n
    return {"loss": loss, "mse": loss, "r": r, "sign": sums["sign"] / n}
