"""What a fuzzer makes and what it finds: cases of parts whose verdict is known by how they were made, and endings."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["FAILURES", "Case", "Outcome", "Part", "nonsense", "shrink", "unknown", "valid"]

FAILURES = ("traceback", "nonsense accepted", "sense refused", "without end")


class Part(NamedTuple):
    """One thing in a case that may be wrong.

    verdict: "valid", "nonsense", or "unknown", of which no more is asked than one line or success. name: where it
    stands (a knob, an axis, a file). text: what stands there.
    """

    verdict: str
    name: str
    text: str


class Case(NamedTuple):
    """An input. kind: the strategy that reads it. frame: what stays while it shrinks (the verb, the format)."""

    kind: str
    frame: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """That of its worst part."""
        verdicts = {part.verdict for part in self.parts}
        return next((one for one in ("nonsense", "unknown") if one in verdicts), "valid")

    def __str__(self) -> str:
        parts = [f"\n  {part.verdict:8} {part.name} = {part.text!r}" for part in self.parts]
        return f"{self.kind}: {' '.join(map(repr, self.frame))}{''.join(parts)}"


class Outcome(NamedTuple):
    """How a case ended. ending: "refused", "accepted" or one of FAILURES. place: the fault. output: what it printed."""

    ending: str
    place: str = ""
    output: str = ""

    @property
    def failed(self) -> bool:
        return self.ending in FAILURES


def valid(name: str, text: str) -> Part:
    return Part("valid", name, text)


def nonsense(name: str, text: str) -> Part:
    return Part("nonsense", name, text)


def unknown(name: str, text: str) -> Part:
    return Part("unknown", name, text)


_TEXTS = ("layer", "line", "input", "data.label", "flag")  # of which a half is a text as well


def shrink(case: Case, fails: Callable[[Case], bool], most: int = 40) -> Case:
    """The smallest case found, greedily, that still fails; at most `most` are tried."""
    tried = 0
    again = True
    while again:
        again = False
        for candidate in _smaller(case):
            if tried == most:
                return case
            tried += 1
            if fails(candidate):
                case, again = candidate, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """The case without one of its parts, and with half of a text, of which nothing is known then."""
    for place in range(len(case.parts) if len(case.parts) > 1 else 0):
        yield case._replace(parts=case.parts[:place] + case.parts[place + 1 :])
    for place, part in enumerate(case.parts):
        middle = len(part.text) // 2 if part.name in _TEXTS else 0
        for text in (part.text[:middle], part.text[middle:]) if middle else ():
            yield case._replace(parts=(*case.parts[:place], unknown(part.name, text), *case.parts[place + 1 :]))
