"""Everything that moves while a model trains, in one value."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from hybrid_flax.typing import Array, Int, Key, Params, PyTree, Scalar

__all__ = ["Hparams", "OwnHparams", "TrainState", "make_hparams"]


class Hparams(NamedTuple):
    """Hyperparameters that are data: traced scalars, so that one compiled step serves every value of them."""

    learning_rate: Scalar
    weight_decay: Scalar
    table_decay: Scalar
    b1: Scalar
    b2: Scalar
    epsilon: Scalar
    momentum: Scalar
    clip_norm: Scalar
    ema_decay: Scalar
    dropout: Scalar
    embedding_dropout: Scalar
    word_dropout: Scalar
    recurrent_dropout: Scalar
    label_smoothing: Scalar
    z_loss: Scalar


class OwnHparams(NamedTuple):
    """`Hparams`, and the floats among the options of a registered optimizer, by name.

    A class of its own, so that runs without such options have the checkpoints that they always had.
    """

    knobs: Hparams
    options: dict[str, Scalar]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.knobs, name)


class TrainState(NamedTuple):
    """Replicated on every device.

    step: updates done. ema: running mean of the parameters, None where it is off. key: the seed's key, never
    changed; what is random is folded from (key, step, row). sums: loss sums since the last log row.
    failed_step: the first step whose loss or gradient was not finite, -1 while all were; from then on nothing
    moves any more.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    ema: Params | None
    key: Key[Array, ""]
    hparams: Hparams | OwnHparams
    sums: dict[str, Scalar]
    failed_step: Int[Array, ""]


def make_hparams(options: Mapping[str, float] = {}, **values: float) -> Hparams | OwnHparams:
    """Hparams as float32 scalars on the device; options: of a registered optimizer."""
    knobs = Hparams(**{name: jnp.asarray(values[name], jnp.float32) for name in Hparams._fields})
    own = {name: jnp.asarray(value, jnp.float32) for name, value in options.items()}
    return OwnHparams(knobs, own) if own else knobs
