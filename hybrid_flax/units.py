"""Numbers and tables as people read them."""

import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "format_bytes",
    "format_clock",
    "format_count",
    "format_duration",
    "markdown_table",
    "printable",
    "text_table",
]


def format_count(value: int | float | None) -> str:
    """Three digits and a prefix: 12.3 k; "-" for None."""
    if value is None:
        return "-"
    for prefix in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 999.5 or prefix == " P":
            return f"{value:.3g}{prefix}"
        value /= 1000.0
    raise AssertionError("the last prefix returns")


def format_bytes(value: int | float) -> str:
    """Four digits and a binary prefix: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1023.5 or unit == "TiB":
            return f"{value:.4g} {unit}"
        value /= 1024.0
    raise AssertionError("the last unit returns")


def format_clock(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_duration(seconds: float) -> str:
    """Three digits and a unit: 2.5 hours, 13 minutes, 40 seconds."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of equal length, the first of them the header; a "|", a line break or a tag in a cell stays text."""
    cells = [[f"{cell:.6g}" if isinstance(cell, float) else printable(str(cell)) for cell in row] for row in rows]
    marks = re.compile(r"\||<(?=[A-Za-z/!?])")
    lines = ["| " + " | ".join(marks.sub(r"\\\g<0>", cell) for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines: the first and the last column to the left, figures between them to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1])), row[-1]]
        for row in rows
    )
    return ["  ".join(cells).rstrip() for cells in aligned]


def printable(text: str) -> str:
    """The text in one line: line breaks and other letters that do not print are written as Python escapes them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
