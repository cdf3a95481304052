"""The tasks by the names that config.task.name gives them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hybrid_flax.tasks.answer import make_answering
from hybrid_flax.tasks.base import Task
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.tasks.regress import make_regression
from hybrid_flax.tasks.tag import make_tagging

__all__ = ["TASKS", "TaskEntry", "label_kind", "make_task"]


class TaskEntry(NamedTuple):
    """How a task is made, and what it is made for.

    make: (config, labels of the source) -> Task. label_kind: one of `data.examples.KINDS`, None where no example has a
    label.
    """

    make: Callable[[Any, tuple[str, ...]], Task]
    label_kind: str | None = None


TASKS: dict[str, TaskEntry] = {
    "lm": TaskEntry(lambda config, labels: make_language_modelling(config.loss.name)),
    "answer": TaskEntry(lambda config, labels: make_answering()),
    "classify": TaskEntry(lambda config, labels: make_classification(), "class"),
    "multilabel": TaskEntry(lambda config, labels: make_classification(multi_label=True), "classes"),
    "regress": TaskEntry(lambda config, labels: make_regression(), "number"),
    "tag": TaskEntry(lambda config, labels: make_tagging(labels), "tags"),
}


def make_task(config: Any, labels: tuple[str, ...]) -> Task:
    """What config.task says is learnt; `labels` are those of the source."""
    return TASKS[config.task.name].make(config, labels)


def label_kind(task_name: str) -> str | None:
    """The kind of label of a task, one of `data.examples.KINDS`; None where no example has a label."""
    return TASKS[task_name].label_kind
