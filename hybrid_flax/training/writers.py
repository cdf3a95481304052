"""Where training rows go: a JSON-lines file.

A row is a flat dict of one logging point: `step` and metrics named by slash paths (`train/loss`, `eval/loss`,
`perf/tokens_per_sec`, `train/learning_rate`). A writer takes scalars: Python or numpy numbers, or 0-d arrays.
"""

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_flax.errors import ConfigError
from hybrid_flax.files import write_whole

__all__ = [
    "JsonlWriter",
    "Mark",
    "as_number",
    "cut_to_mark",
    "holds_mark",
    "read_jsonl",
    "truncate_jsonl",
]


class Mark(NamedTuple):
    """What a file held at some time: its bytes, and their CRC-32."""

    size: int
    checksum: int


class JsonlWriter:
    """Appends one JSON object a line to `path`, flushed row by row.

    Keys keep their order, floats their shortest exact form, NaN and infinities become the strings "nan", "inf" and
    "-inf", so that every line is valid JSON. A process killed in the middle of a line leaves a torn line at the
    end, which readers skip and which the next writer removes.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("ab")
        self._mark = _mark(path.read_bytes())

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps({k: _plain(v) for k, v in row.items()}, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._mark = Mark(self._mark.size + len(line), zlib.crc32(line, self._mark.checksum))

    def mark(self) -> Mark:
        """What the file holds now."""
        return self._mark

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def read_jsonl(path: str | os.PathLike, needs: str = "step") -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, a torn last line left out; "nan", "inf" and "-inf" are floats again.

    A missing file has no rows. needs: what every row has. ConfigError names the line if any line but the last is not a
    JSON object, or one without that.
    """
    rows = [row for _, row in _rows(Path(path))]
    for number, row in enumerate(rows, 1):
        if needs not in row:
            raise ConfigError(f"{path}:{number}: a row without {needs!r}: {row!r:.80}; mend the line or remove it")
    return rows


def cut_to_mark(path: str | os.PathLike, mark: Mark) -> None:
    """Cut a file back to what it held, which it must still hold (`holds_mark`). No JsonlWriter may have it open."""
    if mark.size or Path(path).exists():
        os.truncate(path, mark.size)


def holds_mark(path: str | os.PathLike, mark: Mark) -> bool:
    """Whether a file still begins with what it held."""
    path = Path(path)
    return _mark(path.read_bytes()[: mark.size] if path.is_file() else b"") == mark


def truncate_jsonl(path: str | os.PathLike, step: int) -> None:
    """Keeps the rows whose "step" is at most `step` (a row without one is kept) and drops the rest, atomically.

    Called when a run resumes from the checkpoint of `step`, so that no step stands twice in the file. Kept lines
    are kept byte for byte; no JsonlWriter may have the file open.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = b"".join(line for line, row in _rows(path) if row.get("step", step) <= step)
    mode = path.stat().st_mode
    write_whole(path, kept)
    path.chmod(mode)


def as_number(value: Any) -> float | None:
    """A value of a row as a float, "nan" and "inf" too; None where it is none."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    return float(value) if isinstance(value, (int, float)) else None


_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _mark(content: bytes) -> Mark:
    return Mark(len(content), zlib.crc32(content))


def _plain(value: Any) -> Any:
    """A value as JSON has it: 0-d arrays and numpy numbers as Python numbers, non-finite floats as strings."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line as it stands in the file, row) for every whole line; only the last one may be torn."""
    if not path.exists():
        return
    if not path.is_file():
        raise ConfigError(f"{path} cannot be read: it is a folder or a device")
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step", 0), int):
            yield line, {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
        elif number < len(lines):
            raise ConfigError(f"{path}:{number}: no row of metrics: {line[:80]!r}; mend the line or remove it")


def _drop_torn_line(path: Path) -> None:
    """Cuts an unfinished last line off, or the next row would be glued to it."""
    if not path.exists():
        return
    whole = sum(len(line) for line, _ in _rows(path))
    if whole < path.stat().st_size:
        os.truncate(path, whole)
