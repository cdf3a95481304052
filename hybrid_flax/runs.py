"""Runs as they are used after training."""

import os
from pathlib import Path

import jax

from hybrid_flax.config import ConfigError, load_module, merge_saved
from hybrid_flax.data.tokenizers import tokenizer_from_dict
from hybrid_flax.files import read_json
from hybrid_flax.mixers.registry import mixer_options
from hybrid_flax.models.build import init_params
from hybrid_flax.tasks.base import find_metric
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.train.checkpoint import Checkpoints
from hybrid_flax.train.folder import Run, RunFolder
from hybrid_flax.train.setup import model_from_config

__all__ = ["Run", "load_run", "register_own_mixers"]


def load_run(workdir: str | os.PathLike, checkpoint: str | None = None) -> Run:
    """The model, parameters (their running mean, if the run kept one), tokenizer and config of a run.

    checkpoint: "latest" or "best" (by eval.metric on the validation split), None for what eval.best of the run says.
    Mixers of the user's own must be registered before (`register_own_mixers`).
    Raises ConfigError in one line where there is no such run or checkpoint.
    """
    folder = RunFolder(workdir)
    if not folder.config.exists():
        raise ConfigError(f"{folder.path} is no run: it has no config.json{_nearest_runs(folder.path)}")
    folder.check_format()
    if checkpoint not in (None, "latest", "best"):
        raise ConfigError(f"checkpoint={checkpoint!r} is none of latest, best")
    config = merge_saved(read_json(folder.config))
    try:
        tokenizer = tokenizer_from_dict(read_json(folder.tokenizer))
        labels = tuple(read_json(folder.labels))
        model = model_from_config(config, tokenizer.vocab_size, labels, tokenizer.num_characters)
        metric = find_metric(make_task(config, labels), config.eval.metric)
    except ValueError as error:
        raise ConfigError(f"{folder.path}: {error}") from error
    checkpoint = checkpoint or ("best" if config.eval.best else "latest")
    checkpoints = Checkpoints(folder.checkpoints, metric)
    try:
        step = checkpoints.latest() if checkpoint == "latest" else checkpoints.best()
        if step is None:
            raise ConfigError(f"{folder.path} has no {'' if checkpoint == 'latest' else 'evaluated '}checkpoint yet")
        name = "ema" if config.optim.ema_decay > 0 else "params"
        like = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        params = checkpoints.restore_part(step, ("state", name), like)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    finally:
        checkpoints.close()
    return Run(model, params, tokenizer, config, step, labels)


def register_own_mixers(workdir: str | os.PathLike) -> None:
    """Run the experiment file of a run for the mixers that it registers, where there are any that are not known yet.

    Raises ConfigError in one line where that file is needed and not there.
    """
    folder = RunFolder(workdir)
    if not folder.config.exists():
        return
    own = sorted(read_json(folder.config).get("mixers", {}).keys() - mixer_options().keys())
    if own:
        experiment = read_json(folder.about).get("experiment")
        if not experiment:
            raise ConfigError(
                f"{folder.path} has mixers of its own, {', '.join(own)}, and run.json names no experiment"
            )
        load_module(experiment)


def _nearest_runs(path):
    parent = path.parent if path.parent.is_dir() else Path("runs")
    runs = sorted(str(p.parent) for p in parent.glob("*/config.json"))
    return f"; runs here: {', '.join(runs[:5])}" if runs else ""
