"""Runs as they are used after training."""

import os
import sys

from hybrid_flax.config import ConfigError, check_trust, load_module, unknown_mixers
from hybrid_flax.files import read_json
from hybrid_flax.train.experiment_source import is_same_source, run_experiment
from hybrid_flax.train.folder import Run, RunFolder
from hybrid_flax.train.load import load_run

__all__ = ["Run", "load_run", "register_own_mixers"]


def register_own_mixers(workdir: str | os.PathLike, experiment: str | None = None, *, trust: bool = False) -> None:
    """Run `experiment` for the mixers of a run that it registers, or with `trust` the file that the folder names.

    Where that file is gone or has changed, the source that the folder keeps of it is run, and a line says so.
    Raises ConfigError in one line where the run has mixers that are not known and nothing says which file may be run: a
    folder may come from anywhere, and a file that it names is a program.
    """
    folder = RunFolder(workdir)
    if experiment is not None:
        needs = folder.config.exists() and unknown_mixers(read_json(folder.config, dict))
        if needs and not is_same_source(folder, experiment):
            print(f"{experiment} is run, which is not as {folder.experiment} keeps it", file=sys.stderr)
        load_module(experiment)
    if not folder.config.exists():
        return
    own = ", ".join(unknown_mixers(read_json(folder.config, dict)))
    if not own:
        return
    if experiment is not None:
        raise ConfigError(f"{folder.path} has mixers of its own, {own}, and {experiment} registers none of that name")
    named = folder.read_about().get("experiment")
    if not named:
        raise ConfigError(f"{folder.path} has mixers of its own, {own}, and run.json names no experiment: add --config")
    check_trust(f"{folder.path} has mixers of its own, {own}", str(named), trust)
    run_experiment(folder, str(named))
