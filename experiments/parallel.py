"""The hybrid as two parallel branches: LSTM(x) + attention(x), both from the inputs.

    python launch.py --config=experiments/parallel.py

The data of shakespeare.py, about as many parameters, and 300 of its 1000 steps: under a minute on two CPU cores; test
loss about 2.60 bits per character.
"""

from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import load_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = load_config(f"{Path(__file__).parent}/shakespeare.py:add:lstm+attn")
    config.model.width = 128
    config.train.steps = 300
    return config
