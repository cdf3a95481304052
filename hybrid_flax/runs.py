"""Runs as they are used after training."""

import os
import sys
from pathlib import Path

import jax

from hybrid_flax.config import ConfigError, check_trust, load_module, unregistered
from hybrid_flax.files import read_json
from hybrid_flax.models.build import init_params
from hybrid_flax.tasks.base import find_metric
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.train.checkpoint import Checkpoints, Damaged
from hybrid_flax.train.folder import Run, RunFolder
from hybrid_flax.train.setup import model_from_config

__all__ = ["Run", "load_run", "register_own"]


def load_run(workdir: str | os.PathLike, checkpoint: str | None = None) -> Run:
    """The model, parameters (their running mean, if the run kept one), tokenizer and config of a run.

    checkpoint: "latest" or "best" (by eval.metric on the validation split), None for what eval.best of the run says.
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
    checkpoint = checkpoint or ("best" if config.eval.best else "latest")
    name = "ema" if config.optim.ema_decay > 0 else "params"
    like = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
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


def register_own(workdir: str | os.PathLike, experiment: str | None = None, *, trust: bool = False) -> None:
    """Run `experiment` for what it registers of a run's, or with `trust` the file that the folder names.

    Raises ConfigError in one line where the run needs what is not registered and nothing says which file may be run: a
    folder may come from anywhere, and a file that it names is a program.
    """
    folder = RunFolder(workdir)
    if experiment is not None:
        load_module(experiment)
    if not folder.config.exists():
        return
    own = ", ".join(unregistered(read_json(folder.config, dict)))
    if own and experiment is not None:
        raise ConfigError(f"{folder.path} needs {own}, and {experiment} registers none of that name")
    named = folder.read_about().get("experiment") if own or (trust and folder.about.exists()) else None
    if own and not named:
        raise ConfigError(f"{folder.path} needs {own}, and run.json names no experiment: add --config")
    if own:
        check_trust(f"{folder.path} needs {own}", str(named), trust)
    if own or (trust and named and Path(str(named).partition(":")[0]).is_file()):
        load_module(str(named))  # also for readers and hooks, of which a config does not speak


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
