"""What all cases share: a text, sentences with labels, experiments, and runs that are finished or were stopped."""

import contextlib
import csv
import random
import signal
from pathlib import Path

import tiny
from fuzz.run_folders import EXPERIMENTS, write_sound

__all__ = ["make_room"]

_LABELLED = {
    "task__name": "classify",
    "data__mode": "padded",
    "data__tokenizer": "word",
    "data__test_fraction": 0.2,
    "model__pattern": "lstm",
    "train__steps": 2,
    "eval__metric": "accuracy",
}
_STOPPED = {"train__steps": 6, "train__checkpoint_every": 1, "eval__every": 2, "train__log_every": 1}


def make_room(folder: Path, runs: bool = True) -> Path:
    """Fill `folder`. runs: train the runs too, which takes some seconds; only cases of run folders need them."""
    text = tiny.write_text(folder)
    write_sentences(folder / "sentences.csv")
    for name, data, changes in (
        ("lm.py", text, {"train__steps": 1, "train__log_every": 1, "train__checkpoint_every": 1, "model__width": 16}),
        ("stopped.py", text, _STOPPED),
        ("labelled.py", folder / "sentences.csv", _LABELLED),
    ):
        tiny.write_experiment(folder, data, **changes).rename(folder / name)
    if runs:
        _train_runs(folder)
    return folder


def write_sentences(path: Path) -> None:
    """Forty sentences of two classes."""
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for _ in range(40):
            label = rng.choice(("good", "bad"))
            writer.writerow((f"a {rng.choice('xyz')} {label} film", label))


def _train_runs(folder: Path) -> None:
    """runs/finished, runs/stopped (before its end, with several checkpoints) and runs/labelled."""
    from rich.console import Console

    from hybrid_flax.config import load_config
    from hybrid_flax.training.loop import train
    from hybrid_flax.training.signals import Interrupt, Interrupted

    class At(Interrupt):
        def __init__(self, last: int | None):
            self.last = last

        def at(self, step):
            return signal.SIGTERM if step == self.last else None

    for name, experiment in EXPERIMENTS.items():
        path = folder / experiment
        with contextlib.suppress(Interrupted):
            stop = At(5 if name == "stopped" else None)
            train(load_config(str(path)), folder / "runs" / name, str(path), Console(quiet=True), stop)
    write_sound(folder)
