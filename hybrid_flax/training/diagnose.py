"""Where a value stopped being finite."""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_flax.models.model import SequenceModel
from hybrid_flax.tasks.base import Task
from hybrid_flax.training.noise import Noise
from hybrid_flax.training.state import TrainState
from hybrid_flax.training.step import apply_model

__all__ = ["TrainingFailed", "explain_failure"]


class TrainingFailed(RuntimeError):
    """Training cannot go on: one line with the step, the metric and the place. Tried again, it fails again."""

    exit_code = 3


def explain_failure(model: SequenceModel, task: Task, state: TrainState, carry: Any, batch: Any, noise: Noise) -> str:
    """What was not finite in the step at which `state` stopped moving, and the first layer where it happened.

    carry, batch: all rows of that step, on one device.
    """

    def loss(params):
        (logits, _), variables = apply_model(model, params, carry, batch, noise, state, mutable=["diagnostics"])
        sums = task.loss(logits, batch)
        return sums["loss"], (logits, variables.get("diagnostics", {}))

    (value, (logits, diagnostics)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    step = int(state.step) + 1  # as metrics and checkpoints count, by updates done
    for index, layer, finite in _layers(model, diagnostics):
        if not finite:
            return f"step {step}: train/loss is not finite, first in layer {index} ({layer})"
    if not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(logits)):
        num_layers = len(model.design.layers)
        return f"step {step}: train/loss is not finite, first in the head (all {num_layers} layers are finite)"
    if not jnp.isfinite(value):
        return f"step {step}: train/loss is not finite, first in the loss itself (all logits are finite)"
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        if not jnp.all(jnp.isfinite(leaf)):
            name = "/".join(str(entry.key) for entry in path)
            return f"step {step}: train/grad_norm is not finite, first in the gradient of {name}"
    return f"step {step}: train/grad_norm is not finite, the sum of squares of the gradients overflows"


def _layers(model, diagnostics):
    """(number, layer, finite) of every layer in order of depth."""
    backbone = diagnostics.get("backbone", {})
    flags = {}
    repeats = backbone.get("repeats", {})
    for place in range(len(repeats)):
        for repeat, finite in enumerate(repeats[f"layer_{place}"]["finite"][0]):
            flags[repeat * len(repeats) + place] = bool(finite)
    first = len(flags)
    for place in range(len(backbone.get("rest", {}))):
        flags[first + place] = bool(backbone["rest"][f"layer_{place}"]["finite"][0])
    return [(index, model.design.layers[index], flags[index]) for index in sorted(flags)]
