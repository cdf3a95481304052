"""Seconds to compile the train step of 3 and of 12 layers of every mixer: depth should cost next to nothing.

    python benchmarks/compile_seconds.py [--layers=lstm,attn] [--rounds=2]

Four repeats or more of a pattern are one scan, so 12 layers compile one and 3 layers compile three side by side. Each
figure is the best of the rounds, the two depths in turns, with every cache off.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from hybrid_flax.mixers.registry import registered_mixers
from hybrid_flax.models.build import init_params, make_model, model_is_causal
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.training.state import Hparams
from hybrid_flax.training.step import StepTraits, init_train_state, make_train_step
from hybrid_flax.typing import Batch, Segments

ROWS, LENGTH, WIDTH, VOCAB_SIZE = 4, 64, 32, 64


def main() -> None:
    """Print a Markdown table as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print("| mixer | 3 layers, s | 12 layers, s | ratio |\n|---|--:|--:|--:|")
    for layer in options.layers.split(",") if options.layers else registered_mixers():
        seconds = {3: [], 12: []}
        for _ in range(options.rounds):
            for depth, times in seconds.items():
                times.append(compile_seconds(layer, depth))
        short, long = min(seconds[3]), min(seconds[12])
        print(f"| `{layer}` | {short:.2f} | {long:.2f} | {long / short:.2f} |", flush=True)


def compile_seconds(layer: str, depth: int) -> float:
    """Tracing, lowering and compiling one train step."""
    model = make_model(vocab_size=VOCAB_SIZE, width=WIDTH, depth=depth, pattern=layer, tied=True)
    assert model_is_causal(model) or layer.startswith("bi:")
    spec = StepTraits("adamw", True, (("name", "constant"), ("num_steps", 1)))
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    hparams = Hparams(*(jnp.zeros(()) for _ in Hparams._fields))
    state = jax.eval_shape(lambda p: init_train_state(p, hparams, spec, jax.random.key(0)), params)
    ids, weights = (jax.ShapeDtypeStruct((ROWS, LENGTH), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(ids, Segments(ids, ids), ids, weights, jax.ShapeDtypeStruct((ROWS,), jnp.int32))
    jax.clear_caches()
    make_train_step.cache_clear()
    since = time.perf_counter()
    jax.jit(make_train_step(model, make_language_modelling(), spec, None)).lower(state, (), batch).compile()
    return time.perf_counter() - since


if __name__ == "__main__":
    main()
