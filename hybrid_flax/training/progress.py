"""What a person sees while a run trains, evaluates or samples."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress import track as rich_track
from rich.text import Text

from hybrid_flax.console import make_console
from hybrid_flax.training.writers import as_number
from hybrid_flax.units import format_clock, format_count

__all__ = ["Progress", "track"]

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The items; how many of `total` are done stands on stderr while they come, where that is a terminal."""
    console = make_console(stderr=True)
    return rich_track(items, what, total, console=console, transient=True, disable=not console.is_terminal)


class Progress:
    """Live display of a training run: a bar in a terminal, plain lines anywhere else.

        with Progress(total_steps=2000, initial_step=200) as progress:
            progress.update(210, {"train/loss": 1.9, "perf/tokens_per_sec": 18200.0})

    Shown are the losses, the evaluation by `metric`, speed and learning rate. Those missing from a row keep their last
    value on the display, but for an evaluation of an earlier step: the bar says of which, a plain line leaves it out.
    Plain output prints at most one line per `seconds_between_lines`, and always the first update, the last step and
    every row with an eval metric. Leaving the context, also by an exception, restores the terminal and leaves the last
    state of the bar standing.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        console: Console | None = None,
        seconds_between_lines: float = 0.0,
        metric: str = "loss",
    ):
        self._total, self._step = total_steps, initial_step
        self._console = console or make_console(highlight=False)
        self._pause = seconds_between_lines
        self._metrics: dict[str, float] = {}
        self._evaluations = dict.fromkeys(("eval/loss", f"eval/{metric}"))
        self._evaluated = initial_step
        self._waits_for = ""
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
        numbers = {k: as_number(v) for k, v in row.items() if k != "step"}
        self._metrics.update({k: v for k, v in numbers.items() if v is not None})
        has_evaluation = any(name.startswith("eval/") for name in row)
        self._evaluated = self._step if has_evaluation else self._evaluated
        now = time.monotonic()
        self._updates += 1
        if self._updates == 1:
            self._pace_from = (now, self._step)
        if self._live is not None and self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._step, eta=self._eta())
            self._live.update(self._render())
            return
        due = self._last_line is None or now - self._last_line >= self._pause
        if due or self._step >= self._total or has_evaluation:
            self._last_line = now
            self._print(f"{self._summary()}  {self._eta()}")

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items; the bar says how many are done."""
        try:
            for done, item in enumerate(items):
                self._waits_for = f"  {what} {done}/{len(items)}"
                if self._live is not None:
                    self._live.update(self._render())
                yield item
        finally:
            self._waits_for = ""

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
        return Group(Text(self._summary() + self._waits_for, overflow="ellipsis", no_wrap=True), self._bar)

    def _summary(self) -> str:
        names = ["train/loss"]
        if self._evaluated == self._step or self._live is not None:
            names += self._evaluations
        fields = [self._field(name) for name in (*names, *_LABELS) if name in self._metrics]
        return "  ".join([f"step {self._step:>{len(str(self._total))}}/{self._total}", *fields])

    def _field(self, name: str) -> str:
        of = f" @{self._evaluated}" if name in self._evaluations and self._evaluated != self._step else ""
        return f"{_LABELS.get(name, name)} {_format(name, self._metrics[name])}{of}"

    def _eta(self) -> str:
        """Time left at the pace since the first update, which had to wait for compilation."""
        since, at = self._pace_from
        done, left = self._step - at, max(self._total - self._step, 0)
        return f"eta {format_clock((time.monotonic() - since) / done * left) if done > 0 else '-:--'}"


_LABELS = {"perf/tokens_per_sec": "tokens/s", "train/learning_rate": "lr"}


def _format(name: str, value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if name == "perf/tokens_per_sec":
        return format_count(value)
    return f"{value:.1e}" if name == "train/learning_rate" else f"{value:.4f}"
