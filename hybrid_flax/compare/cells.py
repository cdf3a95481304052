"""The runs of a cell, as they lie on disk: which is next, what came of them, and the process that does them.

A cell is done from what is in its folders alone: whoever asks, whenever, and after whatever end, the next run is the
same one.
"""

import fcntl
import json
import multiprocessing
import os
import re
import resource
import sys
import threading
import traceback
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hybrid_flax.compare.definition import Cell
from hybrid_flax.compare.results import Entry, Failure
from hybrid_flax.config import config_hash, load_module, with_values
from hybrid_flax.train.diagnose import TrainingFailed
from hybrid_flax.train.folder import RunFolder, read_json
from hybrid_flax.train.loop import Interrupted, train
from hybrid_flax.train.writers import read_jsonl

__all__ = ["CellRun", "fail", "forget_failures", "next_run", "num_done", "num_runs", "read_entry", "run_cell"]


class CellRun(NamedTuple):
    """One run of a cell. folder: relative to that of the comparison."""

    config: ConfigDict
    folder: str

    def failure(self, workdir: Path) -> Path:
        """The file that says why it failed."""
        return workdir / self.folder / "failure.json"


def num_runs(cell: Cell) -> int:
    """How many runs a cell has where none fails; the searched run of the first seed counts once."""
    return len(cell.learning_rates) + len(cell.seeds) - 1


def num_done(cell: Cell, workdir: Path) -> int:
    """How many of `num_runs` are finished or failed."""
    return sum(_ended(run, workdir) for run in _runs(cell, workdir))


def next_run(cell: Cell, workdir: Path) -> CellRun | None:
    """The run to do now: first the search, then the seeds at the best rate; None when all are done or none can be."""
    return next((run for run in _runs(cell, workdir) if not _ended(run, workdir)), None)


def read_entry(cell: Cell, workdir: Path) -> Entry:
    """What has come of a cell so far."""
    searched = [(rate, _metrics(_run(cell, rate, cell.seeds[0]), workdir)) for rate in cell.learning_rates]
    metric = cell.column.metric
    rate = _best_rate(cell, workdir)
    runs = [] if rate is None else [(seed, _run(cell, rate, seed)) for seed in cell.seeds]
    done = [(seed, run.folder, found) for seed, run in runs if (found := _metrics(run, workdir))]
    failures = [_read_failure(run, workdir) for run in _runs(cell, workdir) if run.failure(workdir).exists()]
    rates = [
        row["perf/tokens_per_sec"]
        for _, folder, _ in done
        for row in read_jsonl(RunFolder(workdir / folder).perf)
        if "perf/tokens_per_sec" in row
    ]
    measured = {"tokens_per_sec": median(rates) if rates else None}
    if _memory_file(cell, workdir).exists():
        measured |= read_json(_memory_file(cell, workdir))
    return Entry(
        row=cell.row,
        task=cell.column.task,
        pattern=cell.config.model.pattern,
        width=cell.config.model.width,
        learning_rate=rate,
        search=tuple((rate, found["valid"][metric]) for rate, found in searched if found),
        seeds=tuple(seed for seed, _, _ in done),
        valid=tuple(found["valid"][metric] for _, _, found in done),
        test=tuple(found["test"][metric] for _, _, found in done),
        folders=tuple(folder for _, folder, _ in done),
        cost=cell.cost._replace(**measured),
        failures=tuple(failures),
    )


def fail(run: CellRun, workdir: Path, reason: str, final: bool) -> None:
    """Note that a run failed; where that is not final, another start of the comparison tries it again."""
    run.failure(workdir).parent.mkdir(parents=True, exist_ok=True)
    _write(run.failure(workdir), {"reason": " ".join(reason.split()), "final": final})


def forget_failures(cell: Cell, workdir: Path) -> None:
    """Let the runs that failed for a reason that may have gone be tried again."""
    for rate in cell.learning_rates:
        for seed in cell.seeds:
            file = _run(cell, rate, seed).failure(workdir)
            if file.exists() and not read_json(file)["final"]:
                file.unlink()


def run_cell(spec: str, cell: Cell, workdir: Path, settings: dict[str, Any], stop: Any) -> None:
    """Do the runs of a cell one after another: what a process of its own does, so that they share compiled programs.

    settings: of JAX. stop: an event after which no other run begins. Ends with SystemExit: 0 when nothing is left to
    do, 128 + signal when it was stopped. Output goes to a file for the cell.
    """
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the parent, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _files(cell, workdir)["log"].open("a", buffering=1) as log, _files(cell, workdir)["lock"].open("w") as lock:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else still writes into these folders
        for name, value in settings.items():
            jax.config.update(name, value)
        load_module(spec)
        while not stop.is_set() and (run := next_run(cell, workdir)) is not None:
            print(f"--- {run.folder}", flush=True)
            _do(run, workdir, spec)
            _note_memory(cell, workdir)


def _do(run, workdir, spec):
    try:
        train(run.config, workdir / run.folder, spec)
    except Interrupted as stopped:
        sys.exit(128 + stopped.signal_number)
    except TrainingFailed as failure:
        print(failure, flush=True)
        fail(run, workdir, str(failure), final=True)
    except Exception as error:
        traceback.print_exc()
        fail(run, workdir, f"{type(error).__name__}: {str(error)[:500]}", final=False)


def _runs(cell, workdir):
    """The runs of a cell in their order, as far as what is on disk says which those are."""
    first = [_run(cell, rate, cell.seeds[0]) for rate in cell.learning_rates]
    yield from first
    rate = _best_rate(cell, workdir)
    if rate is not None and all(_ended(run, workdir) for run in first):
        yield from (_run(cell, rate, seed) for seed in cell.seeds[1:])


def _run(cell, rate, seed) -> CellRun:
    config = with_values(cell.config, {"optim.learning_rate": rate, "seed": seed})
    return CellRun(config, f"runs/{cell.name}-lr{rate:g}-seed{seed}-{config_hash(config)}")


def _best_rate(cell, workdir):
    """The rate of the best validation metric with the first seed, the first of equals; None before all were tried."""
    found = [(rate, _run(cell, rate, cell.seeds[0])) for rate in cell.learning_rates]
    if not all(_ended(run, workdir) for _, run in found):
        return None
    sign = 1 if cell.column.higher_is_better else -1
    done = [(sign * metrics["valid"][cell.column.metric], rate) for rate, run in found if (metrics := _metrics(run, workdir))]
    return max(done, key=lambda pair: pair[0])[1] if done else None


def _ended(run, workdir):
    return RunFolder(workdir / run.folder).results.exists() or run.failure(workdir).exists()


def _metrics(run, workdir):
    """The final metrics of a run by split; None where it has none."""
    folder = RunFolder(workdir / run.folder)
    return folder.read_results() if folder.results.exists() else None
