"""What a person sees while a comparison runs: a table of its cells on a terminal, a line for every run elsewhere."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybrid_flax.compare.cells import CellRun, ended_runs, num_runs, outcome
from hybrid_flax.compare.definition import Cell
from hybrid_flax.units import format_clock

__all__ = ["Display"]


class Display:
    """Shows how far the cells are. jobs: how many of them run at a time. A context manager."""

    def __init__(self, title: str, cells: Sequence[Cell], workdir: Path, jobs: int, console: Console | None = None):
        self._title, self._cells, self._workdir, self._jobs = title, cells, workdir, jobs
        self._console = console or Console(highlight=False)
        self._ended: dict[str, list[CellRun]] = {}
        self._seconds: dict[str, list[float]] = {}
        self._failed: dict[str, int] = dict.fromkeys((cell.name for cell in cells), 0)
        self._running: Collection[str] = ()
        self._live: Live | None = None
        for cell in cells:
            self._count(cell)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, refresh_per_second=2, transient=True)
            self._live.__enter__()
        else:
            self._print(self._summary())
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None
        self._print(self._summary())

    def update(self, looked_at: Sequence[Cell], running: Collection[str]) -> list[Cell]:
        """Look at some cells again; `running` are the names of those at work. Returns the cells where a run ended."""
        self._running = running
        moved = [cell for cell in looked_at if self._count(cell)]
        if self._live is not None:
            self._live.update(self._render())
        return moved

    def _count(self, cell):
        """Whether runs of a cell have ended since it was last looked at; prints them, where it was looked at before."""
        before = self._ended.get(cell.name)
        after = ended_runs(cell, self._workdir)
        new = [run for run in after if run not in (before or ())]
        self._ended[cell.name] = after
        for run in new:
            words, seconds = outcome(cell, run, self._workdir)
            self._failed[cell.name] += words.startswith("failed")
            self._seconds.setdefault(cell.column.task, []).append(seconds)
            if before is not None:
                where = f"{cell.column.task}  {cell.row}  rate {run.learning_rate:g}  seed {run.seed}"
                self._print(f"{self._summary()}  {where}  {words}  {format_clock(seconds)}")
        return bool(new)

    def _summary(self) -> str:
        done, total = sum(map(len, self._ended.values())), sum(map(num_runs, self._cells))
        failed = sum(self._failed.values())
        return f"{done}/{total} runs{f', {failed} failed' if failed else ''}  {self._eta()}"

    def _eta(self) -> str:
        """Time left, at the pace of the finished runs of a task; tasks without any count as the mean of the others."""
        means = {task: sum(seconds) / len(seconds) for task, seconds in self._seconds.items()}
        usual = sum(means.values()) / max(len(means), 1)
        left = sum(
            (num_runs(cell) - len(self._ended[cell.name])) * means.get(cell.column.task, usual) for cell in self._cells
        )
        return f"eta {format_clock(left / self._jobs) if means else '-:--'}"

    def _render(self) -> Any:
        tasks = list(dict.fromkeys(cell.column.task for cell in self._cells))
        table = Table(title=self._title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("runs", overflow="fold")
        for task in tasks:
            table.add_column(task, justify="right")
        texts: Mapping[tuple[str, str], Text] = {(c.row, c.column.task): self._state(c) for c in self._cells}
        for row in dict.fromkeys(cell.row for cell in self._cells):
            table.add_row(row, *(texts[row, task] for task in tasks))
        return Group(table, Text(self._summary()))

    def _state(self, cell):
        done, failed = len(self._ended[cell.name]), self._failed[cell.name]
        style = "bold" if cell.name in self._running else "green" if done == num_runs(cell) else "dim"
        return Text(
            f"{done}/{num_runs(cell)}{f' ({failed} failed)' if failed else ''}", style="red" if failed else style
        )

    def _print(self, text):
        self._console.print(Text(text), soft_wrap=True)
