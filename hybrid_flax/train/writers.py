"""Where training rows go: a JSON-lines file, TensorBoard, and the terminal.

A row is a flat dict of one logging point: `step` and metrics named by slash paths (`train/loss`, `eval/loss`,
`perf/tokens_per_sec`, `train/learning_rate`). Writers take scalars: Python or numpy numbers, or 0-d arrays.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


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
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, a torn last line left out; "nan", "inf" and "-inf" are floats again.

    A missing file has no rows. `ValueError` names the line if any line but the last is not a JSON object.
    """
    return [row for _, row in _rows(Path(path))]


def truncate_jsonl(path: str | os.PathLike, step: int) -> None:
    """Keeps the rows whose "step" is at most `step` (a row without one is kept) and drops the rest, atomically.

    Called when a run resumes from the checkpoint of `step`, so that no step stands twice in the file. Kept lines
    are kept byte for byte; no JsonlWriter may have the file open.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = b"".join(line for line, row in _rows(path) if row.get("step", step) <= step)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, path.stat().st_mode & 0o777)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def format_clock(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class TensorBoardWriter:
    """Writes the numbers of rows as TensorBoard scalars under `directory`; needs the extra `tensorboard`.

    On resume pass `purge_step`, the first step that will be written again: TensorBoard then hides what an earlier,
    interrupted process wrote from that step on.
    """

    def __init__(self, directory: str | os.PathLike, purge_step: int | None = None):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                "TensorBoard logging needs tensorboardX: pip install 'hybrid_flax[tensorboard]'"
            ) from None
        # tensorboardX names files by the second: two writers within one second would overwrite each other.
        suffix = f".{time.time_ns() % 10**9:09d}"
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, filename_suffix=suffix)

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes every number of `row` except `step`, which is the abscissa and must be there."""
        step = int(row["step"])
        for name, value in row.items():
            number = _number(value)
            if name != "step" and number is not None:
                self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Progress:
    """Live display of a training run: a bar in a terminal, plain lines anywhere else.

        with Progress(total_steps=2000, initial_step=200) as progress:
            progress.update(210, {"train/loss": 1.9, "perf/tokens_per_sec": 18200.0})

    Metrics missing from a row keep their last value on the display. Plain output prints at most one line per
    `seconds_between_lines`, and always the first update, the last step and every row with an eval metric. Leaving
    the context, also by an exception, restores the terminal and leaves the last state of the bar standing.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        console: Console | None = None,
        seconds_between_lines: float = 0.0,
    ):
        self._total, self._step = total_steps, initial_step
        self._console = console or Console(highlight=False)
        self._pause = seconds_between_lines
        self._metrics: dict[str, float] = {}
        self._pace_from = (time.monotonic(), initial_step)
        self._updates = 0
        self._last_line: float | None = None
        self._bar: RichProgress | None = None
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bar = RichProgress(
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[eta]}"),
                console=self._console,
                expand=True,
            )
            self._bar.add_task("train", total=self._total, completed=self._step, eta=self._eta())
            self._live = Live(self._render(), console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.__exit__(*error)
            self._live = self._bar = None

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows that `step` steps are done, with the metrics of `row`."""
        self._step = int(step)
        numbers = {k: _number(v) for k, v in row.items() if k != "step"}
        self._metrics.update({k: v for k, v in numbers.items() if v is not None})
        now = time.monotonic()
        self._updates += 1
        if self._updates == 1:
            self._pace_from = (now, self._step)
        if self._live is not None and self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._step, eta=self._eta())
            self._live.update(self._render())
            return
        due = self._last_line is None or now - self._last_line >= self._pause
        if due or self._step >= self._total or any(name.startswith("eval/") for name in row):
            self._last_line = now
            self._print(f"{self._summary()}  {self._eta()}")

    def message(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._live is not None:
            self._live.refresh()  # or the bar below the message would be an old one
        self._print(text)

    def _print(self, text: str) -> None:
        # soft_wrap: a log file has no width. Text, not markup: brackets in a message are meant literally.
        self._console.print(Text(text), soft_wrap=True)

    def _render(self) -> Any:
        assert self._bar is not None
        return Group(Text(self._summary(), overflow="ellipsis", no_wrap=True), self._bar)

    def _summary(self) -> str:
        width = len(str(self._total))
        fields = (f"{_LABELS.get(name, name)} {_format(name, self._metrics[name])}" for name in _shown(self._metrics))
        return "  ".join([f"step {self._step:>{width}}/{self._total}", *fields])

    def _eta(self) -> str:
        """Time left at the pace since the first update, which had to wait for compilation."""
        since, at = self._pace_from
        done, left = self._step - at, max(self._total - self._step, 0)
        return f"eta {format_clock((time.monotonic() - since) / done * left) if done > 0 else '-:--'}"


_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LABELS = {"perf/tokens_per_sec": "tokens/s", "train/learning_rate": "lr"}


def _plain(value: Any) -> Any:
    """A value as JSON has it: 0-d arrays and numpy numbers as Python numbers, non-finite floats as strings."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    return float(value) if isinstance(value, (int, float)) else None


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line as it stands in the file, row) for every whole line; only the last one may be torn."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield line, {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
        elif number < len(lines):
            raise ValueError(f"{path}:{number}: not a JSON object: {line[:80]!r}")


def _drop_torn_line(path: Path) -> None:
    """Cuts an unfinished last line off, or the next row would be glued to it."""
    if not path.exists():
        return
    whole = sum(len(line) for line, _ in _rows(path))
    if whole < path.stat().st_size:
        os.truncate(path, whole)


def _shown(metrics: Mapping[str, float]) -> list[str]:
    """What the display has room for: losses, the first further eval metric, speed, learning rate."""
    names = ["train/loss", "eval/loss"]
    names += [name for name in metrics if name.startswith("eval/") and name != "eval/loss"][:1]
    names += list(_LABELS)
    return [name for name in names if name in metrics]


def _format(name: str, value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if name == "perf/tokens_per_sec":
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if value >= size:
                return f"{value / size:.1f}{unit}"
        return f"{value:.0f}"
    return f"{value:.1e}" if name == "train/learning_rate" else f"{value:.4f}"
