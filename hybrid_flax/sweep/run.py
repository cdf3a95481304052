"""A sweep from the command to its table: read it, check it, claim, launch, watch, prune, report."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console

from hybrid_flax.config import ConfigError, apply_overrides, flatten, load_experiment
from hybrid_flax.sweep.executor import Ended, Executor
from hybrid_flax.sweep.search import SEARCHES, Record, Row, Search, Ticket, make_pruner, open_study
from hybrid_flax.sweep.space import as_space, space_size
from hybrid_flax.sweep.trials import (
    Trial,
    TrialFolder,
    check_config,
    check_space,
    expand_rows,
    make_trial,
    make_trials,
    read_status,
    sweep_rows,
)
from hybrid_flax.sweep.view import View, write_tables
from hybrid_flax.train.writers import read_jsonl

__all__ = ["Outcome", "Plan", "read_sweep", "run_sweep"]

_PAUSE = 0.2  # seconds between two looks at the trials
_PAUSE_IDLE = 1.0  # between two looks for work where there was none


class Plan(NamedTuple):
    """A sweep that can run.

    experiment: the spec of the config file. base: the config that rows change. trials: those of a grid. space: the
    row that is searched otherwise, by `method`, for `num_trials` trials.
    """

    experiment: str
    base: ConfigDict
    method: str
    trials: Sequence[Trial]
    space: Row | None
    num_trials: int


class Outcome(NamedTuple):
    """How a sweep ended.

    code: of the process: 0, 1 where a trial failed, 128 + signal after SIGTERM or Ctrl-C. records: its trials by
    number.
    """

    code: int
    records: list[Record]


def read_sweep(
    spec: str, overrides: Sequence[str], names: Sequence[str] = (), method: str = "grid", num_trials: int | None = None
) -> Plan:
    """The sweep of `path.py[:arg]` with `--config` overrides, all of it checked. Raises ConfigError in one line.

    names: of its sweep_NAME functions; none: sweep(). num_trials: to search for; of a grid, the first so many.
    """
    if method not in SEARCHES:
        raise ConfigError(f"--search={method!r} is none of {', '.join(SEARCHES)}")
    if num_trials is not None and num_trials < 1:
        raise ConfigError(f"--trials={num_trials} must be at least 1")
    module, config = load_experiment(spec)
    base = apply_overrides(config, overrides)
    given = [text.partition("=")[0] for text in overrides]
    rows = sweep_rows(module, names)
    if method == "grid":
        trials = make_trials(base, expand_rows(rows)[:num_trials], given)
        return Plan(spec, base, method, trials, None, len(trials))
    if num_trials is None:
        raise ConfigError(f"--search={method} needs --trials=N: how many to try")
    try:
        space = as_space(rows)
    except ValueError as error:
        raise ConfigError(f"--search={method}: {error}") from error
    check_space(base, space, given)
    size = space_size(space, num_trials)
    if size < num_trials:
        raise ConfigError(f"--trials={num_trials}: the search space has only {size}; --search=grid tries them all")
    return Plan(spec, base, method, (), space, num_trials)


def run_sweep(
    plan: Plan,
    workdir: Path,
    executor: Executor,
    *,
    pruner: str = "none",
    storage: str | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> Outcome:
    """Train every trial of the plan that is not finished, each in its folder under `workdir`.

    Goes on where an earlier sweep of the same plan, ended in any way, stopped; other workers may be at it. SIGTERM and
    Ctrl-C leave nothing running. Raises ConfigError where the folder or the storage holds another sweep.
    """
    chosen = make_pruner(pruner, plan.base.eval.every, plan.base.train.steps)
    study = open_study(workdir, storage, _identity(plan), plan.base.eval.metric)
    with ExitStack() as stack:
        search = Search(
            study,
            chosen,
            make=lambda values: make_trial(plan.base, values),
            check=lambda trial: check_config(trial.config),
            trials=plan.trials,
            space=plan.space,
            num_trials=plan.num_trials,
            method=plan.method,
            seed=seed,
        )
        stack.callback(search.close)
        stop = stack.enter_context(_catch_signals())
        view = stack.enter_context(View(search.num_trials, executor.slots, plan.base.eval.metric, console))
        worker = _Worker(plan, workdir, executor, search, view)
        try:
            worker.work(stop)
        finally:
            worker.leave()
        records = search.records()
        write_tables(records, workdir, plan.base.eval.metric)
        view.finish(records, workdir, stop.number)
    failed = any(record.state == "failed" for record in records)
    return Outcome(int(failed) if stop.number is None else 128 + stop.number, records)


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


class _Worker:
    def __init__(self, plan: Plan, workdir: Path, executor: Executor, search: Search, view: View):
        self._plan, self._workdir = plan, workdir
        self._executor, self._search, self._view = executor, search, view
        self._metric = plan.base.eval.metric
        self._active: dict[int, _Active] = {}
        self._look_again = 0.0

    def work(self, stop: "_Stop") -> None:
        """Until all trials have ended, those of other workers too, or until told to stop."""
        while stop.number is None:
            idle = self._fill()
            if idle and not self._active:
                if self._search.is_over():
                    return
                self._view.waits()
            for active in list(self._active.values()):
                self._watch(active)
                ended = self._executor.poll(active.job)
                if ended is not None:
                    self._end(active, ended)
            self._view.update(self._search.records, self._active)
            time.sleep(_PAUSE)

    def leave(self) -> None:
        """End what runs; what got to its end in the meantime is finished, the rest is for the next."""
        self._executor.close()
        for active in list(self._active.values()):
            self._watch(active)
            if read_status(active.folder.path, self._metric).state == "done":
                self._end(active, Ended(0))
            else:
                self._search.release(active.ticket)
        self._active.clear()

    def _fill(self):
        """Start trials while there is room; whether there was none to start."""
        while len(self._active) < self._executor.slots:
            if time.monotonic() < self._look_again:
                return True
            ticket = self._search.next()
            if ticket is None:
                self._look_again = time.monotonic() + _PAUSE_IDLE
                return True
            self._start(ticket)
        return False

    def _start(self, ticket):
        folder = TrialFolder(self._workdir / ticket.trial.name)
        output_from = folder.output.stat().st_size if folder.output.exists() else 0
        active = _Active(ticket, folder, None, output_from)
        if read_status(folder.path, self._metric).state == "done":  # its worker died too soon
            self._watch(active)
            self._end(active, Ended(0))
            return
        folder.prepare(ticket.trial, self._plan.experiment)
        active.job = self._executor.submit(folder)
        self._active[ticket.number] = active
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
        name, last = f"eval/{self._metric}", active.ticket.trial.config.train.steps
        for row in read_jsonl(active.folder.metrics):
            active.step = row["step"]
            if name not in row:
                continue
            active.value = row[name]
            hopeless = self._search.report(active.ticket, row["step"], row[name])
            if hopeless and not active.pruned and row["step"] < last:
                active.pruned = True
                if active.job is not None:
                    self._executor.cancel(active.job)

    def _end(self, active, ended):
        self._active.pop(active.ticket.number, None)
        self._watch(active)
        status = read_status(active.folder.path, self._metric)
        if status.state == "done":
            assert status.value is not None
            if math.isnan(status.value):
                self._search.fail(active.ticket, f"its {self._metric} on the validation split is not a number")
            else:
                self._search.complete(active.ticket, status.value)
        elif active.pruned:
            active.folder.write_outcome("pruned", active.step)
            self._search.prune(active.ticket)
        else:
            reason = ended.reason or _why(ended.code, active.folder.output, active.output_from)
            active.folder.write_outcome("failed", active.step, reason)
            self._search.fail(active.ticket, reason)
        self._view.ended(active.ticket, self._search.records(), time.monotonic() - active.since)


def _identity(plan):
    """What a sweep folder is bound to; the rows of a grid may grow."""
    space = {key: repr(value) for key, value in (plan.space or {}).items()}
    return {**flatten(plan.base), "search": space or "grid"}


def _why(code, output, output_from):
    """Why a process ended with `code`: its last error in one line, or its signal."""
    with output.open("rb") as file:
        file.seek(output_from)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed (SIGKILL): out of memory?"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}: {lines[-1][:300] if lines else 'it printed nothing'}"


class _Stop:
    number: int | None = None


@contextmanager
def _catch_signals() -> Iterator[_Stop]:
    """Note the first SIGTERM or Ctrl-C; a second one is a KeyboardInterrupt, which kills what still runs."""
    stop, previous = _Stop(), {}

    def note(number, frame):
        if stop.number is not None:
            raise KeyboardInterrupt
        stop.number = number

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are not ours to catch
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
