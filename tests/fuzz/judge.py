"""A case is run in this process and its ending named; whatever it prints is caught, at the file descriptors too."""

import contextlib
import io
import os
import re
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fuzz.case import Case, Outcome

import hybrid_flax
from hybrid_flax.cli import main

__all__ = ["Action", "NoEnd", "Strategy", "captured", "judge"]

_PACKAGE = Path(hybrid_flax.__file__).parent
_PAGES = re.compile(
    r"Traceback \(most recent call last\)|^\S+:\d+: \w*Warning: |^WARNING:|^[WEF]\d{4} [\d:.]+ |^Exception ignored",
    re.MULTILINE,
)


class NoEnd(BaseException):
    """A case took too long."""


class Action(NamedTuple):
    """One command: its words for `main`, or a function that does as `main` does, and what is asked of what it did.

    check: (exit code, what was printed) -> what is silently wrong with it, "" for nothing.
    """

    run: list[str] | Callable[[], int]
    check: Callable[[int, str], str] = lambda code, output: ""


class Strategy(NamedTuple):
    """A kind of case. weight: how often it is drawn. make: a case from random numbers. actions: what a case does in its
    folder, given that of what all cases share; none of them runs after one that was refused."""

    weight: int
    make: Callable
    actions: Callable[[Case, Path, Path], list[Action]]


def judge(case: Case, actions: Callable[[Case, Path, Path], list[Action]], room: Path, limit: float = 20.0) -> Outcome:
    """Run `case` in a new folder of `room`, for at most `limit` seconds of wall clock."""
    here = Path(tempfile.mkdtemp(prefix="case", dir=room))
    back = os.getcwd()
    os.chdir(here)
    previous = signal.signal(signal.SIGALRM, _no_end)
    outcome = Outcome("accepted")
    try:
        signal.setitimer(signal.ITIMER_REAL, limit)
        for action in actions(case, here, room):
            outcome = _run(case, action)
            if outcome.ending != "accepted":
                break
        if outcome.ending == "accepted" and case.verdict == "nonsense":
            outcome = Outcome("nonsense accepted", _blamed(case), outcome.output)
        return outcome._replace(output=outcome.output.replace(str(here), "HERE").replace(str(room), "ROOM"))
    except NoEnd:
        return Outcome("without end", _blamed(case), f"no end within {limit:.0f} s, before anything ran")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        os.chdir(back)
        shutil.rmtree(here, ignore_errors=True)


def _run(case: Case, action: Action) -> Outcome:
    warnings.simplefilter("default", append=True)  # no other filter, and what was warned of before is forgotten
    with captured() as text:
        try:
            code = main(action.run) if isinstance(action.run, list) else action.run()
        except NoEnd as error:
            return Outcome("without end", _place(error, "no end"), _shown(error))
        except BaseException as error:  # also what would end the process
            if isinstance(error, KeyboardInterrupt):
                raise
            return Outcome("traceback", _place(error, type(error).__name__), text() + _shown(error))
        output = text()
    page = _PAGES.search(output)
    if page:
        said = re.sub(r"^\S*/", "", output[page.start() :].splitlines()[0])[:80]
        return Outcome("traceback", f"page on the screen: {said}", output)
    lines = output.rstrip("\n").split("\n")
    if code and (sum(line.startswith("error: ") for line in lines) != 1 or not lines[-1].startswith("error: ")):
        return Outcome("traceback", f"exit {code}, not in one line of error", output)
    if code and case.verdict == "valid":
        return Outcome("sense refused", re.sub(r"[\d/'\"].*", "", lines[-1])[:60], output)
    if code:
        return Outcome("refused", "", output)
    wrong = action.check(code, output)
    return Outcome("nonsense accepted", wrong, output) if wrong else Outcome("accepted", "", output)


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """What is printed meanwhile, by Python and by libraries, as the text that a call gives."""
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(number) for number in (1, 2)]
        streams = io.TextIOWrapper(os.fdopen(os.dup(file.fileno()), "wb"), "utf-8", write_through=True)

        def text() -> str:
            streams.flush()
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            with contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
                yield text
        finally:
            for number, old in zip((1, 2), saved):
                os.dup2(old, number)
                os.close(old)
            with contextlib.suppress(ValueError, OSError):
                streams.close()


def _no_end(number, frame):
    raise NoEnd


def _blamed(case: Case) -> str:
    """The name of the part that is at fault."""
    worst = [part.name for part in case.parts if part.verdict == case.verdict]
    return worst[0] if worst else ""


def _place(error: BaseException, what: str) -> str:
    """What was raised, and the innermost line of the package."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    if not frames:
        return what
    return f"{what} in {Path(frames[-1].filename).relative_to(_PACKAGE)}, {frames[-1].name}"


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]
