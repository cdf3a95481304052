"""Schemes of tags: what marks spans, and how all schemes become BIO2."""

import re
from collections.abc import Iterable, Sequence

__all__ = ["are_spans", "parse_tag", "span_types", "to_bio2"]

_MARKED = re.compile("([BIESLUM])-(.+)")  # a tag of a span


def are_spans(tags: Iterable[str]) -> bool:
    """Whether the tags of a file, or of all training data, mark spans; else each is the class of its token.

    They do where one has the form that `to_bio2` reads, B-PER, and where there is none but O and such as b-per, x-per,
    which `to_bio2` refuses.
    """
    found = set(tags) - {"O"}
    return any(map(_MARKED.fullmatch, found)) or all(re.match(r"[A-Za-z]-.", tag) for tag in found)


def span_types(names: Sequence[str]) -> list[str]:
    """The types of spans of the labels "O", then B- and I- of every type."""
    return [name[2:] for name in names[1::2]]


def to_bio2(tags: Sequence[str], where: str = "") -> tuple[str, ...]:
    """Tags in the BIO2 scheme from IOB1, BIO2, BIOES or BILOU ones: every span begins with B-.

    An I- that continues nothing begins a span. Raises ValueError for a tag of another form.
    """
    given = [parse_tag(tag, where) for tag in tags]
    converted, before = [], ("O", "")
    for mark, kind in given:
        goes_on = mark in "IELM" and before[1] == kind and before[0] in "BIM"
        converted.append("O" if mark == "O" else f"{'I' if goes_on else 'B'}-{kind}")
        before = (mark, kind)
    return tuple(converted)


def parse_tag(tag: str, where: str) -> tuple[str, str]:
    """("B", "PER") of B-PER; ("O", "") of O. Raises ValueError, with the place of the tag, for another form."""
    match = _MARKED.fullmatch(tag)
    if match is None and tag != "O":
        raise ValueError(f"{where}: tag {tag!r} is neither O nor B-TYPE, I-TYPE (or E-, S-, L-, U-, M-TYPE)")
    return (match[1], match[2]) if match else ("O", "")
