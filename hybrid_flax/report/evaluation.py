"""A finished run on any split: in windows, and with carried state where the model can carry it."""

import os

from hybrid_flax.config import ConfigError
from hybrid_flax.models.build import model_is_bounded
from hybrid_flax.runs import load_run
from hybrid_flax.train.evaluate import evaluate
from hybrid_flax.train.experiment import make_task, read_source
from hybrid_flax.train.parallel import check_rows, make_parallel

__all__ = ["evaluate_run"]


def evaluate_run(workdir: str | os.PathLike, split: str, checkpoint: str) -> dict[str, dict[str, float]]:
    """Print and return the metrics of a run on a split, by how the text was read: "windows", "carried".

    Raises ConfigError in one line for a split that the data has not.
    """
    run = load_run(workdir, checkpoint)
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
    task = make_task(config, run.labels)
    length = config.eval.length or config.data.length
    how = {"windows": f"rows of at most {length} tokens, each from nothing"}
    if task.generates and model_is_bounded(run.model):
        how["carried"] = f"{config.eval.batch_size} streams with carried state"
    params = parallel.put_state(run.params)
    print(f"{workdir} after {run.step} steps, {split} split of {config.data.path}")
    missed, total = source.splits[split].unknown
    if missed:
        print(f"{missed} of {total} tokens are unknown to the {config.data.tokenizer} tokenizer")
    results = {}
    for name, words in how.items():
        results[name] = evaluate(
            run.model,
            task,
            params,
            source.splits[split].batches(config.eval.batch_size, length, name == "carried"),
            parallel,
            carried=name == "carried",
        )
        print(f"{words}: {task.describe(results[name])}")
    if task.generates and "carried" not in results:
        print("carried state: not for this model, the cache of full attention would grow with the text")
    return results
