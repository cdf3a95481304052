"""Attention alone: Transformer layers with a squared-ReLU MLP.

    python launch.py --config=experiments/attention_only.py

The data of shakespeare.py, about as many parameters, and 300 of its 1000 steps: under a minute on two CPU cores; test
loss about 2.64 bits per character.
"""

from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import load_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = load_config(f"{Path(__file__).parent}/shakespeare.py:attn")
    config.model.depth = 4
    config.model.width = 96
    config.model.mlp = "relu2"
    config.train.steps = 300
    return config
