"""State tracking: a symbol under every input that only a state which never forgets gets right (Grazzi et al. 2025).

    python launch.py --config=experiments/state_tracking.py:tanh@parity

The argument is LAYERS@LANGUAGE: a comma-separated pattern, once through, and parity, counting,modulus=5 (ones so far),
even_pairs, cycle_navigation, modular_arithmetic, s5 or a5. It trains on lengths up to 40 and is tested on what comes
after the 40th symbol in rows of 41 to 500. Half a minute on two CPU cores. `benchmarks/languages.py state_tracking`
makes the table of all mechanisms (docs/state_tracking.md).

The model is as small as the language allows, without an MLP: one layer, whose state has to be the automaton. With more
layers or an MLP, a state that only nearly is one finds the right answers in short rows, and long ones go wrong.
modular_arithmetic, where a product waits until it is added, needs three layers and more steps: two minutes or more.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "tanh@parity") -> ConfigDict:
    """arg: LAYERS@LANGUAGE."""
    layers, _, language = (arg or "tanh@parity").rpartition("@")
    if not layers or "=" in language:  # an option of the last layer
        layers, language = arg, "parity"
    arithmetic = language.startswith("modular_arithmetic")
    config = base_config()
    config.task.name = "answer"
    config.data.path = f"synthetic:{language}"
    config.data.mode = "padded"
    config.data.length = 40
    config.data.batch_size = 32
    config.model.pattern = layers
    config.model.depth = 3 if arithmetic else len(layers.split(","))
    config.model.width = 64 if arithmetic else 32
    config.optim.name = "muon"
    config.optim.learning_rate = 5e-3
    config.schedule.name = "wsd"
    config.schedule.warmup_steps = 50
    config.train.steps = 6000 if arithmetic else 1000
    config.train.log_every = 50
    config.eval.every = 250
    config.eval.length = 500
    config.eval.batch_size = 64
    config.eval.max_batches = 2
    return config
