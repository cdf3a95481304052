"""What the folder of a trial says: whether it waits, runs or has ended, and how."""

import os
from typing import NamedTuple

from hybrid_flax.files import read_json, reading
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.locks import is_locked
from hybrid_flax.training.writers import read_jsonl

__all__ = ["Status", "read_status"]


class Status(NamedTuple):
    """What the folder of a trial says.

    state: waiting, running, done, failed or pruned. step: the last that is known of. value: the last eval.metric of the
    validation split, None before the first. reason: why it failed.
    """

    state: str
    step: int = 0
    value: float | None = None
    reason: str = ""


def read_status(path: str | os.PathLike, metric: str) -> Status:
    """What is on disk of a trial that is judged by `metric`."""
    folder = TrialFolder(path)
    name = f"eval/{metric}"
    rows = [row for row in read_jsonl(folder.metrics) if name in row]
    step, value = (rows[-1]["step"], rows[-1][name]) if rows else (0, None)
    if folder.results.exists():
        with reading(folder.results):
            results = read_json(folder.results, dict)
            return Status("done", results["last_step"], results["valid"][metric])
    if is_locked(folder.launched):
        return Status("running", step, value)
    if folder.outcome.exists():
        with reading(folder.outcome):
            outcome = read_json(folder.outcome, dict)
            return Status(outcome["state"], outcome["step"], value, outcome["reason"])
    return Status("waiting", step, value)
