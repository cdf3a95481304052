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
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from hybrid_flax.compare.definition import Cell
from hybrid_flax.compare.results import Entry, Failure
from hybrid_flax.config import load_module, with_values
from hybrid_flax.train.diagnose import TrainingFailed
from hybrid_flax.train.folder import RunFolder, read_json
from hybrid_flax.train.loop import Interrupted, train
from hybrid_flax.train.machine import Share, settle
from hybrid_flax.train.writers import read_jsonl

__all__ = [
    "CellRun",
    "cell_log",
    "devices_of",
    "do_runs",
    "ended_runs",
    "fail",
    "next_run",
    "num_runs",
    "outcome",
    "read_entry",
    "retry_failures",
    "run_cell",
]


class CellRun(NamedTuple):
    """One run of a cell. folder: relative to that of the comparison."""

    learning_rate: float
    seed: int
    folder: str


def num_runs(cell: Cell) -> int:
    """How many runs a cell has where none fails; the searched run of the first seed is also the first of the seeds."""
    return len(cell.learning_rates) + len(cell.seeds) - 1


def ended_runs(cell: Cell, workdir: Path) -> list[CellRun]:
    """Those of `num_runs` that are finished or failed."""
    return [run for run in _runs(cell, workdir) if _ended(run, workdir)]


def next_run(cell: Cell, workdir: Path) -> CellRun | None:
    """The run to do now: first the search, then the seeds at the best rate; None when all are done or none can be."""
    return next((run for run in _runs(cell, workdir) if not _ended(run, workdir)), None)


def read_entry(cell: Cell, workdir: Path) -> Entry:
    """What has come of a cell so far."""
    metric, best = cell.column.metric, _best_rate(cell, workdir)
    searched = [(run.learning_rate, _metrics(run, workdir)) for run in _search(cell)]
    at_best = [] if best is None else [_run(cell, best, seed) for seed in cell.seeds]
    done = [(run, found) for run in at_best if (found := _metrics(run, workdir))]
    failed = [run for run in _runs(cell, workdir) if _failure(run, workdir).exists()]
    return Entry(
        row=cell.row,
        task=cell.column.task,
        pattern=cell.config.model.pattern,
        width=cell.config.model.width,
        learning_rate=best,
        search=tuple((rate, found["valid"][metric]) for rate, found in searched if found),
        seeds=tuple(run.seed for run, _ in done),
        valid=tuple(found["valid"][metric] for _, found in done),
        test=tuple(found["test"][metric] for _, found in done),
        folders=tuple(run.folder for run, _ in done),
        cost=cell.cost._replace(**_measured(cell, [run for run, _ in done], workdir)),
        failures=tuple(
            Failure(run.folder, run.learning_rate, run.seed, read_json(_failure(run, workdir))["reason"])
            for run in failed
        ),
    )


def outcome(cell: Cell, run: CellRun, workdir: Path) -> tuple[str, float]:
    """(what came of a run that ended, the seconds that it took)."""
    perf = read_jsonl(RunFolder(workdir / run.folder).perf)
    seconds = perf[-1]["perf/seconds"] if perf else 0.0
    if metrics := _metrics(run, workdir):
        return f"valid {cell.column.metric} {metrics['valid'][cell.column.metric]:.4f}", seconds
    return f"failed: {read_json(_failure(run, workdir))['reason']}", seconds


def devices_of(cell: Cell, workdir: Path) -> set[str]:
    """The devices that the runs of a cell began on: "1 x cpu"."""
    folders = [RunFolder(workdir / run.folder) for run in ended_runs(cell, workdir)]
    return {read_json(folder.about)["devices"] for folder in folders if folder.about.exists()}


def fail(run: CellRun, workdir: Path, reason: str, final: bool) -> None:
    """Note that a run failed; where that is not final, another start of the comparison tries it again."""
    path = _failure(run, workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {"reason": " ".join(reason.split()), "final": final})


def retry_failures(cell: Cell, workdir: Path) -> None:
    """Forget failures whose reason may be gone: a process that was killed, memory that was short."""
    for run in (_run(cell, rate, seed) for rate in cell.learning_rates for seed in cell.seeds):
        path = _failure(run, workdir)
        if path.exists() and not read_json(path)["final"]:
            path.unlink()


def do_runs(spec: str, cell: Cell, workdir: Path, stop: Any) -> None:
    """Do the runs of a cell that are left, one after another. Arguments and SystemExit as in `run_cell`."""
    while not stop.is_set() and (run := next_run(cell, workdir)) is not None:
        print(f"--- {run.folder}", flush=True)
        _do(cell, run, workdir, spec)
        _note_memory(cell, workdir)


def run_cell(spec: str, cell: Cell, workdir: Path, settings: dict[str, Any], share: Share, stop: Any) -> None:
    """`do_runs` in a process of its own: the runs share its compiled programs, which end with it.

    spec: the experiment file, for the mixers that it registers. settings: of JAX. share: of the machine. stop: an
    event after which no other run begins. Output goes to `cell_log`. Raises SystemExit with 128 + signal where a run
    was stopped by one.
    """
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the parent, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settle(share)
    for name, value in settings.items():
        jax.config.update(name, value)
    with cell_log(cell, workdir).open("a") as log, _file(cell, workdir, "lock").open("w") as lock:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        fcntl.flock(lock, fcntl.LOCK_EX)  # another comparison may be writing into the same folders
        load_module(spec)
        do_runs(spec, cell, workdir, stop)


def cell_log(cell: Cell, workdir: Path) -> Path:
    """The output of a cell's processes."""
    return _file(cell, workdir, "log")


def _do(cell, run, workdir, spec):
    config = with_values(cell.config, {"optim.learning_rate": run.learning_rate, "seed": run.seed})
    try:
        train(config, workdir / run.folder, spec)
    except Interrupted as stopped:
        sys.exit(128 + stopped.signal_number)
    except TrainingFailed as failure:
        print(failure, flush=True)
        fail(run, workdir, str(failure), final=True)
    except Exception as error:
        traceback.print_exc()
        fail(run, workdir, f"{type(error).__name__}: {str(error)[:500]}", final=False)


def _runs(cell, workdir) -> Iterator[CellRun]:
    """The runs of a cell in their order, as far as what is on disk says which they are."""
    yield from _search(cell)
    best = _best_rate(cell, workdir)
    if best is not None:
        yield from (_run(cell, best, seed) for seed in cell.seeds[1:])


def _search(cell):
    return [_run(cell, rate, cell.seeds[0]) for rate in cell.learning_rates]


def _run(cell, rate, seed):
    return CellRun(rate, seed, f"runs/{cell.name}-lr{rate}-seed{seed}")


def _best_rate(cell, workdir):
    """The rate with the best validation metric, the first of equals; None until all are tried, or where all failed."""
    if not all(_ended(run, workdir) for run in _search(cell)):
        return None
    sign, metric = 1 if cell.column.higher_is_better else -1, cell.column.metric
    found = [(run.learning_rate, _metrics(run, workdir)) for run in _search(cell)]
    figures = {rate: sign * metrics["valid"][metric] for rate, metrics in found if metrics}
    return max(figures, key=figures.__getitem__, default=None)


def _ended(run, workdir):
    return RunFolder(workdir / run.folder).results.exists() or _failure(run, workdir).exists()


def _metrics(run, workdir):
    """The final metrics of a run by split; None where it has none."""
    folder = RunFolder(workdir / run.folder)
    return folder.read_results() if folder.results.exists() else None


def _measured(cell, runs, workdir):
    """The costs that only a run tells."""
    perf = [row for run in runs for row in read_jsonl(RunFolder(workdir / run.folder).perf)]
    rates = [row["perf/tokens_per_sec"] for row in perf if "perf/tokens_per_sec" in row]
    memory = _file(cell, workdir, "json")
    return {"tokens_per_sec": median(rates) if rates else None} | (read_json(memory) if memory.exists() else {})


def _note_memory(cell, workdir):
    """Keep the most memory that any process of the cell held, of the accelerator where there is one."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        peak, kind = stats["peak_bytes_in_use"], "device memory"
    else:
        peak, kind = _resident_bytes(), "resident memory of the process"
    path = _file(cell, workdir, "json")
    before = read_json(path)["peak_bytes"] if path.exists() else 0
    _write(path, {"peak_bytes": max(peak, before), "peak_kind": kind})


def _resident_bytes():
    """The peak of this process. That of getrusage would be its parent's, where that was larger when it was spawned."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _end_with_parent():
    """A comparison that is killed leaves nothing running; a run can be killed at any time."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _failure(run, workdir):
    return workdir / run.folder / "failure.json"


def _file(cell, workdir, ending):
    return workdir / "cells" / f"{cell.name}.{ending}"


def _write(path, value):
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
    os.replace(temporary, path)
