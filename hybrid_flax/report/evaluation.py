"""A finished run on any split: in windows, and with carried state where the model can carry it."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hybrid_flax.config import ConfigError, few_of
from hybrid_flax.console import make_console
from hybrid_flax.data.sources import Source, cut_rows
from hybrid_flax.data.tags import span_types
from hybrid_flax.models.build import model_is_bounded
from hybrid_flax.tasks.base import Task, describe
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.evaluate import add_up, eval_length, split_batches
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.training.load import read_run
from hybrid_flax.training.parallel import Parallel, check_rows, make_parallel
from hybrid_flax.training.progress import track
from hybrid_flax.training.setup import read_source

__all__ = ["evaluate_run", "open_split", "print_classes"]


def evaluate_run(workdir: str | os.PathLike, split: str, checkpoint: str | None) -> dict[str, dict[str, float]]:
    """Print and return the metrics of a run on a split, by how the text was read: "windows", "carried".

    Raises ConfigError in one line for a split that the data has not.
    """
    run = read_run(workdir, checkpoint)
    config = run.config
    source, task, parallel = open_split(run, split)
    length = eval_length(config, source)
    how = {"windows": f"rows of at most {length} tokens, each from nothing"}
    if task.generates and model_is_bounded(run.model):
        how["carried"] = f"{config.eval.batch_size} streams with carried state"
    params = parallel.put_state(run.params)
    print(f"{workdir} after {run.step} steps, {split} split of {config.data.path}")
    if changes := RunFolder(workdir).data_changes(source):
        print(f"these are not the data that it was trained on: {few_of(changes)}")
    missed, total = source.splits[split].unknown
    if missed:
        print(f"{missed} of {total} tokens are unknown to the {config.data.tokenizer} tokenizer")
    if cut := cut_rows(source.splits[split], length):
        print(cut)
    results = {}
    for name, words in how.items():
        batches = split_batches(source, config, split, name == "carried")
        shown = partial(track, what=name)
        sums = add_up(run.model, task, params, batches, parallel, carried=name == "carried", track=shown)
        results[name] = {metric: float(value) for metric, value in task.measure(sums).items()}
        print(f"{words}: {describe(task, results[name])}")
        if "true_positive" in sums:
            print_classes(sums, run.labels + source.unseen)
    if task.generates and "carried" not in results:
        print("carried state: not for this model, the cache of full attention would grow with the text")
    return results


def open_split(run: Run, split: str) -> tuple[Source, Task, Parallel]:
    """What a run is evaluated with. Raises ConfigError in one line for a split that its data has not."""
    config = run.config
    try:
        source = read_source(config, run.tokenizer, run.labels)
        parallel = make_parallel(config.train.parallel)
        check_rows(parallel, config.eval.batch_size, name="eval.batch_size")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    if split not in source.splits:
        raise ConfigError(
            f"split {split!r} of {config.data.path} has nothing to evaluate; one of {', '.join(source.splits)}"
        )
    return source, make_task(config, run.labels, source.unseen), parallel


_MOST_CLASSES = 12  # whose confusion fits on a screen


def print_classes(sums: Mapping[str, Any], names: Sequence[str]) -> None:
    """Precision, recall and F1 of every class, for few classes also what each was taken for; or of every span type.

    sums: of a task's `evaluate`, with "confusion" where there are classes. names: of classes, or of tags.
    """
    spans = "confusion" not in sums
    names = span_types(names) if spans else names
    matrix = not spans and len(names) <= _MOST_CLASSES
    table = Table(title="rows are the true class" if matrix else None, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("type" if spans else "class")
    counted = "spans" if spans else "examples"
    for title in (counted, "precision %", "recall %", "F1 %", *(names if matrix else ())):
        table.add_column(title, justify="right")
    right, predicted, actual = (sums[key] for key in ("true_positive", "predicted", "actual"))
    shares = (
        right / np.maximum(predicted, 1),
        right / np.maximum(actual, 1),
        2 * right / np.maximum(predicted + actual, 1),
    )
    for place, name in enumerate(names):
        scores = (f"{100 * share[place]:.2f}" for share in shares)
        cells = (f"{count:.0f}" for count in sums["confusion"][place]) if matrix else ()
        table.add_row(name, f"{actual[place]:.0f}", *scores, *cells)
    make_console().print(table)
