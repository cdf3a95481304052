"""The command that makes a run again."""

import json
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from hybrid_flax.config import ConfigError, apply_overrides, config_hash, flatten, load_config, merge_saved
from hybrid_flax.files import read_json
from hybrid_flax.train.folder import RunFolder

__all__ = ["Command", "reproduce_command"]


class Command(NamedTuple):
    """text: for a shell, with the git revision to check out. arguments: of launch.py."""

    text: str
    arguments: list[str]


def reproduce_command(run: str | os.PathLike, workdir: str | None = None) -> Command:
    """The command of a run: its experiment, and an override for every value that the file has not (any more).

    workdir: the folder to train in; RUN-again by default. The config that it makes is compared with the run's: raises
    ConfigError where no overrides lead there, or where the folder is no run.
    """
    folder = RunFolder(run)
    if not folder.config.exists():
        raise ConfigError(f"{folder.path} is no run: it has no config.json")
    about = read_json(folder.about)
    if not about.get("experiment"):
        raise ConfigError(f"{folder.path} was not launched from an experiment file: its run.json names none")
    now = load_config(about["experiment"])
    saved = merge_saved(read_json(folder.config))
    old, new = flatten(now), flatten(saved)
    overrides = [f"{key}={_text(value)}" for key, value in new.items() if old.get(key, ...) != value]
    try:
        reached = config_hash(apply_overrides(now, overrides))
    except ConfigError:
        reached = None
    if reached != config_hash(saved):
        raise ConfigError(f"{about['experiment']} has changed, and no --config.NAME=VALUE leads to {folder.config}")
    again = workdir or f"{folder.path}-again"
    arguments = ["train", f"--config={about['experiment']}", *(f"--config.{text}" for text in overrides)]
    arguments.append(f"--workdir={again}")
    lines = [shlex.join(["python", "launch.py", *arguments])]
    revision = about.get("git_revision")
    if revision:
        changed = " (and it had changes that were not committed)" if revision.endswith("+changes") else ""
        lines.insert(0, f"git checkout {revision.removesuffix('+changes')}{' #' if changed else ''}{changed}")
    lines.append(f"# {about['devices']}, Python {about['python']}, jax {about['versions']['jax']}; {Path(run).name}")
    return Command("\n".join(lines), arguments)


def _text(value):
    return json.dumps(value) if isinstance(value, list | bool) else str(value)
