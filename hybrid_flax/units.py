"""Numbers and tables as people read them."""

from collections.abc import Sequence
from typing import Any

__all__ = ["format_bytes", "format_clock", "format_count", "format_duration", "markdown_table"]


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
    """Rows of equal length, the first of them the header; a "|" in a cell stays a letter."""
    cells = [[f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
