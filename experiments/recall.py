"""Recall and state tracking with one model: what attention finds and what a recurrence keeps, at equal parameters.

    python launch.py --config=experiments/recall.py:cascade:lstm+attn@mqar
    python launch.py --config=experiments/recall.py:cascade:lstm+attn@parity

The argument is LAYERS@TASK: a comma-separated pattern, once through, and one of TASKS. An LSTM has cells for as many
parameters as attention, and twice as many where it is all there is: `attn,attn`, `lstm`, `lstm,lstm`,
`cascade:lstm+attn` and `lstm,attn` are equal within 2 %. mqar is multi-query associative recall of
8 pairs in 128 symbols out of 256 (Arora et al. 2024); parity trains on lengths up to 40 and is tested on what comes
after the 40th symbol in rows of 41 to 500. mqar256 and mqar512 are the published scale (16 and 64 pairs out of 8192
symbols, width 128), for an accelerator. `benchmarks/languages.py recall` makes the table in docs/recall.md.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config

# language, width, batch size, longest row of training, longest row of the test
TASKS = {
    "mqar": ("mqar,pairs=8,vocab_size=256", 64, 32, 128, 128),
    "parity": ("parity", 64, 32, 40, 500),
    "mqar256": ("mqar,pairs=16,vocab_size=8192", 128, 256, 256, 256),
    "mqar512": ("mqar,pairs=64,vocab_size=8192", 128, 128, 512, 512),
}


def get_config(arg: str = "cascade:lstm+attn@mqar") -> ConfigDict:
    """arg: LAYERS@TASK."""
    layers, _, task = (arg or "cascade:lstm+attn@mqar").rpartition("@")
    if not layers or "=" in task:  # an option of the last layer
        layers, task = arg, "mqar"
    if task not in TASKS:
        raise ValueError(f"no task {task!r}: one of {', '.join(TASKS)}")
    language, width, batch_size, length, test_length = TASKS[task]
    config = base_config()
    config.task.name = "answer"
    config.data.path = f"synthetic:{language}"
    config.data.mode = "padded"
    config.data.length = length
    config.data.batch_size = batch_size
    config.model.pattern = layers
    config.model.depth = len(layers.split(","))
    config.model.width = width
    config.mixers.attn.num_heads = 1
    config.mixers.deltanet.negative_eigenvalues = True
    config.mixers.lstm.state_width = width if layers == "lstm" else 9 * width // 16  # 8 D² parameters, 4 D²
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-2
    config.optim.weight_decay = 0.01
    config.schedule.warmup_steps = 50
    config.train.steps = 1000
    config.train.log_every = 50
    config.eval.every = 250
    config.eval.length = test_length
    config.eval.batch_size = 64
    config.eval.max_batches = 2
    return config
