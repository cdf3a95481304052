"""The tasks by the names that config.task.name gives them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hybrid_flax.data.pipeline import MODES
from hybrid_flax.errors import ConfigError, nearest
from hybrid_flax.tasks.answer import make_answering
from hybrid_flax.tasks.base import Task
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.tasks.regress import make_regression
from hybrid_flax.tasks.tag import make_tagging

__all__ = ["TASKS", "TaskEntry", "check_task", "is_pooled", "label_kind", "make_task"]


class TaskEntry(NamedTuple):
    """How a task is made, and what it is made for.

    make: (config, labels of the source, its unseen ones) -> Task. label_kind: one of `data.examples.KINDS`, None where
    no example has a label.
    """

    make: Callable[[Any, tuple[str, ...], tuple[str, ...]], Task]
    label_kind: str | None = None


TASKS: dict[str, TaskEntry] = {
    "lm": TaskEntry(lambda config, labels, unseen: make_language_modelling(config.loss.name)),
    "answer": TaskEntry(lambda config, labels, unseen: make_answering()),
    "classify": TaskEntry(lambda config, labels, unseen: make_classification(num_unseen=len(unseen)), "class"),
    "multilabel": TaskEntry(lambda config, labels, unseen: make_classification(True, len(unseen)), "classes"),
    "regress": TaskEntry(lambda config, labels, unseen: make_regression(), "number"),
    "tag": TaskEntry(lambda config, labels, unseen: make_tagging(labels, unseen), "tags"),
}


def check_task(config: Any) -> None:
    """Raises ConfigError for an unknown task, and for knobs that are set and not read by the task or its loss."""
    task, loss = config.task.name, config.loss
    kind = label_kind(task)
    for key, value, default, readers in (
        ("task.crf", config.task.crf, False, ("tag",)),
        ("task.pooling", config.task.pooling, "mean", tuple(filter(is_pooled, TASKS))),
    ):
        if value != default and task not in readers:
            raise ConfigError(
                f"{key}={value} goes with task.name={' or '.join(readers)}, not {task}: leave it at {default}"
            )
    if config.data.splits and task == "answer":
        raise ConfigError(
            f"data.splits={config.data.splits!r} names files, and task.name=answer reads none: set it to ''"
        )
    if config.data.folds and kind is None:
        raise ConfigError(f"data.folds={config.data.folds} needs labelled examples, not task.name={task}")
    if task != "lm" and loss.name != "cross_entropy":
        raise ConfigError(
            f"loss.name={loss.name!r} goes with task.name=lm, and task.name={task} has a loss of its own: "
            "leave it at cross_entropy"
        )
    crf = task == "tag" and config.task.crf
    shown = f"task.name={task}{' with a CRF' if crf else ''}"
    for name, others in (("label_smoothing", ("regress",)), ("z_loss", ("regress", "multilabel"))):
        if loss[name] and (crf or task in others):
            raise ConfigError(f"loss.{name}={loss[name]} is no part of the loss of {shown}: set it to 0")
    modes = tuple(MODES) if task == "lm" else ("padded",)
    if config.data.mode not in modes:
        raise ConfigError(f"data.mode={config.data.mode!r} is none of {', '.join(modes)}, for task.name={task}")


def make_task(config: Any, labels: tuple[str, ...], unseen: tuple[str, ...] = ()) -> Task:
    """What config.task says is learnt; `labels` and `unseen` are those of the source."""
    return _find(config.task.name).make(config, labels, unseen)


def label_kind(task_name: str) -> str | None:
    """The kind of label of a task, one of `data.examples.KINDS`; None where no example has a label."""
    return _find(task_name).label_kind


def is_pooled(task_name: str) -> bool:
    """Whether a task labels whole sequences, so that one output is made of all positions."""
    return label_kind(task_name) not in (None, "tags")


def _find(name):
    if name not in TASKS:
        raise ConfigError(f"task.name={name!r} is none of {', '.join(TASKS)}; {nearest(name, TASKS)}")
    return TASKS[name]
