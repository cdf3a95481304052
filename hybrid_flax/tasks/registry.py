"""The tasks by the names that config.task.name gives them, and the metrics that are registered for them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.data.examples import KINDS
from hybrid_flax.data.pipeline import MODES
from hybrid_flax.errors import ConfigError
from hybrid_flax.registration import LOSSES, METRICS, TASKS, Chosen, Registered, calling, chosen
from hybrid_flax.tasks import answer, lm, regress, tag
from hybrid_flax.tasks.answer import make_answering
from hybrid_flax.tasks.base import Metric, Sums, Task
from hybrid_flax.tasks.classify import class_metrics, make_classification
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.tasks.objective import OWN_LOSS, with_loss
from hybrid_flax.tasks.regress import make_regression
from hybrid_flax.tasks.tag import make_tagging
from hybrid_flax.typing import Batch

__all__ = [
    "TaskTraits",
    "check_task",
    "is_pooled",
    "label_kind",
    "make_task",
    "register_metric",
    "register_task",
    "task_traits",
]

_FACTORS = ("label_smoothing", "z_loss")


class TaskTraits(NamedTuple):
    """What a task is made for, as `register_task` is told."""

    label_kind: str | None
    reads: str
    crf: bool
    factors: tuple[str, ...]
    num_outputs: Callable[[tuple[str, ...]], int] | None
    metrics: tuple[str, ...]


class MetricTraits(NamedTuple):
    """What a metric is, and for which tasks."""

    metric: Metric
    tasks: tuple[str, ...]
    measure: Callable[[Mapping[str, Any]], float]


def register_task(
    name: str,
    make: Callable[..., Task],
    label_kind: str | None = None,
    *,
    reads: str = "",
    crf: bool = False,
    factors: tuple[str, ...] = (),
    num_outputs: Callable[[tuple[str, ...]], int] | None = None,
    metrics: tuple[str, ...] = (),
) -> None:
    """Make `name` a task: make(labels, unseen, **options) -> `Task`.

    labels: the names of what is predicted, () where it is numbers or tokens; unseen: those that no training example
    has. Equal arguments may give a `Task` that was made before. Options are the keyword-only arguments of `make`,
    `tasks.NAME.OPTION` in a config.

    Args:
      label_kind: of labelled examples, one of "class", "classes", "number", "tags"; None where they have no label.
        Rows with one label are pooled to one output; otherwise there is one for every token.
      reads: "text", "examples" (labelled) or "language" (synthetic); "": examples where there is a label, else text.
      crf: whether task.crf may give it outputs (emissions, transitions).
      factors: which of "label_smoothing" and "z_loss" its loss takes, after (outputs, batch).
      num_outputs: labels -> the width of an output; None: as many as labels, 1 for numbers, the vocabulary for tokens.
      metrics: the names of its metrics, where they do not depend on labels; a saved config is checked by them.

    Raises ValueError as `Table.register`, and for a kind or a source of data that there is not.
    """
    kinds = (None, *KINDS)
    if label_kind not in kinds:
        raise ValueError(f"task {name!r}: label_kind={label_kind!r} is none of {', '.join(map(repr, kinds))}")
    reads = reads or ("examples" if label_kind else "text")
    if reads not in ("text", "examples", "language") or (reads == "examples") != (label_kind is not None):
        raise ValueError(
            f"task {name!r}: reads={reads!r} must be 'examples' with a label_kind, 'text' or 'language' without one"
        )
    for factor in factors:
        if factor not in _FACTORS:
            raise ValueError(f"task {name!r}: factor {factor!r} is none of {', '.join(_FACTORS)}")
    TASKS.register(name, make, TaskTraits(label_kind, reads, crf, tuple(factors), num_outputs, tuple(metrics)))


def register_metric(
    name: str,
    tasks: str | tuple[str, ...],
    sums: Callable[[Any, Batch], Sums],
    measure: Callable[[Mapping[str, Any]], float],
    *,
    unit: str = "",
    lower_is_better: bool = False,
    share: bool = False,
) -> None:
    """Make `name` a metric of tasks, in every evaluation of them; config.eval.metric may be it.

    sums: (outputs, batch) -> arrays by name that may be added over rows, devices and batches, as `batch.weights` says
    what counts. measure: these sums, in float64 -> a number. unit, lower_is_better, share: as `Metric` has them.
    Raises ValueError as `Table.register`.
    """
    text = f"  {name} {{:.2f}} %" if share else f"  {name} {{:.4f}}{unit and f' {unit}'}"
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    metric = Metric(name, unit, lower_is_better=lower_is_better, share=share, text=text)
    METRICS.register(name, sums, MetricTraits(metric, tasks, measure), reads_options=False)


def check_task(config: Any) -> None:
    """Raises ConfigError for an unknown task, and for knobs that are set and not read by the task or its loss."""
    task, loss = config.task.name, config.loss
    traits = task_traits(task)
    with_crf = tuple(name for name in TASKS if TASKS[name].traits.crf)
    for key, value, default, readers in (
        ("task.crf", config.task.crf, False, with_crf),
        ("task.pooling", config.task.pooling, "mean", tuple(filter(is_pooled, TASKS))),
    ):
        if value != default and task not in readers:
            raise ConfigError(
                f"{key}={value} goes with task.name={' or '.join(readers)}, not {task}: leave it at {default}"
            )
    if config.data.splits and traits.reads == "language":
        raise ConfigError(
            f"data.splits={config.data.splits!r} names files, and task.name={task} reads none: set it to ''"
        )
    if config.data.folds and traits.label_kind is None:
        raise ConfigError(f"data.folds={config.data.folds} needs labelled examples, not task.name={task}")
    _check_loss(config, traits)
    crf = traits.crf and config.task.crf
    shown = f"task.name={task}{' with a CRF' if crf else ''}"
    for name in _FACTORS:
        if loss[name] and (crf or name not in traits.factors):
            raise ConfigError(f"loss.{name}={loss[name]} is no part of the loss of {shown}: set it to 0")
    modes = tuple(MODES) if traits.reads == "text" else ("padded",)
    if config.data.mode not in modes:
        raise ConfigError(f"data.mode={config.data.mode!r} is none of {', '.join(modes)}, for task.name={task}")


def make_task(config: Any, labels: tuple[str, ...], unseen: tuple[str, ...] = ()) -> Task:
    """What config.task says is learnt; `labels` and `unseen` are those of the source.

    Equal arguments give the identical object, until something that it is made of is registered anew.
    """
    choice = chosen(TASKS, config)
    task = _make(choice, tuple(labels), tuple(unseen))
    if config.loss.name != OWN_LOSS:
        task = with_loss(task, chosen(LOSSES, config), choice.entry.traits.label_kind)
    own = tuple(entry for entry in METRICS.values() if choice.name in entry.traits.tasks)
    return _with_metrics(task, own) if own else task


def task_traits(task_name: str) -> TaskTraits:
    """What a task is made for. Raises ConfigError for an unknown one."""
    return TASKS.choose(task_name).entry.traits


def label_kind(task_name: str) -> str | None:
    """The kind of label of a task, one of `data.examples.KINDS`; None where no example has a label."""
    return task_traits(task_name).label_kind


def is_pooled(task_name: str) -> bool:
    """Whether a task labels whole sequences, so that one output is made of all positions."""
    return label_kind(task_name) not in (None, "tags")


def _check_loss(config, traits):
    task, loss = config.task.name, config.loss
    tasks = {name: entry.traits.tasks for name, entry in LOSSES.items() if name != OWN_LOSS}
    if loss.name != OWN_LOSS and task not in tasks.get(loss.name, ()):
        if loss.name not in tasks and any(task in takers for takers in tasks.values()):
            LOSSES.choose(loss.name)  # which says what there is
        known = f"goes with task.name={' or '.join(tasks[loss.name])}" if loss.name in tasks else "is no loss"
        raise ConfigError(
            f"loss.name={loss.name!r} {known}, and task.name={task} has a loss of its own: leave it at {OWN_LOSS}"
        )
    if loss.name != OWN_LOSS and traits.crf and config.task.crf:
        raise ConfigError(f"loss.name={loss.name!r}: a CRF has a loss of its own: set task.crf=false")


@functools.cache
def _make(choice: Chosen, labels: tuple[str, ...], unseen: tuple[str, ...]) -> Task:
    task = choice.make(labels, unseen)
    if not isinstance(task, Task):
        raise ConfigError(f"task {choice.name} made {type(task).__name__}, no hybrid_flax.tasks.base.Task")
    if not task.metrics or task.metrics[0].name != "loss":
        raise ConfigError(f"task {choice.name}: the first of its metrics must be 'loss'")
    return task


@functools.cache
def _with_metrics(task: Task, entries: tuple[Registered, ...]) -> Task:
    """The task with further metrics, whose sums have names that begin with theirs."""
    metrics = tuple(entry.traits.metric for entry in entries)
    for taken in {metric.name for metric in metrics} & {metric.name for metric in task.metrics}:
        raise ConfigError(f"metric {taken!r} is one of the task already: register it under another name")

    def evaluate(outputs, batch):
        sums = dict(task.evaluate(outputs, batch))
        for entry in entries:
            with calling(entry.name, entry.make):
                own = entry.make(outputs, batch)
            if not isinstance(own, Mapping):
                raise ConfigError(f"metric {entry.name}: its sums are {type(own).__name__}, no arrays by name")
            sums |= {f"{entry.name}/{key}": value for key, value in own.items()}
        return sums

    def measure(sums):
        values = task.measure({key: value for key, value in sums.items() if "/" not in key})
        for entry in entries:
            start = f"{entry.name}/"
            own = {key.removeprefix(start): value for key, value in sums.items() if key.startswith(start)}
            with calling(entry.name, entry.traits.measure):
                values = values | {entry.name: float(np.asarray(entry.traits.measure(own)))}
        return values

    return task._replace(evaluate=evaluate, measure=measure, metrics=(*task.metrics, *metrics))


def _names(metrics):
    return tuple(metric.name for metric in metrics)


_CLASSES = _names(class_metrics(""))
register_task("lm", lambda labels, unseen: make_language_modelling(), factors=_FACTORS, metrics=_names(lm.METRICS))
register_task(
    "answer",
    lambda labels, unseen: make_answering(),
    reads="language",
    factors=_FACTORS,
    metrics=_names(answer.METRICS),
)
register_task(
    "classify",
    lambda labels, unseen: make_classification(num_unseen=len(unseen)),
    "class",
    factors=_FACTORS,
    metrics=_CLASSES,
)
register_task(
    "multilabel",
    lambda labels, unseen: make_classification(True, len(unseen)),
    "classes",
    factors=("label_smoothing",),
    metrics=_CLASSES,
)
register_task("regress", lambda labels, unseen: make_regression(), "number", metrics=_names(regress.METRICS))
register_task("tag", make_tagging, "tags", crf=True, factors=_FACTORS, metrics=(*_names(tag.SPAN_METRICS), *_CLASSES))
