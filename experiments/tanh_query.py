"""The hybrid whose context alone goes on: a tanh query of LSTM states attends over those states.

    python launch.py --config=experiments/tanh_query.py

The data of shakespeare.py, about as many parameters, and 300 of its 1000 steps: under a minute on two CPU cores; test
loss about 2.79 bits per character.
"""

from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import load_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = load_config(f"{Path(__file__).parent}/shakespeare.py:context:lstm+tanhdot")
    config.model.width = 148
    config.train.steps = 300
    return config
