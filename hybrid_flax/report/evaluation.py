"""A finished run on any split: in windows, and with carried state where the model can carry it."""

import os

import numpy as np

from hybrid_flax.config import ConfigError
from hybrid_flax.models.build import model_is_bounded
from hybrid_flax.report.finish import format_metrics
from hybrid_flax.runs import load_run
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.train.evaluate import evaluate
from hybrid_flax.train.experiment import read_tokens
from hybrid_flax.train.parallel import check_rows, make_parallel

__all__ = ["evaluate_run"]


def evaluate_run(workdir: str | os.PathLike, split: str, checkpoint: str) -> dict[str, dict[str, float]]:
    """Print and return the metrics of a run on a split, by how the text was read: "windows", "carried".

    Raises ConfigError in one line for a split that the data has not.
    """
    run = load_run(workdir, checkpoint)
    config = run.config
    try:
        _, tokens = read_tokens(config.data, run.tokenizer)
        parallel = make_parallel(config.train.parallel)
        check_rows(parallel, config.eval.batch_size, name="eval.batch_size")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    filled = [name for name in tokens if len(tokens[name].ids)]
    if split not in filled:
        raise ConfigError(f"split {split!r} of {config.data.path} has no text; one of {', '.join(filled)}")
    length = config.eval.length or config.data.length
    how = {"windows": f"windows of {length}, each from nothing"}
    if model_is_bounded(run.model):
        how["carried"] = f"{config.eval.batch_size} streams with carried state"
    params = parallel.put_state(run.params)
    print(f"{workdir} after {run.step} steps, {split} split of {config.data.path}")
    unknown = run.tokenizer.unknown_id
    if unknown is not None and (missed := int(np.sum(tokens[split].ids == unknown))):
        print(f"{missed} of {len(tokens[split].ids)} tokens are unknown to the {config.data.tokenizer} tokenizer")
    results = {}
    for name, words in how.items():
        results[name] = evaluate(
            run.model,
            make_language_modelling(config.loss.name),
            params,
            tokens[split],
            parallel,
            batch_size=config.eval.batch_size,
            length=length,
            carried=name == "carried",
        )
        print(f"{words}: {format_metrics(results[name])}")
    if "carried" not in results:
        print("carried state: not for this model, the cache of full attention would grow with the text")
    return results
