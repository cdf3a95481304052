"""Hooks: functions of the user's own that are called while a run trains."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from hybrid_flax.data.tokenizers import Tokenizer
from hybrid_flax.errors import nearest
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.options import source_of
from hybrid_flax.registration import calling
from hybrid_flax.typing import Params

__all__ = ["EVENTS", "RunView", "call_hooks", "has_hooks", "register_hook"]

EVENTS = ("log", "evaluation", "checkpoint", "end")

Hook = Callable[[int, Mapping[str, Any], "RunView"], object]

_hooks: dict[tuple[str, str], Hook] = {}


class RunView:
    """A run as a hook sees it: its model, tokenizer, labels, config and folder.

    params: on the host, their running mean where the run keeps one; they are fetched when they are first read, which a
    hook must do before it returns.
    """

    def __init__(
        self,
        model: SequenceModel,
        tokenizer: Tokenizer,
        labels: tuple[str, ...],
        config: Any,
        folder: Path,
        fetch: Callable[[], Params],
    ):
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.config, self.folder, self._fetch = config, folder, fetch

    @cached_property
    def params(self) -> Params:
        """The parameters at the step of the call."""
        return self._fetch()


def register_hook(event: str, call: Hook) -> None:
    """Have call(step, values, run) called at every `event` of every run that this process trains; run: a `RunView`.

    | event | when | values |
    |---|---|---|
    | log | every train.log_every steps | the row: train/loss, train/grad_norm, perf/... |
    | evaluation | an evaluation of the validation split | its metrics: eval/loss, ... |
    | checkpoint | a checkpoint is on disk | the metrics of its evaluation, {} where there was none |
    | end | training is over | the final metrics by split |

    The first process alone calls hooks, in the order in which they were registered; one that is registered again, from
    the same place, takes the place of the old one. What a hook raises ends training, with a checkpoint of that step.
    Raises ValueError for an unknown event, for what is no function, and for a second lambda of a file.
    """
    if event not in EVENTS:
        raise ValueError(f"event {event!r} is none of {', '.join(EVENTS)}; {nearest(str(event), EVENTS)}")
    if not callable(call):
        raise ValueError(f"hook of {event}: {call!r} is no function")
    key = event, source_of(call)
    known = _hooks.get(key, call)
    if known is not call and "<lambda>" in key[1] and _globals(known) is _globals(call):
        raise ValueError(f"hook of {event}: {key[1]} is registered already: give each function a name of its own")
    _hooks[key] = call


def _globals(call):
    return getattr(call, "__globals__", None)


def has_hooks(event: str) -> bool:
    """Whether any is registered for the event."""
    return any(own == event for own, _ in _hooks)


def call_hooks(event: str, step: int, values: Mapping[str, Any], run: RunView) -> None:
    """Call those of the event. Raises ConfigError in one line that names the one that failed."""
    for (own, _), hook in list(_hooks.items()):
        if own == event:
            with calling(f"hook of {event} at step {step}", hook, passes=()):
                hook(step, values, run)
