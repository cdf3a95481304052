"""The hybrid as two parallel branches: LSTM(x) + attention(x), both from the inputs.

    python launch.py --config=experiments/parallel.py

The data and the budget are those of shakespeare.py, the parameters about as many. METRIC
"""

from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import load_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = load_config(f"{Path(__file__).parent}/shakespeare.py:add:lstm+attn")
    config.model.width = 128
    return config
