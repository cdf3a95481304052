"""Which mechanisms learn which synthetic languages: experiments/state_tracking.py and recall.py as tables.

    python benchmarks/languages.py state_tracking --seeds=1 --jobs=2     # docs/state_tracking.md
    python benchmarks/languages.py recall --rates=3e-3,1e-2              # docs/recall.md
    python benchmarks/languages.py state_tracking --rows="lstm gla" --languages=parity --seeds=1
    python benchmarks/languages.py recall --set="train.steps=2000 data.batch_size=64"

Every row gets the config of the experiment and the same learning rates (that of the experiment unless --rates says
others), steps and seeds. The figure is the accuracy in % on the test split of the best run, the one with the least
validation loss, with that run's validation accuracy in brackets: the test rows choose nothing. Behind "of" stand the
test figures of all runs, rate by rate, seed by seed; every run is printed to stderr, too. The runs of a row are in one
process, where a train step and an evaluation are compiled once for a language.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax

from hybrid_flax.config import ConfigError, apply_overrides, load_config, validate
from hybrid_flax.jobs.machine import share_of, visible_gpus
from hybrid_flax.models.build import init_params
from hybrid_flax.tasks.base import describe
from hybrid_flax.training.evaluate import evaluate_split
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import init_train_state, make_train_step

FOLDER = Path(__file__).parents[1] / "experiments"
TABLES = {
    "state_tracking": (
        ("attn,attn,attn", "tanh", "lstm", "cascade:tanh+attn", "cascade:lstm+attn"),
        ("even_pairs", "parity", "cycle_navigation", "modular_arithmetic"),
    ),
    "recall": (("attn,attn", "lstm", "cascade:lstm+attn"), ("mqar", "parity")),
}


def main() -> None:
    """Train the grid and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=TABLES)
    parser.add_argument("--rows", help="separated by spaces, as the experiment takes them")
    parser.add_argument("--languages", help="likewise")
    parser.add_argument("--rates", help="learning rates, separated by commas; that of the experiment unless said")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each on its share of the machine")
    parser.add_argument("--set", default="", help="overrides of every run, separated by spaces: model.width=64 ...")
    options = parser.parse_args()
    rows, languages = TABLES[options.experiment]
    rows = options.rows.split() if options.rows else rows
    languages = options.languages.split() if options.languages else languages
    rates = [f"optim.learning_rate={rate}" for rate in options.rates.split(",")] if options.rates else [""]
    said = [f"learning rates {options.rates}"] if options.rates else []
    said += [f"seeds 0 to {options.seeds - 1}", *options.set.split()]
    overrides = [f"seed={seed} {rate} {options.set}".split() for rate in rates for seed in range(options.seeds)]
    try:
        for row, language, values in itertools.product(rows, languages, overrides):
            validate(_config(options.experiment, row, language, values))
    except ConfigError as error:
        parser.error(str(error))
    line = functools.partial(table_line, options.experiment, languages, overrides)
    spawn = multiprocessing.get_context("spawn")
    slots = spawn.Queue()
    for slot in range(options.jobs):
        slots.put(slot)
    with ProcessPoolExecutor(options.jobs, spawn, _settle, (slots, options.jobs)) as pool:
        print(f"With {', '.join(said)}; jax {jax.__version__} on {pool.submit(_device_kind).result()}.\n")
        print("| row | parameters | " + " | ".join(languages) + " | CPU seconds a run |")
        print("|---|---|" + "---|" * (len(languages) + 1), flush=True)
        for made in pool.map(line, rows):
            print(made, flush=True)


def table_line(experiment: str, languages: list[str], overrides: list[list[str]], row: str) -> str:
    """The line of a row: a run for each of `overrides` in every language."""
    since = time.process_time()
    cells, sizes = [], {}
    for language in languages:
        runs = [run(experiment, row, language, values) for values in overrides]
        parameters, valid, test = min(runs, key=lambda made: made[1]["loss"])
        sizes[f"{parameters:,}"] = None  # a set in order: languages may have models of their own
        tests = ", ".join(f"{100 * made[2]['accuracy']:.2f}" for made in runs)
        cells.append(f"{100 * test['accuracy']:.2f} ({100 * valid['accuracy']:.2f}) of {tests}")
    seconds = (time.process_time() - since) / (len(languages) * len(overrides))
    return f"| `{row}` | {', '.join(sizes)} | {' | '.join(cells)} | {seconds:.0f} |"


def run(
    experiment_name: str, row: str, language: str, overrides: list[str]
) -> tuple[int, dict[str, float], dict[str, float]]:
    """(parameters, metrics of the validation split, of the test split) of one run."""
    since = time.process_time()
    config = _config(experiment_name, row, language, overrides)
    setup = make_setup(config)
    model, task = setup.model, setup.task
    step = _compiled(make_train_step(model, task, setup.traits, None))
    key_params, key_steps = jax.random.split(jax.random.key(config.seed))
    params = _init(model)(key_params)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = init_train_state(params, setup.hparams, setup.traits, key_steps)
    for index in range(config.train.steps):
        state, _, _ = step(state, (), setup.batches.batch(index))
    valid, test = (evaluate_split(setup, config, state.params, split) for split in ("valid", "test"))
    seconds = time.process_time() - since
    print(
        f"{experiment_name}.py:{row}@{language} {' '.join(overrides)}: valid {describe(task, valid)}; "
        f"test {describe(task, test)}; {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return parameters, valid, test


def _config(experiment, row, language, overrides):
    return apply_overrides(load_config(f"{FOLDER / experiment}.py:{row}@{language}"), overrides)


def _settle(slots, jobs):
    """Let a process have its part of the machine."""
    share = share_of(slots.get(), jobs, visible_gpus())
    os.environ.update(share.environment)
    if share.cores:
        os.sched_setaffinity(0, share.cores)


def _device_kind():
    return jax.devices()[0].device_kind


@functools.cache
def _compiled(step):
    return jax.jit(step, donate_argnums=(0,))


@functools.cache
def _init(model):
    return jax.jit(functools.partial(init_params, model))


if __name__ == "__main__":
    main()
