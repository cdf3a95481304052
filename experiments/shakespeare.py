"""The main job: a character model of the complete Shakespeare that fuses an LSTM with attention.

    python launch.py --config=experiments/shakespeare.py

Two to four minutes on two CPU cores; test loss about 2.31 bits per character (hamlet and the tempest).
`--config=experiments/shakespeare.py:gate:lstm+attn` trains another pattern of layers.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "") -> ConfigDict:
    """arg: a pattern of layers in place of cascade:lstm+attn."""
    config = base_config()
    config.data.length = 128
    config.data.batch_size = 16
    config.model.pattern = arg or "cascade:lstm+attn"
    config.model.depth = 2
    config.model.width = 128
    config.train.steps = 1000
    config.optim.name = "muon"
    config.optim.learning_rate = 1e-2
    config.optim.weight_decay = 0.1
    config.optim.ema_decay = 0.99
    config.schedule.warmup_steps = 50
    config.eval.every = 250
    config.eval.batch_size = 64
    config.eval.max_batches = 8
    return config
