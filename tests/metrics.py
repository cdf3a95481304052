"""A metric that is better when it is lower, and a share that is better when it is higher."""

from hybrid_flax.tasks.answer import make_answering
from hybrid_flax.tasks.base import find_metric

__all__ = ["ACCURACY", "LOSS"]

LOSS = find_metric(make_answering(), "loss")
ACCURACY = find_metric(make_answering(), "accuracy")
