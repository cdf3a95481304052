"""What runs trials: the contract of executors, the command of a trial, and why its process died."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hybrid_flax.jobs.trial import TrialFolder

__all__ = ["Ended", "Executor", "trial_command", "trial_environment", "why"]

_CHILD = Path(__file__).with_name("child.py")
_ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """The end of a trial's process. code: its exit code, negative for a signal. reason: in words, if not code."""

    code: int
    reason: str = ""


@runtime_checkable
class Executor(Protocol):
    """Runs prepared trial folders. A job is a run of `launch.py train` on one, which goes on from its checkpoint.

    slots: how many jobs to give it at a time. A trial has ended well when its folder says so, not its exit code.
    """

    slots: int

    def submit(self, folder: TrialFolder) -> Any:
        """Start a job and return its handle."""

    def poll(self, job: Any) -> Ended | None:
        """How the job ended, None while it has not."""

    def cancel(self, job: Any) -> None:
        """Ask a job to save and end; `poll` says when it has."""

    def close(self) -> None:
        """Cancel all jobs and return when none is left."""


def trial_command(folder: TrialFolder, parent: int, cores: Sequence[int] = ()) -> list[str]:
    """The command that trains a prepared folder and ends with the process `parent` (0: on its own).

    cores: numbers of those to stay on, none for all.
    """
    train = [sys.executable, "-m", "hybrid_flax", "train", f"--config={folder.trial}", f"--workdir={folder.path}"]
    train.append("--trust")  # the experiment is that of whoever launched it
    return [sys.executable, "-P", str(_CHILD), str(parent), str(folder.launched), ",".join(map(str, cores)), *train]


def trial_environment(**changes: str) -> dict[str, str]:
    """The environment of a trial: this one's, with the package on the path."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **changes}


def why(code: int, output: Path, output_from: int = 0) -> str:
    """Why a process ended with `code`: its last error in one line, or its signal, or the last that it printed.

    output: the file that it printed into, from the byte `output_from` on.
    """
    printed = output.read_bytes()[output_from:].decode(errors="replace") if output.exists() else ""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed (SIGKILL): out of memory?"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}: {lines[-1][:300] if lines else 'it printed nothing'}"
