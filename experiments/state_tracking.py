"""State tracking: a symbol under every input that only a state which never forgets gets right (Grazzi et al. 2025).

    python launch.py --config=experiments/state_tracking.py:parity,lstm

LANGUAGE is parity, count3 or count5 (ones so far, modulo 2, 3 or 5); after the comma stands any layer. It trains on
lengths up to 40 and is tested on 41 to 256. Half a minute on two CPU cores; an LSTM ends at 100 % on both.
`benchmarks/state_tracking.py` makes the table of all mechanisms.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "parity,lstm") -> ConfigDict:
    """arg: LANGUAGE,LAYER."""
    language, _, layer = (arg or "parity,lstm").partition(",")
    config = base_config()
    config.data.path = f"synthetic:{language}"
    config.data.length = 40
    config.data.batch_size = 64
    config.model.pattern = layer or "lstm"
    config.model.depth = 1
    config.model.width = 32
    config.model.mlp = "swiglu"
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-2
    config.optim.weight_decay = 0.01
    config.schedule.warmup_steps = 50
    config.train.steps = 1000
    config.train.log_every = 50
    config.eval.every = 250
    config.eval.length = 256
    config.eval.batch_size = 64
    return config
