"""Trials: the runs of a sweep or a comparison, and their folders."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hybrid_flax.files import write_json
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.units import printable

__all__ = ["Trial", "TrialFolder", "values_text"]


class Trial(NamedTuple):
    """One run among many. name: its folder, and unique among them. values: what sets it apart from the others."""

    name: str
    values: Mapping[str, Any]
    config: ConfigDict


class TrialFolder(RunFolder):
    """Paths of a trial's run folder: those of a run, and what whoever launched it keeps there.

    trial.json (the experiment file and the config, as `launch.py --config` takes it), output.log, outcome.json (why it
    failed, or where it was pruned), launched.lock (held by the process that was launched for it, from its start on).
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self.trial = self.path / "trial.json"
        self.output = self.path / "output.log"
        self.outcome = self.path / "outcome.json"
        self.launched = self.path / "launched.lock"

    def prepare(self, trial: Trial, experiment: str) -> None:
        """Make the folder with the config to train."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.outcome.unlink(missing_ok=True)
        write_json(
            self.trial, {"experiment": experiment, "values": dict(trial.values), "config": trial.config.to_dict()}
        )

    def write_outcome(self, state: str, step: int, reason: str = "") -> None:
        """Note how the trial ended where it did not reach its last step."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.outcome, {"state": state, "step": step, "reason": reason})


def values_text(values: Mapping[str, Any]) -> str:
    """The values of a trial in one line, as the command line has them: texts of values that differ do too."""
    return " ".join(f"{key}={_text(value)}" for key, value in values.items()) or "the config as it is"


def _text(value):
    return printable(f"{value:.6g}" if isinstance(value, float) and float(f"{value:.6g}") == value else str(value))
