"""Seconds of training of the eight rows of experiments/tiny_shakespeare.py, measured side by side.

    python benchmarks/row_seconds.py --path=FILE

All rows are compiled first; then every round runs a few steps of each in turn, so that what else the machine does falls
on all alike. The figure is the fastest round times the steps of the config; evaluations and compilation are left out.
"""

import argparse
import time

import jax
from rich.console import Console
from rich.table import Table

from hybrid_flax.config import apply_overrides, load_config
from hybrid_flax.models.build import init_params
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import init_train_state, make_train_step

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


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    runs = [Row(name, options.path) for name in ROWS]
    for _ in range(options.rounds):
        for run in runs:
            run.time(options.steps)
    base = min(runs[0].seconds)
    table = Table(title=f"{runs[0].num_steps} steps on {jax.devices()[0].device_kind}, jax {jax.__version__}")
    for column in ("row", "parameters", "ms/step", "seconds", "/ attn"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for run in runs:
        best = min(run.seconds)
        table.add_row(
            run.name,
            f"{run.parameters:,}",
            f"{1e3 * best:.1f}",
            f"{run.num_steps * best:.0f}",
            f"{best / base:.2f}",
        )
    Console().print(table)


class Row:
    """The train step of one row, compiled, and the seconds a step took in each round."""

    def __init__(self, name: str, path: str):
        config = load_config(f"experiments/tiny_shakespeare.py:{name}")
        setup = make_setup(apply_overrides(config, [f"data.path={path}"]))
        params = init_params(setup.model, jax.random.key(0))
        self.name, self.num_steps = name, config.train.steps
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.state = init_train_state(params, setup.hparams, setup.traits, jax.random.key(1))
        self.batch = setup.batches.batch
        step = make_train_step(setup.model, setup.task, setup.traits, None)
        self.step = jax.jit(step, donate_argnums=0)
        self.seconds: list[float] = []
        self.time(2)
        self.seconds.clear()

    def time(self, steps: int) -> None:
        """Run `steps` steps and note their mean."""
        start = time.perf_counter()
        for index in range(steps):
            self.state, _, _ = self.step(self.state, (), self.batch(index))
        jax.block_until_ready(self.state.params)
        self.seconds.append((time.perf_counter() - start) / steps)


if __name__ == "__main__":
    main()
