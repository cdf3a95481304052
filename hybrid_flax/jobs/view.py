"""What a person sees of many runs: a live table on a terminal, a line for every end elsewhere."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hybrid_flax.console import make_console
from hybrid_flax.jobs.queue import ENDED, Standing, Ticket
from hybrid_flax.jobs.trial import values_text
from hybrid_flax.units import format_clock

__all__ = ["View", "format_value"]

_PAUSE = 1.0  # seconds between two drawings


class View:
    """The display of `num_trials` trials, `slots` at a time. A context manager.

    table: (standings, what runs here by name) -> what rich can draw, for a terminal. best: what is best so far, in
    words.
    """

    def __init__(
        self,
        num_trials: int,
        slots: int,
        table: Callable[[Sequence[Standing], Mapping[str, Any]], Any],
        best: Callable[[Sequence[Standing]], str] = lambda standings: "",
        console: Console | None = None,
    ):
        self._num_trials, self._slots, self._table, self._best = num_trials, slots, table, best
        self.console = console or make_console(highlight=False)
        self._live: Live | None = None
        self._seconds: list[float] = []
        self._waits = False
        self._drawn = time.monotonic()

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None

    def update(self, standings: Callable[[], Sequence[Standing]], active: Mapping[str, Any]) -> None:
        """Draw the live table, not too often."""
        if self._live is not None and time.monotonic() - self._drawn >= _PAUSE:
            self._drawn, now = time.monotonic(), standings()
            self._live.update(Group(Text(self._summary(now)), self._table(now, active)), refresh=True)

    def started(self, ticket: Ticket) -> None:
        """A trial was launched."""
        if self._live is None:
            self.print(f"started: {values_text(ticket.trial.values)}")

    def waits(self) -> None:
        """There is nothing to do here, but trials of other workers may fall to this one yet."""
        if not self._waits:
            self.print("waiting for the trials of other workers")
        self._waits = True

    def ended(self, ticket: Ticket, standings: Sequence[Standing], seconds: float) -> None:
        """A trial has ended."""
        self._seconds.append(seconds)
        one = next(one for one in standings if one.run == ticket.trial.name)
        if self._live is not None and one.state != "failed":
            return
        metric = ticket.trial.config.eval.metric
        text = f"trial {one.number} {one.state} at step {one.step}"
        text += f": {one.reason}" if one.reason else f": {metric} {format_value(one.value)}"
        self.print(f"{text} ({values_text(one.values)}); {self._summary(standings)}")

    def print(self, text: str) -> None:
        """A line, above the table where there is one. Brackets are meant literally, and a log file has no width."""
        self.console.print(Text(text), soft_wrap=True)

    def _summary(self, standings):
        ended = sum(one.state in ENDED for one in standings)
        best = self._best(standings)
        total = max(self._num_trials, len(standings))
        return f"{ended}/{total} trials, {f'{best}, ' if best else ''}eta {self._eta(total - ended)}"

    def _eta(self, left):
        """At the pace of the trials that this worker has seen through."""
        if not self._seconds or left <= 0:
            return "-:--" if left > 0 else format_clock(0.0)
        return format_clock(sum(self._seconds) / len(self._seconds) * -(-left // self._slots))


def format_value(value: float | None) -> str:
    """Four digits behind the point, "-" for None."""
    return "-" if value is None else f"{value:.4f}"
