"""A recurrent network alone: two LSTM layers.

    python launch.py --config=experiments/rnn_only.py

The data and the budget are those of shakespeare.py, the parameters about as many. METRIC
"""

from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import load_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = load_config(f"{Path(__file__).parent}/shakespeare.py:lstm")
    config.model.width = 156
    return config
