"""Training speed and memory of the eight rows of experiments/tiny_shakespeare.py beside flax.linen's own layers.

    python benchmarks/speed.py                       # on an accelerator: width 512, depth 8, 64 x 512 tokens, bf16
    python benchmarks/speed.py --tiny                # anywhere: the same code at a size that a CPU can do

Every row trains the same number of layers on the same random tokens, one after another in one process, interleaved
over rounds; the figure is the median. Peak memory is what the compiled step needs (arguments, outputs, temporaries) by
XLA's own account. "flax.linen" is nn.RNN(nn.OptimizedLSTMCell) + nn.MultiHeadDotProductAttention in a pre-norm residual
layer, to be read beside add:lstm+attn.
"""

import argparse
import json
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from hybrid_flax.data.pipeline import make_batch
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.models.model import Norm
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.training.state import make_hparams
from hybrid_flax.training.step import StepTraits, init_train_state, make_train_step

ROWS = (
    "attn",
    "lstm",
    "gru",
    "cascade:lstm+attn",
    "add:lstm+attn",
    "gate:lstm+attn",
    "context:lstm+tanhdot",
    "rglru,rglru,swa",
)
VOCAB_SIZE = 256


class LinenModel(nn.Module):
    """The same model from flax.linen's recurrent and attention layers; it takes no documents and no state."""

    width: int
    depth: int
    dtype: str
    layers: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, tokens, segments, state=None, dropout=None):
        x = nn.Embed(VOCAB_SIZE, self.width, dtype=self.dtype)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.depth):
            y = Norm("rms")(x)
            recurrent = nn.RNN(nn.OptimizedLSTMCell(self.width, dtype=self.dtype))(y)
            x = x + recurrent + nn.MultiHeadDotProductAttention(4, dtype=self.dtype)(y, mask=mask)
        return nn.Dense(VOCAB_SIZE)(Norm("rms")(x).astype(jnp.float32)), state


def main() -> None:
    """Measure and print the table, and one JSON object a row with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = {"width": 512, "depth": 8, "rows": 64, "length": 512, "dtype": "bfloat16"}
    if options.tiny:
        sizes = {"width": 32, "depth": 3, "rows": 4, "length": 32, "dtype": "float32"}
    entries = [Entry(name, **sizes) for name in (*ROWS, "flax.linen")]
    for _ in range(options.rounds):
        for entry in entries:
            entry.run(options.steps)
    device = jax.devices()[0]
    table = Table(title=f"{device.device_kind}, jax {jax.__version__}, {sizes}")
    for column in ("row", "parameters", "tokens/s", "/ flax.linen", "peak memory"):
        table.add_column(column, justify="left" if column == "row" else "right")
    base = entries[-1].tokens_per_sec
    for entry in entries:
        speed, memory = entry.tokens_per_sec, entry.peak_bytes
        table.add_row(
            entry.name, f"{entry.parameters:,}", f"{speed:,.0f}", f"{speed / base:.2f}", f"{memory / 2**30:.3f} GiB"
        )
        if options.json:
            figures = {"row": entry.name, "parameters": entry.parameters, "tokens_per_sec": speed}
            print(json.dumps(figures | {"peak_bytes": memory, "device": device.device_kind, **sizes}))
    Console().print(table)


class Entry:
    """One compiled train step and the times it took."""

    def __init__(self, name: str, *, width: int, depth: int, rows: int, length: int, dtype: str):
        self.name = name
        if name == "flax.linen":
            model = LinenModel(width, depth, dtype)
            tokens = jnp.zeros((1, 2), jnp.int32)
            params = jax.jit(lambda key: model.init(key, tokens, None)["params"])(jax.random.key(0))
        else:
            model = make_model(vocab_size=VOCAB_SIZE, width=width, depth=depth, pattern=name, dtype=dtype, tied=True)
            params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.tokens = rows * length
        self.batch = _random_batch(rows, length)
        spec = StepTraits("sgd", True, (("name", "constant"), ("num_steps", 10**6)))
        hparams = make_hparams(
            learning_rate=1e-3,
            weight_decay=0.0,
            table_decay=0.0,
            b1=0.9,
            b2=0.99,
            epsilon=1e-8,
            momentum=0.9,
            clip_norm=1.0,
            ema_decay=0.0,
            dropout=0.0,
            embedding_dropout=0.0,
            word_dropout=0.0,
            recurrent_dropout=0.0,
            label_smoothing=0.0,
            z_loss=0.0,
        )
        self.state = init_train_state(params, hparams, spec, jax.random.key(1))
        step = jax.jit(make_train_step(model, make_language_modelling(), spec, None), donate_argnums=(0,))
        self.step = step.lower(self.state, (), self.batch).compile()
        memory = self.step.memory_analysis()
        # Donated arguments come back as outputs: they are counted once.
        self.peak_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        self.seconds: list[float] = []
        self.run(1)
        self.seconds.clear()

    def run(self, steps: int) -> None:
        """Time `steps` steps as one figure."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, _, _ = self.step(self.state, (), self.batch)
        jax.block_until_ready(self.state.params)
        self.seconds.append((time.perf_counter() - start) / steps)

    @property
    def tokens_per_sec(self) -> float:
        """Of the median round."""
        return self.tokens / statistics.median(self.seconds)


def _random_batch(rows, length):
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (rows, length + 1), dtype=np.int32)
    ones = np.ones((rows, length), np.int32)
    return jax.device_put(make_batch(tokens[:, :-1], ones, tokens[:, 1:], ones, np.arange(rows)))


if __name__ == "__main__":
    main()
