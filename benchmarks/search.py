"""Does searching pay? TPE with Hyperband on a third of the training steps of a grid, beside the whole grid.

    python benchmarks/search.py --workdir=runs/search                                        # docs/search.md

The grid is sweep() of experiments/shakespeare.py, cell x fusion x learning rate, at a size that a laptop trains in
seconds; the space is its sweep_search(), the same patterns and more learning rates. First the grid is trained, then its
best trial with five seeds, whose standard deviation is the measure. Then five searches, seeds 0 to 4: each adds trials
one at a time for as long as a whole further one fits into a third of the grid's steps. Steps are counted from the
checkpoints: a pruned trial has made those that it made. What is compared is the loss of the whole validation split
after the last step. Stopped and started again it goes on.

All trials are trained one after another in this process, where a program is compiled once.
"""

import argparse
import itertools
import math
import os
import queue
import signal
import statistics
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.console import Console

from hybrid_flax.config import load_config
from hybrid_flax.files import read_json
from hybrid_flax.jobs.executor import Ended
from hybrid_flax.jobs.status import read_status
from hybrid_flax.jobs.trial import TrialFolder, values_text
from hybrid_flax.sweep.definition import Sweep, read_sweep
from hybrid_flax.sweep.run import run_sweep
from hybrid_flax.sweep.trials import make_trial
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.loop import train
from hybrid_flax.training.signals import Interrupted

EXPERIMENT = str(Path(__file__).parents[1] / "experiments" / "shakespeare.py")
STEPS = 270
SMALL = (
    "data.length=64",
    "model.width=32",
    "model.depth=1",
    f"train.steps={STEPS}",
    f"train.log_every={STEPS}",
    "schedule.warmup_steps=10",
    "optim.ema_decay=0.9",
    "eval.every=30",
    "eval.batch_size=256",
    "eval.max_batches=2",
)
SEEDS = range(5)
SHARE = 1 / 3  # of the grid's steps


def main() -> None:
    """Train the grid, the seeds and the searches, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    workdir = parser.parse_args().workdir

    grid = read_sweep(EXPERIMENT, SMALL)
    sweep(grid, workdir / "grid")
    best = finished(workdir / "grid")[0]
    seeds = grid._replace(trials=[make_trial(grid.base, best.values | {"seed": seed}) for seed in SEEDS])
    sweep(seeds, workdir / "seeds")
    deviation = statistics.stdev(run.loss for run in finished(workdir / "seeds"))

    space = read_sweep(EXPERIMENT, SMALL, ["search"], "tpe", 1)
    total = steps_in(workdir / "grid")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {' '.join(SMALL)}\n")
    print("| | trials, to the end | steps | of the grid's | best validation loss | minus the grid's | its config |")
    print("|---|---|---|---|---|---|---|")
    print_row("grid", workdir / "grid", best.loss, total)
    losses = []
    for seed in SEEDS:
        folder = workdir / f"tpe-{seed}"
        search(space, folder, seed, SHARE * total)
        losses.append(finished(folder)[0].loss)
        print_row(f"TPE, Hyperband, seed {seed}", folder, best.loss, total)
    mean = statistics.mean(losses)
    chance = mean_of_least([run.loss for run in finished(workdir / "grid")], round(SHARE * len(grid.trials)))
    print(f"| mean of the searches | | | | {mean:.4f} | {mean - best.loss:+.4f} | |")
    print(f"| a third of the grid, drawn at random | | | | {chance:.4f} | {chance - best.loss:+.4f} | |")
    print(f"\nThe grid's best config over seeds 0 to 4: standard deviation {deviation:.4f}.")
    print(f"The searches are within it on average: {'yes' if mean - best.loss <= deviation else 'no'}.")


@dataclass(frozen=True)
class Run:
    """A trial that is trained to the end. loss: of the validation split."""

    values: dict
    loss: float


def finished(workdir: Path) -> list[Run]:
    """The finished trials of a sweep, the best first."""
    runs = []
    for path in workdir.glob("*/trial.json"):
        status = read_status(path.parent, "loss")
        if status.state == "done":
            runs.append(Run(read_json(path, dict)["values"], status.value))
    return sorted(runs, key=lambda run: run.loss)


def steps_in(workdir: Path) -> int:
    """The training steps of all trials of a sweep: every one has saved its last."""
    return sum(
        max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        for folder in workdir.glob("*/checkpoints")
    )


def print_row(name: str, workdir: Path, reference: float, total: int) -> None:
    """A row of the table; reference, total: the best loss and the steps of the grid."""
    runs, steps = finished(workdir), steps_in(workdir)
    trials = sum(1 for _ in workdir.glob("*/trial.json"))
    config = f"`{values_text(runs[0].values)}`"
    change = f"{runs[0].loss - reference:+.4f}"
    row = (name, f"{trials}, {len(runs)}", f"{steps:,}", f"{steps / total:.3f}", f"{runs[0].loss:.4f}", change, config)
    print(f"| {' | '.join(row)} |", flush=True)


def mean_of_least(values: list[float], count: int) -> float:
    """The expected least of `count` of the values, sorted, drawn without replacement."""
    ways = math.comb(len(values), count)
    return sum(value * math.comb(len(values) - 1 - rank, count - 1) / ways for rank, value in enumerate(values))


def search(plan: Sweep, workdir: Path, seed: int, budget: float) -> None:
    """Search for as long as a whole trial fits into `budget` steps."""
    for num_trials in itertools.count(1):
        sweep(plan._replace(num_trials=num_trials), workdir, pruner="hyperband", seed=seed)
        if steps_in(workdir) + STEPS > budget:
            return


def sweep(plan: Sweep, workdir: Path, **options: object) -> None:
    """`run_sweep` in a thread, as trials are trained, and their wish to stop is heard, in the main one."""
    executor = InProcess(pausing="pruner" in options)
    console = Console(file=sys.stderr, quiet="pruner" in options)

    def work():
        try:
            run_sweep(plan, workdir, executor, console=console, **options)
        finally:
            executor.jobs.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    executor.serve()
    thread.join()


class InProcess:
    """An executor whose trials are trained by `serve`, one after another.

    pausing: after an evaluation a trial waits until the sweep has looked at it, so that what is pruned, and when, is
    the same every time.
    """

    slots = 1

    def __init__(self, pausing: bool):
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._looks = threading.Semaphore(0)
        self._console = Console(file=self) if pausing else Console(quiet=True)

    def submit(self, folder):
        job = Job(folder)
        self.jobs.put(job)
        return job

    def poll(self, job):
        self._looks.release()
        return job.ended

    def cancel(self, job):
        if job.ended is None:
            os.kill(os.getpid(), signal.SIGTERM)  # the trial waits, and has a handler

    def close(self):
        pass

    def serve(self) -> None:
        """Train what is submitted until there is None."""
        while (job := self.jobs.get()) is not None:
            try:
                train(load_config(str(job.folder.trial)), job.folder.path, "shakespeare", self._console)
                job.ended = Ended(0)
            except Interrupted as stop:
                if stop.signal_number == signal.SIGINT:
                    raise KeyboardInterrupt from stop
                job.ended = Ended(128 + stop.signal_number)
            except TrainingFailed as failure:
                job.ended = Ended(1, str(failure))

    def write(self, text: str) -> None:
        """A line of a trial, which comes after its row in metrics.jsonl: wait for a look that begins now."""
        while self._looks.acquire(blocking=False):
            pass
        for _ in range(2):
            self._looks.acquire(timeout=60)

    def flush(self):
        pass


@dataclass
class Job:
    """A trial in the queue."""

    folder: TrialFolder
    ended: Ended | None = None


if __name__ == "__main__":
    main()
