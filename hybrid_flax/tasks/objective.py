"""Losses by name: what a task minimises in place of its own loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid_flax.errors import ConfigError
from hybrid_flax.ops.losses import cross_entropy, squared_error
from hybrid_flax.registration import LOSSES, Chosen, calling
from hybrid_flax.tasks.base import Task, known_targets
from hybrid_flax.typing import Array, Float

__all__ = ["OWN_LOSS", "LossTraits", "register_loss", "with_loss"]

OWN_LOSS = "cross_entropy"  # the loss.name under which every task has its own


class LossTraits(NamedTuple):
    """tasks: the names of those that can have the loss."""

    tasks: tuple[str, ...]


def register_loss(
    name: str, make: Callable[..., Callable[[Any, Any], Float[Array, "..."]]], *, tasks: str | tuple[str, ...] = ("lm",)
) -> None:
    """Make `name` a loss: make(**options) -> ((outputs, targets) -> losses, one for every target).

    outputs, targets: those of a batch; losses have the shape of its weights, or further axes, which are summed. Targets
    without weight may be anything that is in range. Options are the keyword-only arguments of `make`,
    `losses.NAME.OPTION` in a config. tasks: those that can have it; metrics stay what they are, "loss" too.
    Raises ValueError as `Table.register`.
    """
    LOSSES.register(name, make, LossTraits((tasks,) if isinstance(tasks, str) else tuple(tasks)))


@functools.cache
def with_loss(task: Task, choice: Chosen, label_kind: str | None) -> Task:
    """The task with another loss; equal arguments give the identical object. label_kind: of the task."""
    function = choice.make()

    def loss(outputs, batch, label_smoothing=0.0, z_loss=0.0):
        del label_smoothing, z_loss
        if label_kind != "number" and isinstance(outputs, tuple):
            raise ConfigError(f"loss.name={choice.name}: a CRF has a loss of its own: set task.crf=false")
        targets, weights = _scored(outputs, batch, label_kind)
        with calling(choice.name, function):
            losses = function(outputs, targets)
        if losses.shape[: weights.ndim] != weights.shape:
            raise ConfigError(
                f"loss {choice.name} gives {losses.shape}, not one for each of the targets {weights.shape}"
            )
        losses = jnp.sum(losses, axis=tuple(range(weights.ndim, losses.ndim)))
        return {"loss": jnp.sum(losses * weights), "count": jnp.sum(weights)}

    return task._replace(loss=loss)


def _scored(outputs, batch, label_kind):
    """Targets and weights; those that training has not have no weight."""
    if label_kind in (None, "number"):
        return batch.targets, batch.weights
    if label_kind == "classes":
        targets, unseen = jnp.split(batch.targets, [outputs.shape[-1]], axis=-1)
        return targets, jnp.where(jnp.all(unseen == 0, axis=-1), batch.weights, 0.0)
    return known_targets(batch, outputs.shape[-1])


def _brier(logits, targets):
    """The sum over the vocabulary of (probability - one-hot)² (Brier 1950)."""
    one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return jnp.sum(squared_error(jax.nn.softmax(logits, axis=-1), one_hot), axis=-1)


register_loss(OWN_LOSS, lambda: cross_entropy)
register_loss("squared_error", lambda: _brier)
