"""The commands that make a run again."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from hybrid_flax.config import ConfigError, apply_overrides, check_trust, config_hash, flatten, load_config, with_values
from hybrid_flax.files import reading
from hybrid_flax.flags import command
from hybrid_flax.training.course import ENDS, check_course
from hybrid_flax.training.experiment_source import is_same_source, kept_modules
from hybrid_flax.training.folder import RunFolder

__all__ = ["Command", "reproduce_command"]


class Command(NamedTuple):
    """text: for a shell, with the git revision to check out, and the source of the experiment to restore.

    arguments: of the command line, for one command after another. copies: files or folders (from, to) that they need.
    """

    text: str
    arguments: list[list[str]]
    copies: list[tuple[Path, Path]]

    def restore(self) -> None:
        """Make the copies, and let this process import from them."""
        for source, target in self.copies:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
        if len(self.copies) > 1:
            sys.path.insert(0, str(self.copies[0][1].parent.absolute()))


def reproduce_command(
    run: str | os.PathLike, workdir: str | None = None, experiment: str | None = None, *, trust: bool = False
) -> Command:
    """The commands of a run: its experiment, and an override for every value that the file has not (any more).

    workdir: the folder to train in; RUN-again by default. experiment: the file to run for its config; with `trust` it
    is the one that the folder names, or the source that the folder keeps of it, where no git revision has that: it is
    restored beside the folder to train in. Where the run went on to another end by another schedule there is a command
    for each end. The config that the experiment makes is compared with the run's: raises ConfigError where no overrides
    lead there, where the folder is no run, and where nothing says which file may be run.
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
    again, revision = workdir or f"{folder.path}-again", str(about.get("git_revision") or "")
    experiment, source, copies = _source(folder, experiment, named, revision, again)
    with kept_modules(folder) if copies else nullcontext():  # copies: only of a folder that is trusted
        now = load_config(source)
    saved = folder.read_config()
    overrides = _overrides(now, saved, experiment, folder)
    commands: list[list[str]] = []
    for ends in _ends(folder, about, saved):
        changes = [f"--config.{key}={text}" for key, text in (overrides | ends).items()]
        goes_on = ["--changed_schedule"] * bool(commands)
        commands.append(["train", f"--config={experiment}", *changes, f"--workdir={again}", *goes_on])
    with reading(folder.about):
        where = f"{about['devices']}, Python {about['python']}, jax {about['versions']['jax']}; {Path(run).name}"
    place = shlex.quote(str(copies[0][1].parent)) if len(copies) > 1 else ""
    path = f"PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}} " if place else ""
    lines = [
        *_checkout(revision),
        *_restoring(copies),
        *(path + shlex.join([*command().split(), *arguments]) for arguments in commands),
        f"# {' '.join(where.split())}",
    ]
    return Command("\n".join(lines), commands, copies)


def _overrides(now, saved, experiment, folder):
    """{key: text} that lead from config `now` to `saved`."""
    old = flatten(now)
    overrides = {key: _text(value) for key, value in flatten(saved).items() if old.get(key, ...) != value}
    try:
        reached = config_hash(apply_overrides(now, [f"{key}={text}" for key, text in overrides.items()]))
    except ConfigError:
        reached = None
    if reached != config_hash(saved):
        raise ConfigError(f"{experiment} has changed, and no --config.NAME=VALUE leads to {folder.config}")
    return overrides


def _source(folder, given, named, revision, again):
    """(experiment to name, experiment to run for its config, copies that put the one where it is named)."""
    if given is not None:
        return given, given, []
    file, colon, arg = named.partition(":")
    if not folder.experiment.is_file() or (is_same_source(folder, named) and _is_in_revision(folder, revision, file)):
        return named, named, []
    place = Path(f"{again}-source")
    copies = [(folder.experiment, place / Path(file).name)]
    copies += [(path, place / path.name) for path in sorted(folder.modules.glob("*"))]
    return f"{copies[0][1]}{colon}{arg}", f"{folder.experiment}{colon}{arg}", copies


def _is_in_revision(folder, revision, file):
    """Whether a git revision holds the source of the experiment; True where there is none, and the file is all."""
    bare = revision.removesuffix("+changes")
    if not re.fullmatch("[0-9a-f]{7,64}", bare):
        return True
    path = Path(file)
    try:
        words = ["git", "show", f"{bare}:./{path.name}"]
        show = subprocess.run(words, cwd=path.parent, capture_output=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return False
    return show.stdout == folder.experiment.read_bytes()


def _checkout(revision):
    if not revision:
        return []
    changed = " # and it had changes that were not committed" if revision.endswith("+changes") else ""
    return [f"git checkout {shlex.quote(revision.removesuffix('+changes'))}{changed}"]


def _restoring(copies):
    if not copies:
        return []
    lines = [f"mkdir -p -- {shlex.quote(str(copies[0][1].parent))}"]
    return lines + [shlex.join(["cp", "-r", "--", str(source), str(target)]) for source, target in copies]


def _ends(folder, about, saved):
    """Changes of the knobs of `ENDS` for each command, in order; ends that left the schedule as it is need none."""
    ends = []
    for end in about.get("earlier_ends", []):
        with reading(folder.about):
            before = with_values(saved, {key: end[key] for key in ENDS})
            if not check_course(folder.path, before, saved, int(end["step"]), changed_schedule=True):
                continue
            if int(end["step"]) < int(end["train.steps"]) and not end["train.patience"]:
                raise ConfigError(
                    f"{folder.path} was cut off at step {end['step']} of {end['train.steps']} and went on by another "
                    "schedule: no command does that again"
                )
            ends.append({key: _text(end[key]) for key in ENDS})
    return [*ends, {}]


def _text(value):
    return json.dumps(value) if isinstance(value, list | bool) else str(value)
