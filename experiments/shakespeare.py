"""The main job: a character model of the complete Shakespeare that fuses an LSTM with attention.

    python launch.py --config=experiments/shakespeare.py

Two to four minutes on two CPU cores; test loss about 2.31 bits per character (hamlet and the tempest).
`--config=experiments/shakespeare.py:gate:lstm+attn` trains another pattern of layers.

    python launch.py sweep --config=experiments/shakespeare.py --jobs=2 --workdir=runs/fusions
    python launch.py sweep --config=experiments/shakespeare.py --sweep=search --search=tpe --trials=24 --pruner=halving

The first is a grid of 24 trials, cell x fusion x learning rate, an hour or two; the second searches the same space and
more learning rates. `--dry_run` shows what they will be.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from hybrid_flax.config import base_config
from hybrid_flax.sweep.space import axis, choice, float_range, product


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


CELLS = ("lstm", "gru")
FUSIONS = ("cascade:{}+attn", "add:{}+attn", "gate:{}+attn", "concat:{}+attn")
PATTERNS = [fusion.format(cell) for cell in CELLS for fusion in FUSIONS]


def sweep() -> Iterator[dict]:
    """Which cell and which fusion, at which learning rate."""
    return product(axis("model.pattern", PATTERNS), axis("optim.learning_rate", [3e-3, 1e-2, 3e-2]))


def sweep_search() -> Iterator[dict]:
    """The same as a space to search."""
    yield {"model.pattern": choice(*PATTERNS), "optim.learning_rate": float_range(1e-3, 1e-1, log=True)}
