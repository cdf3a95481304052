"""Sentiment of movie snippets (VADER's ground truth, embedded): positive or negative, or the mean rating.

    python launch.py --config=experiments/sentiment.py
    python launch.py --config=experiments/sentiment.py:regress --config.model.pattern=bi:gru

80 % train, 10 % validation, 10 % test at random (data.split_seed). A minute on two CPU cores; test accuracy about 72 %,
r about 0.58.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "classify") -> ConfigDict:
    """arg: classify or regress."""
    config = base_config()
    config.task.name = arg or "classify"
    config.task.pooling = "max"
    config.data.path = "vader"
    config.data.mode = "padded"
    config.data.tokenizer = "word"
    config.data.min_count = 2
    config.data.length = 48
    config.data.batch_size = 64
    config.data.test_fraction = 0.1
    config.model.pattern = "bi:lstm"
    config.model.depth = 1
    config.model.width = 64
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 0.1
    config.optim.ema_decay = 0.99
    config.train.dropout = 0.5
    config.train.steps = 600
    config.eval.every = 66
    config.eval.batch_size = 128
    return config
