"""Recurrence, attention and both fused on the sentiment of movie snippets: experiments/sentiment.py as a table.

    python benchmarks/sentiment.py                                  # docs/sentiment.md
    python benchmarks/sentiment.py --rows="bi:gru,bi:gru attn,attn bi:gru,attn" --seeds=2
    python benchmarks/sentiment.py --set="train.steps=300"

Every row is `regress` of the experiment with another model.pattern, one of two layers, on one split; a seed is that of
parameters, dropout and the order of training rows. Attention sees both sides (mixers.attn.causal=false). The last row
is the hybrid; the better of the others is the one with the higher mean r on validation. Differences are of means over
seeds, with Welch's 95 % interval. Every run is printed to stderr.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from hybrid_flax.config import apply_overrides, load_config
from hybrid_flax.models.build import init_params
from hybrid_flax.train.evaluate import evaluate
from hybrid_flax.train.experiment import make_experiment
from hybrid_flax.train.step import init_train_state, make_train_step

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "sentiment.py"
DIGITS = {"r": 3, "sign": 1}  # of the metrics shown


def main() -> None:
    """Train the grid and print the table and the difference as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="bi:mingru,bi:mingru attn,attn bi:mingru,attn", help="the hybrid last")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", default="", help="overrides of every run, separated by spaces: train.steps=300 ...")
    options = parser.parse_args()
    rows, seeds = options.rows.split(), range(options.seeds)
    *singles, hybrid = rows
    runs = [{row: run(row, seed, options.set.split()) for row in rows} for seed in seeds]
    print(f"Seeds 0 to {options.seeds - 1}{options.set and f', {options.set}'}; jax {jax.__version__}.\n")
    print("| pattern | parameters | valid r | valid sign % | test r | test sign % |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        figures = [_of(runs, row, split, name) for split in ("valid", "test") for name in DIGITS]
        shown = [
            f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"
            for values, digits in zip(figures, 2 * list(DIGITS.values()))
        ]
        print(f"| `{row}` | {runs[0][row].parameters:,} | " + " | ".join(shown) + " |")
    single = max(singles, key=lambda row: _of(runs, row, "valid", "r").mean())
    print(f"\nTest figures of `{hybrid}` less those of `{single}`, which is the better of the others on validation:\n")
    for name, digits in DIGITS.items():
        a, b = _of(runs, hybrid, "test", name), _of(runs, single, "test", name)
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        print(f"* {name}: {a.mean() - b.mean():+.{digits}f} (95 % interval {low:+.{digits}f} to {high:+.{digits}f})")


class Trained(NamedTuple):
    """The size of a model, and its metrics by split."""

    parameters: int
    metrics: dict[str, dict[str, float]]


def run(pattern: str, seed: int, overrides: list[str]) -> Trained:
    """One run; its metrics are those of the averaged parameters after the last step."""
    since = time.process_time()
    overrides = [f"model.pattern={pattern}", "model.depth=2", "mixers.attn.causal=false", f"seed={seed}", *overrides]
    config = apply_overrides(load_config(f"{EXPERIMENT}:regress"), overrides)
    experiment = make_experiment(config)
    step = _compiled(make_train_step(experiment.model, experiment.task, experiment.spec, None))
    key_params, key_steps = jax.random.split(jax.random.key(seed))
    params = _init(experiment.model)(key_params)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = init_train_state(params, experiment.hparams, experiment.spec, key_steps)
    for index in range(config.train.steps):
        state, _, _ = step(state, (), experiment.batches.batch(index))
    metrics = {}
    for split in ("valid", "test"):
        batches = experiment.source.splits[split].batches(config.eval.batch_size, config.data.length, False)
        metrics[split] = evaluate(experiment.model, experiment.task, state.ema, batches, experiment.parallel)
    shown = "; ".join(f"{split} {experiment.task.describe(metrics[split])}" for split in metrics)
    print(f"{pattern} seed {seed}: {shown}; {time.process_time() - since:.0f} s", file=sys.stderr, flush=True)
    return Trained(parameters, metrics)


def _of(runs, row, split, name):
    """A metric [seeds]; signs in %."""
    return np.array([made[row].metrics[split][name] for made in runs]) * (100 if name == "sign" else 1)


@functools.cache
def _compiled(step):
    return jax.jit(step, donate_argnums=(0,))


@functools.cache
def _init(model):
    return jax.jit(functools.partial(init_params, model))


if __name__ == "__main__":
    main()
