"""A fuzzer: hostile configs, layers, sweeps, comparisons, run folders, data files and command lines.

    python benchmarks/hostile.py --cases=2000 --seed=0              # all kinds, about five minutes on two cores
    python benchmarks/hostile.py --cases=300 --kind=config,layers   # some kinds
    python benchmarks/hostile.py --seed=0 --case=17                # one again, with its input (of the same --kind)

What is wrong must be refused in one line, what is right must be accepted, nothing may end in a traceback, print a page
or go on without end; a run folder that was damaged must never give other figures without a word. Each case knows by how
it was made whether it is valid or nonsense (tests/fuzz/), so the package's own checks are not asked. Prints counts by
kind, and the smallest case found of every fault; the exit code is 1 where there is one.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from fuzz.case import FAILURES, Case, Outcome, shrink
from fuzz.room import make_room
from fuzz.strategies import STRATEGIES, make_case
from fuzz.supervise import Worker
from rich.console import Console
from rich.table import Table

from hybrid_flax.training.progress import track

ENDINGS = ("refused", "accepted", *FAILURES)


class Found(NamedTuple):
    """A case, and how it ended after how long."""

    number: int
    case: Case
    outcome: Outcome
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default=",".join(STRATEGIES), help=", ".join(STRATEGIES))
    parser.add_argument("--case", type=int, help="number of the one case to run again")
    parser.add_argument(
        "--limit", type=float, default=20.0, help="seconds, of an idle machine, until a case is without end"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    kinds = options.kind.split(",")
    numbers = range(options.cases) if options.case is None else [options.case]
    with tempfile.TemporaryDirectory(prefix="hostile") as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder) / "compiled")  # of all processes
        workers = [Worker(Path(folder), options.limit) for _ in range(min(options.jobs, len(numbers)))]
        try:
            make_room(Path(folder), runs=bool({*kinds} & {"run_folders", "data_files", "calls"}))
            cases = [(number, make_case(options.seed, number, kinds)) for number in numbers]
            found = list(track(run_all(cases, workers), "cases", total=len(cases)))
            if options.case is not None:
                ((_, case, outcome, _),) = found
                print(f"{case}\n\n{outcome.ending}: {outcome.place}\n{outcome.output}")
            else:
                report(found, workers[0])
        finally:
            for worker in workers:
                worker.close()
    sys.exit(any(one.outcome.failed for one in found))


def run_all(cases: Sequence[tuple[int, Case]], workers: Sequence[Worker]) -> Iterator[Found]:
    """Every case with its outcome, in order, on whichever worker is free."""
    free: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def run(numbered: tuple[int, Case]) -> Found:
        worker, since = free.get(), time.monotonic()
        try:
            outcome = worker.run(numbered[1])
            return Found(*numbered, outcome, time.monotonic() - since)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        yield from pool.map(run, cases)


def report(found: Sequence[Found], worker: Worker) -> None:
    """Counts by kind, and the smallest case of every fault."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True, width=120)
    table = Table("kind", *ENDINGS, "cases", "seconds")
    counts = Counter((one.case.kind, one.outcome.ending) for one in found)
    seconds: Counter[str] = Counter()
    for one in found:
        seconds[one.case.kind] += one.seconds
    for kind in STRATEGIES:
        row = [counts[kind, ending] for ending in ENDINGS]
        if any(row):
            table.add_row(kind, *map(str, row), str(sum(row)), f"{seconds[kind]:.0f}")
    total = [sum(counts[kind, ending] for kind in STRATEGIES) for ending in ENDINGS]
    table.add_row("all", *map(str, total), str(len(found)), f"{sum(seconds.values()):.0f}")
    faults: dict[tuple[str, str, str], list[Found]] = {}
    for one in found:
        if one.outcome.failed:
            faults.setdefault((one.case.kind, *one.outcome[:2]), []).append(one)
    for (_, ending, place), these in track(sorted(faults.items()), "shrinking", total=len(faults)):
        number, case, outcome, _ = min(these, key=lambda one: len(str(one.case)))
        if ending != "without end":  # each try would take as long

            def fails(candidate: Case, ending: str = ending, place: str = place) -> bool:
                return worker.run(candidate)[:2] == (ending, place)

            case = shrink(case, fails, most=12)
        last = (outcome.output.strip().splitlines() or [""])[-1]
        console.print(f"\n{len(these)} x {ending}: {place} (--case={number})\n{str(case)[:600]}\n  says: {last[:200]}")
    console.print(table)


if __name__ == "__main__":
    main()
