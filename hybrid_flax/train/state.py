"""Everything that moves while a model trains, in one value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_flax.typing import Array, Float, Int, Key, Params, PyTree

__all__ = ["Hparams", "TrainState", "make_hparams"]


class Hparams(NamedTuple):
    """Hyperparameters that are data: traced scalars, so that one compiled step serves every value of them."""

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    table_decay: Float[Array, ""]
    b1: Float[Array, ""]
    b2: Float[Array, ""]
    epsilon: Float[Array, ""]
    momentum: Float[Array, ""]
    clip_norm: Float[Array, ""]
    ema_decay: Float[Array, ""]
    dropout: Float[Array, ""]
    embedding_dropout: Float[Array, ""]
    word_dropout: Float[Array, ""]
    recurrent_dropout: Float[Array, ""]
    label_smoothing: Float[Array, ""]
    z_loss: Float[Array, ""]


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
    hparams: Hparams
    sums: dict[str, Float[Array, ""]]
    failed_step: Int[Array, ""]


def make_hparams(**values: float) -> Hparams:
    """Hparams as float32 scalars on the device."""
    return Hparams(**{name: jnp.asarray(values[name], jnp.float32) for name in Hparams._fields})


def replace_hparams(state: TrainState, **values: float) -> TrainState:
    """The state with other hyperparameters, in the same places on the same devices."""
    changed = {
        name: jax.device_put(jnp.asarray(value, jnp.float32), getattr(state.hparams, name).sharding)
        for name, value in values.items()
    }
    return state._replace(hparams=state.hparams._replace(**changed))
