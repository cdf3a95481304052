"""Working off a queue: claim a trial, launch it, watch it, prune it, note how it ended."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.jobs.executor import Ended, Executor, why
from hybrid_flax.jobs.queue import LOST, Queue, Standing, Ticket
from hybrid_flax.jobs.status import read_status
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.jobs.view import View
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.signals import stop_on_signals
from hybrid_flax.training.writers import read_jsonl

__all__ = ["work_off"]

_PAUSE = 0.2  # seconds between two looks at the trials
_PAUSE_IDLE = 1.0  # between two looks for work where there was none


def work_off(
    queue: Queue,
    executor: Executor,
    workdir: Path,
    experiment: str,
    view: View,
    on_end: Callable[[Sequence[Standing]], object] = lambda standings: None,
) -> int | None:
    """Train the trials of a queue, each in its folder under `workdir`, until all have ended, those of others too.

    Goes on where an earlier worker, ended in any way, stopped; others may be at it. SIGTERM and Ctrl-C leave nothing
    running. experiment: the file and argument that the configs are from, for what it registers. on_end: called after
    every trial that ends here. Returns the signal that asked to stop, None where none did.
    """
    with stop_on_signals() as stop:
        worker = _Worker(queue, executor, workdir, experiment, view, on_end)
        try:
            worker.work(stop)
        except LOST as error:
            raise ConfigError(f"--storage is lost: {one_line(error)}") from error
        finally:
            worker.leave()
    return stop.number


@dataclass
class _Active:
    """A trial that this worker trains."""

    ticket: Ticket
    folder: TrialFolder
    job: Any
    output_from: int  # where the output of this job begins
    seen: tuple[int, int] = (0, 0)  # size and time of the metrics at the last look
    step: int = 0
    value: float | None = None
    pruned: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def metric(self) -> str:
        return self.ticket.trial.config.eval.metric


class _Worker:
    def __init__(self, queue, executor, workdir, experiment, view, on_end):
        self._queue, self._executor, self._view = queue, executor, view
        self._workdir, self._experiment, self._on_end = workdir, experiment, on_end
        self._active: dict[str, _Active] = {}
        self._look_again = 0.0

    def work(self, stop: Any) -> None:
        """Until all trials have ended, those of other workers too, or until told to stop."""
        while stop.number is None:
            idle = self._fill()
            if idle and not self._active:
                if self._queue.is_over():
                    return
                self._view.waits()
            for active in list(self._active.values()):
                self._watch(active)
                ended = self._executor.poll(active.job)
                if ended is not None:
                    self._end(active, ended)
            self._view.update(self._queue.standings, self._active)
            time.sleep(_PAUSE)

    def leave(self) -> None:
        """End what runs; what got to its end in the meantime is finished, the rest is for the next."""
        self._executor.close()
        with contextlib.suppress(LOST):  # and with it the claims
            for active in list(self._active.values()):
                self._watch(active)
                if read_status(active.folder.path, active.metric).state == "done":
                    self._end(active, Ended(0))
                else:
                    active.ticket.queue.release(active.ticket)
        self._active.clear()

    def _fill(self):
        """Start trials while there is room; whether there was none to start."""
        while len(self._active) < self._executor.slots:
            if time.monotonic() < self._look_again:
                return True
            ticket = self._queue.next()
            if ticket is None:
                self._look_again = time.monotonic() + _PAUSE_IDLE
                return True
            self._start(ticket)
        return False

    def _start(self, ticket):
        folder = TrialFolder(self._workdir / ticket.trial.name)
        output_from = folder.output.stat().st_size if folder.output.exists() else 0
        active = _Active(ticket, folder, None, output_from)
        if read_status(folder.path, active.metric).state == "done":  # its worker died too soon
            self._watch(active)
            self._end(active, Ended(0))
            return
        folder.prepare(ticket.trial, self._experiment)
        active.job = self._executor.submit(folder)
        self._active[ticket.trial.name] = active
        self._view.started(ticket)

    def _watch(self, active):
        """Report what the trial has written since the last look, and stop it where the pruner says so."""
        try:
            stat = active.folder.metrics.stat()
        except FileNotFoundError:
            return
        if active.seen == (stat.st_size, stat.st_mtime_ns):
            return
        active.seen = (stat.st_size, stat.st_mtime_ns)
        name, last = f"eval/{active.metric}", active.ticket.trial.config.train.steps
        for row in read_jsonl(active.folder.metrics):
            active.step = row["step"]
            if name not in row:
                continue
            active.value = row[name]
            hopeless = active.ticket.queue.report(active.ticket, row["step"], row[name])
            if hopeless and not active.pruned and row["step"] < last:
                active.pruned = True
                if active.job is not None:
                    self._executor.cancel(active.job)

    def _end(self, active, ended):
        self._active.pop(active.ticket.trial.name, None)
        self._watch(active)
        status = read_status(active.folder.path, active.metric)
        if status.state == "done":
            assert status.value is not None
            if math.isnan(status.value):
                active.ticket.queue.fail(active.ticket, f"its {active.metric} on the validation split is not a number")
            else:
                active.ticket.queue.complete(active.ticket, status.value)
        elif active.pruned:
            active.folder.write_outcome("pruned", active.step)
            active.ticket.queue.prune(active.ticket)
        else:
            reason = ended.reason or why(ended.code, active.folder.output, active.output_from)
            active.folder.write_outcome("failed", active.step, reason)
            active.ticket.queue.fail(active.ticket, reason, final=ended.code == TrainingFailed.exit_code)
        if active.job is None:
            return  # another worker trained it
        standings = self._queue.standings()
        self._view.ended(active.ticket, standings, time.monotonic() - active.since)
        self._on_end(standings)
