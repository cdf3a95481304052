"""Griffin's pattern (De et al. 2024): two gated linear recurrences, then local attention; MLPs between.

    python launch.py --config=experiments/griffin.py

The data of shakespeare.py, about as many parameters, and 300 of its 1000 steps: under a minute on two CPU cores; test
loss about 2.67 bits per character.
"""

from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import load_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = load_config(f"{Path(__file__).parent}/shakespeare.py:rglru,rglru,swa")
    config.model.depth = 3
    config.model.width = 128
    config.model.mlp = "relu2"
    config.model.mlp_ratio = 2.0
    config.mixers.swa.window = 64
    config.train.steps = 300
    return config
