"""The walks of docs/walks.md are those of a run: every stop is called, in order, seldom back, never up."""

import ast
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
from jobs.in_process import InProcessExecutor
from rich.console import Console
from sampling import imports
from test_layout import ORDER, PACKAGE

import hybrid_flax
from hybrid_flax.config import apply_overrides, load_config
from hybrid_flax.report.sweep_report import write_sweep_report
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.run import run_sweep
from hybrid_flax.training.loop import train

MOST_RETURNS, MOST_FILES = 2, 8
QUIET = Console(quiet=True)
_HERE = f"{Path(hybrid_flax.__file__).parent}/"  # the package as it is installed
TEXT = (tiny.ROOT / "docs" / "walks.md").read_text(encoding="utf-8")
SWEEP = """
from hybrid_flax.sweep.space import axis
def sweep():
    return axis("seed", [0])
"""


class Call(NamedTuple):
    """A call into the package: where it stands, and the files of the package that it was called from, outermost first.

    place: (file, function). caller: the file of the nearest frame of the package.
    """

    place: tuple[str, str]
    stack: tuple[str, ...]

    @property
    def caller(self) -> str:
        return self.stack[-1] if self.stack else ""


def walks(text: str) -> dict[str, list[tuple[str, str]]]:
    """The (file, function) of every row, by heading."""
    found = {}
    for part in text.split("\n## ")[1:]:
        rows = re.findall(r"^\| `(\S+\.py)` \| `(\S+)` \|", part, re.MULTILINE)
        if rows:
            found[part.partition("\n")[0]] = rows
    return found


WALKS = walks(TEXT)


@pytest.fixture(scope="module")
def trace(tmp_path_factory, no_pauses) -> list[Call]:
    """The calls of one run, and of a sweep of one trial, that are stops of any walk."""
    wanted = {place for walk in WALKS.values() for place in walk}
    folder, calls = tmp_path_factory.mktemp("walks"), []
    text = tiny.write_text(folder)
    experiment = tiny.write_experiment(folder, text, SWEEP, model__width=52, eval__every=3)  # built by no other test

    def note(frame, event, argument):
        if not (place := place_of(frame)) or place not in wanted:
            return  # and no line of it is traced
        stack, outer = [], frame.f_back
        while outer is not None:
            if above := place_of(outer):
                stack.append(above[0])
            outer = outer.f_back
        calls.append(Call(place, tuple(reversed(stack))))

    sys.settrace(note)
    try:
        train(apply_overrides(load_config(str(experiment)), ["optim.learning_rate=0.01"]), folder / "run", "", QUIET)
        sweep = read_sweep(str(experiment), ["optim.learning_rate=0.02"])
        standings, _ = run_sweep(sweep, folder / "sweep", InProcessExecutor(), console=QUIET)
        write_sweep_report(sweep, standings, folder / "sweep")
    finally:
        sys.settrace(None)
    return calls


def place_of(frame) -> tuple[str, str] | None:
    """(file, function) of a frame of the package."""
    file = frame.f_code.co_filename
    return (file[len(_HERE) :], frame.f_code.co_qualname) if file.startswith(_HERE) else None


def in_order(walk, calls) -> list[Call]:
    """The first call of every stop after that of the stop before. Raises AssertionError where one is not called."""
    found, start = [], 0
    for place in walk:
        at = next((index for index in range(start, len(calls)) if calls[index].place == place), None)
        assert at is not None, f"{place} is not called after {found[-1].place if found else 'the start'}"
        found.append(calls[at])
        start = at + 1
    return found


def num_returns(walk) -> int:
    """How often a file that was left is entered again."""
    files = [file for file, _ in walk]
    path = [file for before, file in pairwise(["", *files]) if file != before]
    return len(path) - len(set(path))


def climbs(stops) -> list[tuple[str, str]]:
    """(caller, callee) of calls up the order of parts, but for functions that were handed down."""
    part = lambda file: ORDER.index(file.partition("/")[0].removesuffix(".py"))  # noqa: E731
    up = [(call.caller, call.place[0]) for call in stops if call.caller and part(call.caller) < part(call.place[0])]
    return [(caller, callee) for caller, callee in up if knows(caller, callee)]


def knows(caller: str, callee: str) -> bool:
    """Whether a file imports another: what it calls of a file that it does not import was handed to it."""
    module = "hybrid_flax." + callee.removesuffix(".py").replace("/", ".")
    return module in imports((PACKAGE / caller).read_text(encoding="utf-8"))


def strangers(stops) -> set[str]:
    """Files that call a stop and are no stops themselves."""
    files = {call.place[0] for call in stops}
    return {file for call in stops for file in call.stack[-1:] if file not in files | {"cli.py"}}


@pytest.mark.parametrize("name", WALKS)
def test_walk(name, trace):
    stops = in_order(WALKS[name], trace)
    assert num_returns(WALKS[name]) <= MOST_RETURNS
    assert climbs(stops) == []
    assert strangers(stops) == set()


def test_wrong_walks_are_noticed(trace):
    """A stop that is left out, one too many, and the order of another run."""
    walk = WALKS["The learning rate, from config to update"]
    with pytest.raises(AssertionError, match="is not called after"):
        in_order(WALKS["A trial, from definition to page"][::-1], trace)
    with pytest.raises(AssertionError, match="is not called"):
        in_order([*walk, ("training/step.py", "nothing")], trace)
    without = [place for place in walk if place[0] != "training/position.py"]
    assert strangers(in_order(without, trace)) == {"training/position.py"}
    assert num_returns([("a.py", "f"), ("a.py", "g"), ("b.py", "f"), ("a.py", "f"), ("b.py", "f")]) == 2
    up = Call(("sweep/run.py", "run_sweep"), ("sweep/definition.py",))
    assert climbs([up._replace(place=("report/page.py", "text"), stack=("report/sweep_report.py",))]) == []
    assert climbs([up._replace(place=("training/session.py", "f"), stack=("data/pipeline.py",))]) == []  # handed down
    assert knows("report/sweep_report.py", "sweep/tables.py") and not knows("data/pipeline.py", "training/session.py")


def test_from_the_shell_to_the_maths():
    """Each file of the list but the last imports the next, or is handed it by its name; there are at most eight."""
    listed = TEXT[TEXT.index("## From the shell to the maths") :]
    steps = listed.partition(":")[0].count(",") + 1
    assert steps <= MOST_FILES
    for file in re.findall(r"`([\w/]+\.py)`", listed):
        assert any((root / file).exists() for root in (tiny.ROOT, PACKAGE)), file
    assert ast.parse((tiny.ROOT / "launch.py").read_text())
