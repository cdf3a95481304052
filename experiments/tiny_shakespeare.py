"""The comparison in the README: nanoGPT's CPU recipe, 2000 steps of 12 x 64 characters, at half its parameters.

    python launch.py --config=experiments/tiny_shakespeare.py --config.data.path=FILE

FILE is karpathy/char-rnn's input.txt (1.1 MB): the first 90 % of its characters train, the rest is validation.
Two to three minutes on two CPU cores; validation loss about 1.55 nats. `:ROW` after the file name takes
another row of ROWS, all of the same number of parameters.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import ConfigError, base_config

# pattern: (depth, width, heads, mlp), 0.42 to 0.46 M parameters each.
ROWS = {
    "attn": (4, 96, 4, "relu2"),
    "lstm": (2, 160, 4, "none"),
    "gru": (2, 184, 4, "none"),
    "cascade:lstm+attn": (2, 132, 6, "none"),
    "add:lstm+attn": (2, 132, 6, "none"),
    "gate:lstm+attn": (2, 128, 4, "none"),
    "context:lstm+tanhdot": (2, 152, 4, "none"),
    "rglru,rglru,swa": (3, 108, 6, "relu2"),
}


def get_config(arg: str = "lstm") -> ConfigDict:
    """arg: one of ROWS."""
    arg = arg or "lstm"
    if arg not in ROWS:
        raise ConfigError(f"no row {arg!r}; rows: {' '.join(ROWS)}")
    config = base_config()
    config.data.path = ""
    config.data.length = 64
    config.data.batch_size = 12
    config.model.pattern = arg
    config.model.depth, config.model.width, num_heads, config.model.mlp = ROWS[arg]
    config.mixers.attn.num_heads = config.mixers.swa.num_heads = num_heads
    config.train.steps = 2000
    config.optim.name = "muon"
    config.optim.learning_rate = 1e-2
    config.optim.momentum = 0.9
    config.optim.weight_decay = 0.1
    config.optim.ema_decay = 0.99
    config.schedule.warmup_steps = 20
    config.eval.every = 180
    config.eval.batch_size = 128
    return config
