"""Hostile inputs are refused in one line, and the fuzzer that makes them finds faults that are put there."""

import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fuzz.case import Case, Part, nonsense, shrink, unknown, valid
from fuzz.judge import Action, judge
from fuzz.room import make_room
from fuzz.strategies import STRATEGIES, make_case, run_case
from fuzz.supervise import Worker

from hybrid_flax import config

ONE = Case("config", ("preview", "flags"), (nonsense("train.dropout", "1.5"), valid("seed", "3")))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return make_room(tmp_path_factory.mktemp("room"), runs=False)


def quick(case: Case) -> bool:
    """Whether a case is nonsense that is refused by no more than the reading of small files."""
    words = {*case.frame, *(part.text for part in case.parts)}
    slow = any("runs/" in word or "iter(" in word for word in words) or {"train", "input"} & {*case.frame}
    slow = slow or (case.frame == ("plan",) and len(case.parts) > 1)  # it costs what stands before the wrong one
    hangs = words & {"pipe", "pipe inside", "zero", "socket"}
    return case.verdict == "nonsense" and not slow and not hangs


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind != "run_folders"])
def test_nonsense_is_refused(kind, room):
    cases = [case for number in range(60) if quick(case := make_case(0, number, [kind]))]
    assert len(cases) > 10
    found = [(case, run_case(case, room, 5)) for case in cases]
    assert "\n\n".join(f"{case}\n{outcome[:2]}" for case, outcome in found if outcome.failed) == ""


def test_cases_are_repeatable():
    assert [make_case(3, number) for number in range(50)] == [make_case(3, number) for number in range(50)]
    assert len({make_case(3, number) for number in range(50)}) > 40
    assert {*Counter(make_case(0, number).kind for number in range(200))} == {*STRATEGIES}


def test_a_check_that_is_gone_is_found(room, monkeypatch):
    assert run_case(ONE, room, 20).ending == "refused"
    monkeypatch.setattr(config, "check_range", lambda key, value: None)
    assert run_case(ONE, room, 20)[:2] == ("nonsense accepted", "train.dropout")


def act(code=0, printed="", error=None):
    """The actions of a strategy that does no more than this."""

    def run():
        print(printed)
        if error is not None:
            raise error
        return code

    return lambda case, here, room: [Action(run)]


@pytest.mark.parametrize(
    ("actions", "ending"),
    [
        (act(), "nonsense accepted"),
        (act(2, "error: one line"), "refused"),
        (act(2, "error: one line\nerror: another"), "traceback"),
        (act(2, "error: one line\nand one more"), "traceback"),
        (act(2, "sorry"), "traceback"),
        (act(error=ZeroDivisionError()), "traceback"),
        (act(error=SystemExit(0)), "traceback"),
        (act(2, "x.py:3: UserWarning: careful\nerror: one line"), "traceback"),
        (act(2, "Traceback (most recent call last):\nerror: one line"), "traceback"),
    ],
)
def test_endings(actions, ending, tmp_path):
    assert judge(ONE, actions, tmp_path).ending == ending


def test_what_is_right_must_be_accepted(tmp_path):
    right = ONE._replace(parts=ONE.parts[1:])
    assert judge(right, act(2, "error: no"), tmp_path).ending == "sense refused"
    assert judge(right, act(), tmp_path).ending == "accepted"


def test_a_case_without_end(tmp_path):
    outcome = judge(ONE, lambda case, here, room: [Action(lambda: time.sleep(60))], tmp_path, limit=0.05)
    assert outcome.ending == "without end"


DEAF = """
import json, re, sys
for line in sys.stdin:
    if "hang" in line:
        re.match("(a+)+$", "a" * 40 + "b")  # one call into C, which hears no signal
    if "die" in line:
        import os; os.abort()
    print(json.dumps(["accepted", "", ""]), flush=True)
"""


def test_a_case_that_hears_no_signal(tmp_path):
    """The process is ended from outside, and the next case has a new one."""
    worker = Worker(tmp_path, 0.1, [sys.executable, "-S", "-c", DEAF], grace=0.2)
    cases = [Case("config", (name,), ()) for name in ("fine", "hang", "fine", "die", "fine")]
    try:
        endings = [worker.run(case).ending for case in cases]
    finally:
        worker.close()
    assert endings == ["accepted", "without end", "accepted", "traceback", "accepted"]


def test_the_smallest_case_is_found():
    parts = (
        valid("seed", "1"),
        unknown("layer", "lstm,gru,[x],attn"),
        nonsense("data.length", "0"),
        unknown("line", "y"),
    )
    small = shrink(Case("layers", (), parts), lambda case: any("[" in part.text for part in case.parts))
    assert small.parts == (Part("unknown", "layer", "["),)


def test_a_damaged_folder_is_compared(room, tmp_path):
    """Other figures without a word are found; with a word, or in one line of error, they are right."""
    strategy = STRATEGIES["run_folders"]
    case = Case("run_folders", ("finished", "load_run"), (unknown("checkpoints", "flip latest 1"),))
    run = room / "runs" / "finished"
    (run / "checkpoints" / "4").mkdir(parents=True)
    (run / "checkpoints" / "4" / "array").write_bytes(b"abc")
    (room / "sound.json").write_text('{"finished load_run": ["step 4: sound"]}')
    (action,) = strategy.actions(case, _fresh(tmp_path / "one"), room)
    assert (tmp_path / "one" / "run" / "checkpoints" / "4" / "array").read_bytes() != b"abc"
    assert action.check(0, "step 4: sound") == ""
    assert re.search("not a word", action.check(0, "step 4: other"))
    assert action.check(0, "checkpoint 4 is damaged: going on from 2\nstep 2: other") == ""


def _fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder
