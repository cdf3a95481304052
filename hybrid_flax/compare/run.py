"""Running a comparison: every cell in a process of its own, a few at a time, from wherever it was left."""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import jax

from hybrid_flax.compare.cells import cell_log, devices_of, fail, next_run, read_entry, retry_failures, run_cell
from hybrid_flax.compare.definition import Cell, Definition, make_cells
from hybrid_flax.compare.progress import Display
from hybrid_flax.compare.results import Comparison, Entry, Row, write_comparison
from hybrid_flax.compare.tables import write_tables
from hybrid_flax.config import ConfigError, call_experiment, load_module
from hybrid_flax.train.machine import share_of, visible_gpus

__all__ = ["Stopped", "plan_comparison", "run_comparison"]

_PATIENCE = 120.0  # seconds that a stopped cell gets to save: it may be compiling
_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")


class Stopped(Exception):
    """A signal asked to stop; what was done is on disk."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; run the same command to go on")
        self.signal_number = signal_number


def plan_comparison(spec: str, overrides: Sequence[str] = ()) -> tuple[str, list[Cell]]:
    """(title, cells) of `get_compare(arg)` in the experiment file `path.py[:arg]`, all checked.

    Raises ConfigError in one line for whatever cannot run.
    """
    module, arg = load_module(spec)
    definition = call_experiment(module, "get_compare", arg, Definition)
    return definition.title, list(make_cells(definition, overrides))


def run_comparison(
    title: str, cells: Sequence[Cell], spec: str, workdir: str | os.PathLike, jobs: int = 1
) -> Comparison:
    """Do all runs that are not done, `jobs` cells at a time.

    compare.json, compare.csv and compare.md are written anew after every run. A run that fails is noted and the others
    go on. Raises Stopped after SIGTERM or Ctrl-C, once nothing runs any more and everything is saved.
    """
    workdir = Path(workdir)
    _open(workdir)
    for cell in cells:
        retry_failures(cell, workdir)
    entries = {cell.name: read_entry(cell, workdir) for cell in cells}
    waiting = deque(cell for cell in cells if next_run(cell, workdir) is not None)
    with Display(title, cells, workdir, jobs) as display, _processes(jobs) as pool:
        while (waiting or pool.running) and pool.stopped_by is None:
            while waiting and len(pool.running) < jobs:
                pool.start(waiting.popleft(), spec, workdir)
            looked_at = list(pool.running.values())
            for cell, exit_code in pool.ended():
                # A process ends well unless something ended it from outside, or it could not even begin.
                if exit_code and pool.stopped_by is None and (run := next_run(cell, workdir)):
                    fail(run, workdir, _reason(exit_code, cell_log(cell, workdir)), final=False)
                    waiting.extendleft([cell] if next_run(cell, workdir) else [])
            moved = display.update(looked_at, [cell.name for cell in pool.running.values()])
            entries |= {cell.name: read_entry(cell, workdir) for cell in moved}
            if moved:
                _write(title, cells, entries, workdir)
    comparison = _write(title, cells, {cell.name: read_entry(cell, workdir) for cell in cells}, workdir)
    if pool.stopped_by is not None:
        raise Stopped(pool.stopped_by)
    return comparison


class _Pool:
    """The processes of the cells at work, at most `slots`, and the signal that asked them to stop, if one did."""

    def __init__(self, slots: int):
        self._context = multiprocessing.get_context("spawn")  # a process that has run JAX must not be forked
        self._stop = self._context.Event()
        self._slots, self._gpus = slots, visible_gpus()
        self._slot_of: dict[Any, int] = {}
        self.running: dict[Any, Cell] = {}
        self.stopped_by: int | None = None

    def start(self, cell: Cell, spec: str, workdir: Path) -> None:
        """Begin with the next run of a cell."""
        settings = {name: getattr(jax.config, name) for name in _SETTINGS}
        slot = min(set(range(self._slots)) - set(self._slot_of.values()))
        share = share_of(slot, self._slots, self._gpus)
        process = self._context.Process(target=run_cell, args=(spec, cell, workdir, settings, share, self._stop))
        process.start()
        self.running[process], self._slot_of[process] = cell, slot

    def ended(self) -> list[tuple[Cell, int]]:
        """The cells whose process has ended, with its exit code; waits half a second for one."""
        wait([process.sentinel for process in self.running], timeout=0.5)
        ended = [process for process in self.running if process.exitcode is not None]
        for process in ended:
            del self._slot_of[process]
        return [(self.running.pop(process), process.exitcode) for process in ended]

    def stop(self) -> None:
        """Ask all to save and end, and wait for it."""
        self._stop.set()
        for process in self.running:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for process in self.running:
            process.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End whatever still runs."""
        for process in self.running:
            process.kill()
            process.join()


@contextmanager
def _processes(slots: int) -> Iterator[_Pool]:
    """A pool that is empty in the end. SIGTERM and Ctrl-C ask it to stop; a second one does not wait for it."""
    pool, previous = _Pool(slots), {}

    def note(number, frame):
        if pool.stopped_by is not None:
            raise KeyboardInterrupt
        pool.stopped_by = number

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
        try:
            yield pool
        finally:
            pool.stop()
    finally:
        pool.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open(workdir):
    try:
        for folder in ("runs", "cells"):
            (workdir / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{workdir} cannot be the folder of a comparison: {error.strerror}") from error


def _write(title, cells, entries: Mapping[str, Entry], workdir) -> Comparison:
    """compare.json and the tables, rows before columns."""
    names = list(dict.fromkeys(cell.row for cell in cells))
    of_row = {name: [cell for cell in cells if cell.row == name] for name in names}
    comparison = Comparison(
        title=title,
        rows=tuple(Row(name, all(len(cell.mechanisms) == 1 for cell in of_row[name])) for name in names),
        columns=tuple(cell.column for cell in of_row[names[0]]),
        entries=tuple(entries[cell.name] for name in names for cell in of_row[name]),
        learning_rates=cells[0].learning_rates,
        seeds=len(cells[0].seeds),
        devices=", ".join(sorted({name for cell in cells for name in devices_of(cell, workdir)})),
    )
    write_comparison(comparison, workdir)
    write_tables(comparison, workdir)
    return comparison


def _reason(exit_code, log):
    """Why a process did not end well, in words."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        memory = "; perhaps there was too little memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory} (see {log})"
    return f"its process ended with exit code {exit_code} (see {log})"
