"""Runs as they are used after training."""

import os
from pathlib import Path

from hybrid_flax.config import ConfigError, check_trust, load_module, unregistered
from hybrid_flax.files import read_json
from hybrid_flax.train.experiment_source import run_experiment
from hybrid_flax.train.folder import Run, RunFolder
from hybrid_flax.train.load import load_run

__all__ = ["Run", "load_run", "register_own"]


def register_own(workdir: str | os.PathLike, experiment: str | None = None, *, trust: bool = False) -> None:
    """Run `experiment` for what it registers of a run's, or with `trust` the file that the folder names.

    Where that file is gone or has changed, the source that the folder keeps of it is run, and a line says so.
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
    if own or (named and (Path(str(named).partition(":")[0]).is_file() or folder.experiment.is_file())):
        run_experiment(folder, str(named))  # with trust also for readers and hooks, of which a config does not speak
