"""A saved run, read from its folder."""

import os
import sys
from pathlib import Path

import jax

from hybrid_flax.errors import ConfigError
from hybrid_flax.models.build import abstract_params
from hybrid_flax.tasks.base import find_metric
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.checkpoint import Checkpoints, Damaged
from hybrid_flax.training.config_model import model_from_config
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.training.weights import read_weights

__all__ = ["read_run"]


def read_run(workdir: str | os.PathLike, checkpoint: str | None = None) -> Run:
    """The model, parameters (their running mean, if the run kept one), tokenizer and config of a run.

    workdir: a run folder, or an exported one. checkpoint: "latest" or "best" (by eval.metric on the validation split),
    None for what eval.best of the run says; where there are weights alone, these.
    What is the user's own must be registered before (`register_own`). Where it is damaged the newest that is
    whole is taken, and a line on stderr says so.
    Raises ConfigError in one line where there is no such run or checkpoint.
    """
    folder = RunFolder(workdir)
    if not folder.config.exists():
        raise ConfigError(f"{folder.path} is no run: it has no config.json{_nearest_runs(folder.path)}")
    if checkpoint not in (None, "latest", "best"):
        raise ConfigError(f"checkpoint={checkpoint!r} is none of latest, best")
    config, (tokenizer, labels) = folder.read_config(), folder.read_vocabulary()
    try:
        model = model_from_config(config, tokenizer.vocab_size, labels, tokenizer.num_characters)
        metric = find_metric(make_task(config, labels), config.eval.metric)
    except ValueError as error:
        raise ConfigError(f"{folder.path}: {error}") from error
    if folder.is_exported():
        params, step = read_weights(folder.weights, abstract_params(model))
        return Run(model, jax.device_put(params), tokenizer, config, step, labels)
    imported = folder.about.exists() and "imported" in folder.read_about()
    checkpoint = checkpoint or ("best" if config.eval.best and not imported else "latest")
    name = "ema" if config.optim.ema_decay > 0 else "params"
    like = abstract_params(model)
    if not folder.checkpoints.is_dir():
        raise ConfigError(f"{folder.path} has no checkpoint yet")
    checkpoints = Checkpoints(folder.checkpoints, metric)
    try:
        wanted = checkpoints.best() if checkpoint == "best" else checkpoints.latest()
        if wanted is None and not checkpoints.damaged:
            raise ConfigError(f"{folder.path} has no {'' if checkpoint == 'latest' else 'evaluated '}checkpoint yet")
        step, params = _restore_whole(checkpoints, wanted, ("state", name), like)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    finally:
        checkpoints.close()
    return Run(model, params, tokenizer, config, step, labels)


def _restore_whole(checkpoints, wanted, path, like):
    """The step and the subtree of `wanted`, or of the newest checkpoint that is whole: then a line says so."""
    others = [step for step in checkpoints.steps() if step != wanted]
    newer = [step for step in checkpoints.damaged if wanted is None or step > wanted]
    reasons = [checkpoints.damaged[step] for step in ([wanted] if wanted in checkpoints.damaged else newer)]
    for step in others if wanted not in checkpoints.steps() else [wanted, *others]:
        try:
            part = checkpoints.restore_part(step, path, like)
        except Damaged as error:
            reasons.append(str(error))
            continue
        if reasons:
            print(f"{'; '.join(reasons)}; step {step} is taken instead", file=sys.stderr)
        return step, part
    raise Damaged("; ".join(reasons))


def _nearest_runs(path):
    parent = path.parent if path.parent.is_dir() else Path("runs")
    runs = sorted(str(p.parent) for p in parent.glob("*/config.json"))
    return f"; runs here: {', '.join(runs[:5])}" if runs else ""
