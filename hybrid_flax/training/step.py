"""The train step and the evaluation step: pure functions of one device's rows, written once.

`train_step(state, carry, batch) -> (state, carry, ())`. `state` is replicated; `carry` (the states of the mixers in
stream mode, else ()) and `batch` have one row a sequence and are split over devices. `training.parallel` maps them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from hybrid_flax.models.model import SequenceModel
from hybrid_flax.registration import Chosen
from hybrid_flax.tasks.base import Task
from hybrid_flax.training.frozen import hold, merge, moving, without_frozen
from hybrid_flax.training.noise import NO_NOISE, Noise, Noisy, apply_noise
from hybrid_flax.training.optimizer import make_optimizer, make_unit_schedule
from hybrid_flax.training.state import Hparams, OwnHparams, TrainState
from hybrid_flax.typing import Array, Batch, Key, Params, State

__all__ = ["StepTraits", "apply_model", "init_train_state", "make_eval_step", "make_train_step"]

SUMS = ("loss", "count", "grad_norm", "steps")


class StepTraits(NamedTuple):
    """What a train step is compiled for; everything else it needs is data.

    optimizer: its name, or it with the options that are no data. schedule: arguments of `make_unit_schedule` as sorted
    pairs. noise: the kinds of dropout. ema: whether there is one. regularised: whether label smoothing or z-loss is on.
    accumulate: parts that a device's rows are worked off in. log_every: the steps after which the sums in the state
    start again. frozen: places of parameters that do not move.
    """

    optimizer: str | Chosen
    nesterov: bool
    schedule: tuple[tuple[str, Any], ...]
    noise: Noise = NO_NOISE
    ema: bool = False
    regularised: bool = False
    accumulate: int = 1
    log_every: int = 1
    frozen: tuple[str, ...] = ()


def init_train_state(
    params: Params, hparams: Hparams | OwnHparams, traits: StepTraits, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(traits.optimizer, hparams, nesterov=traits.nesterov).init(
            moving(params, traits.frozen)
        ),
        ema=jax.tree.map(jnp.copy, params) if traits.ema else None,
        key=key,
        hparams=jax.tree.map(jnp.copy, hparams),  # steps donate the state
        sums={name: jnp.zeros(()) for name in SUMS},
        failed_step=jnp.full((), -1, jnp.int32),
    )


@functools.cache
def make_train_step(model: SequenceModel, task: Task, traits: StepTraits, axis_name: str | None) -> Callable:
    """The train step of one device; `axis_name` is the mapped axis to sum over, None where there is none.

    Equal arguments give the identical function.
    """
    schedule = make_unit_schedule(**dict(traits.schedule))

    def loss_sum(moved, carry, batch, state):
        params = merge(state.params, moved) if traits.frozen else moved
        logits, after = apply_model(model, params, carry, batch, traits.noise, state)
        carry = () if after is None else after
        hparams = state.hparams
        factors = (hparams.label_smoothing, hparams.z_loss) if traits.regularised else ()
        sums = task.loss(logits, batch, *factors)
        return sums["loss"], (sums["count"], carry)

    def gradient_sums(state, carry, batch):
        """((loss, count), gradient of the loss sum, carry) of this device's rows."""
        trained = moving(state.params, traits.frozen)

        def part(total, rows):
            carry, batch = rows
            (loss, (count, carry)), grads = jax.value_and_grad(loss_sum, has_aux=True)(trained, carry, batch, state)
            return jax.tree.map(jnp.add, total, (loss, count, grads)), carry

        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
        if traits.accumulate == 1:
            return part(zero, (carry, batch))
        return _scan_parts(part, zero, (carry, batch), traits.accumulate)

    def train_step(state, carry, batch):
        (loss, count, grads), new_carry = gradient_sums(state, carry, batch)
        if axis_name is not None:
            loss, count, grads = lax.psum((loss, count, grads), axis_name)
        count_or_one = jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g / count_or_one.astype(g.dtype), grads)
        grads = without_frozen(grads, state.params, traits.frozen)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        sums = jax.tree.map(lambda old: jnp.where(state.step % traits.log_every == 0, 0.0, old), state.sums)
        new = {"loss": loss, "count": count, "grad_norm": grad_norm, "steps": jnp.ones(())}
        moved = _update(state, grads, traits, schedule)._replace(sums=jax.tree.map(jnp.add, sums, new))
        ok = finite & (state.failed_step < 0)
        failed = jnp.where(finite | (state.failed_step >= 0), state.failed_step, state.step)
        kept = _choose(ok, moved._replace(key=()), state._replace(key=()))
        return kept._replace(key=state.key, failed_step=failed), _choose(ok, new_carry, carry), ()

    return train_step


@functools.cache
def make_eval_step(model: SequenceModel, task: Task, axis_name: str | None) -> Callable:
    """(params, carry, batch) -> (params, carry, sums): as a train step, so that one wrapper maps both."""

    def eval_step(params, carry, batch):
        logits, after = apply_model(model, params, carry, batch)
        sums = task.evaluate(logits, batch)
        return params, () if after is None else after, sums if axis_name is None else lax.psum(sums, axis_name)

    return eval_step


def apply_model(
    model: SequenceModel,
    params: Params,
    carry: State,
    batch: Batch,
    noise: Noise = NO_NOISE,
    state: TrainState | None = None,
    **options: Any,
) -> Any:
    """`model.apply` on the rows of a batch, under the noise of the next step of `state`; carry () is none."""
    read = Noisy(params, batch.tokens, None, None)
    if noise != NO_NOISE:
        assert state is not None, "noise needs the keys of a train state"
        read = apply_noise(noise, state, params, batch, model.design.vocab_size)
    before = None if carry == () else carry
    return model.apply(
        {"params": read.params}, read.tokens, batch.segments, before, read.dropout, read.factors, **options
    )


def _scan_parts(part, zero, rows, num_parts):
    """`part` over equal groups of rows, one after another; the rows of the carry come back in order."""
    grouped = jax.tree.map(lambda leaf: leaf.reshape(num_parts, -1, *leaf.shape[1:]), rows)
    total, carry = lax.scan(part, zero, grouped)
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)


def _update(state, grads, traits, schedule):
    optimizer = make_optimizer(traits.optimizer, state.hparams, nesterov=traits.nesterov)
    old = moving(state.params, traits.frozen)
    updates, opt_state = optimizer.update(grads, state.opt_state, old)
    rate = state.hparams.learning_rate * schedule(state.step)
    params = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), old, updates)
    ema = state.ema
    if traits.ema:
        ema = moving(ema, traits.frozen)
        # The mean of the first steps is a plain one, so that the initial values are soon forgotten.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(state.hparams.ema_decay, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda old, p: decay * old + (1.0 - decay) * p, ema, params)
    if traits.frozen:
        params = merge(state.params, hold(params, old, state.params, traits.frozen))
        if traits.ema:
            held = hold(ema, moving(state.ema, traits.frozen), state.params, traits.frozen)
            ema = merge(state.ema, held)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)


def _choose(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
