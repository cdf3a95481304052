"""The command that makes a run again."""

import json
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from hybrid_flax.config import ConfigError, apply_overrides, check_trust, config_hash, flatten, load_config
from hybrid_flax.files import reading
from hybrid_flax.train.folder import RunFolder

__all__ = ["Command", "reproduce_command"]


class Command(NamedTuple):
    """text: for a shell, with the git revision to check out. arguments: of launch.py."""

    text: str
    arguments: list[str]


def reproduce_command(
    run: str | os.PathLike, workdir: str | None = None, experiment: str | None = None, *, trust: bool = False
) -> Command:
    """The command of a run: its experiment, and an override for every value that the file has not (any more).

    workdir: the folder to train in; RUN-again by default. experiment: the file to run for its config; with `trust` it
    is the one that the folder names. The config that it makes is compared with the run's: raises ConfigError where no
    overrides lead there, where the folder is no run, and where nothing says which file may be run.
    """
    folder = RunFolder(run)
    if not folder.config.exists():
        raise ConfigError(f"{folder.path} is no run: it has no config.json")
    about = folder.read_about()
    named = str(about.get("experiment") or "")
    if not (experiment or named):
        raise ConfigError(f"{folder.path} was not launched from an experiment file: its run.json names none")
    if experiment is None:
        check_trust(f"{folder.path} was launched from an experiment", named, trust)
    experiment = experiment or named
    now = load_config(experiment)
    saved = folder.read_config()
    old, new = flatten(now), flatten(saved)
    overrides = [f"{key}={_text(value)}" for key, value in new.items() if old.get(key, ...) != value]
    try:
        reached = config_hash(apply_overrides(now, overrides))
    except ConfigError:
        reached = None
    if reached != config_hash(saved):
        raise ConfigError(f"{experiment} has changed, and no --config.NAME=VALUE leads to {folder.config}")
    again = workdir or f"{folder.path}-again"
    arguments = ["train", f"--config={experiment}", *(f"--config.{text}" for text in overrides)]
    arguments.append(f"--workdir={again}")
    lines = [shlex.join(["python", "launch.py", *arguments])]
    revision = str(about.get("git_revision") or "")
    if revision:
        changed = " # and it had changes that were not committed" if revision.endswith("+changes") else ""
        lines.insert(0, f"git checkout {shlex.quote(revision.removesuffix('+changes'))}{changed}")
    with reading(folder.about):
        where = f"{about['devices']}, Python {about['python']}, jax {about['versions']['jax']}; {Path(run).name}"
    lines.append(f"# {' '.join(where.split())}")
    return Command("\n".join(lines), arguments)


def _text(value):
    return json.dumps(value) if isinstance(value, list | bool) else str(value)
