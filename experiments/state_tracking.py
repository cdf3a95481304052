"""State tracking: a symbol under every input that only a state which never forgets gets right (Grazzi et al. 2025).

    python launch.py --config=experiments/state_tracking.py:lstm@parity

The argument is LAYER@LANGUAGE: any layer, and parity, counting,modulus=5 (ones so far), even_pairs, cycle_navigation,
modular_arithmetic, s5 or a5. It trains on lengths up to 40 and is tested on what comes after the 40th symbol in rows of
41 to 500. Half a minute on two CPU cores; an LSTM ends at 100 % on parity.
`benchmarks/languages.py state_tracking` makes the table of all mechanisms.

One layer is enough for all but modular_arithmetic, where a product waits until it is added: 25 states and an operator.
There the model has three layers, twice as wide, without an MLP, and Muon takes five times the steps, most of them at
the full rate: two to five minutes. With a rate that falls from the start, counts that are right on every short row slip
in longer ones.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "lstm@parity") -> ConfigDict:
    """arg: LAYER@LANGUAGE."""
    layer, _, language = (arg or "lstm@parity").partition("@")
    config = base_config()
    config.task.name = "answer"
    config.data.path = f"synthetic:{language or 'parity'}"
    config.data.mode = "padded"
    config.data.length = 40
    config.data.batch_size = 64
    config.model.pattern = layer
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
    config.eval.length = 500
    config.eval.batch_size = 64
    config.eval.max_batches = 2
    if language == "modular_arithmetic":
        config.data.batch_size = 32
        config.model.depth = 3
        config.model.width = 64
        config.model.mlp = "none"
        config.optim.name = "muon"
        config.optim.learning_rate = 5e-3
        config.optim.weight_decay = 0.0
        config.schedule.name = "wsd"
        config.train.steps = 5000
    return config
