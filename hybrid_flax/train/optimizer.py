"""Optimisers and schedules from optax, with hyperparameters that may be traced."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from hybrid_flax.train.state import Hparams
from hybrid_flax.typing import LEAF_KINDS, Array, Int, Params, Scalar

__all__ = ["OPTIMIZERS", "SCHEDULES", "leaf_kinds", "make_optimizer", "make_unit_schedule"]

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd", "lion", "adafactor", "muon")
SCHEDULES = ("constant", "exponential", "step", "linear", "cosine", "wsd", "rsqrt")


def make_optimizer(name: str, hparams: Hparams, *, nesterov: bool = False) -> optax.GradientTransformation:
    """Clip, precondition and decay weights; the caller multiplies by -learning rate * unit schedule.

    Weight decay is decoupled, of one strength for matrices and another for tables of embeddings; vectors have none,
    and nothing has under "adam". "sgd" has momentum, Nesterov's if asked.
    "muon" (Jordan et al. 2024) orthogonalises every matrix, its size matched to Adam's (Liu et al. 2025,
    equation 4), and gives the rest to Adam. Raises ValueError for an unknown name.
    """
    if name in ("adam", "adamw"):
        direction = optax.scale_by_adam(b1=hparams.b1, b2=hparams.b2, eps=hparams.epsilon)
    elif name == "rmsprop":
        direction = optax.scale_by_rms(decay=hparams.b2, eps=hparams.epsilon)
    elif name == "sgd":
        direction = optax.trace(decay=hparams.momentum, nesterov=nesterov)
    elif name == "lion":
        direction = optax.scale_by_lion(b1=hparams.b1, b2=hparams.b2)
    elif name == "adafactor":
        direction = optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        )
    elif name == "muon":
        muon = contrib.muon(
            learning_rate=1.0,
            beta=hparams.momentum,
            nesterov=nesterov,
            consistent_rms=0.2,
            adam_b1=hparams.b1,
            adam_b2=hparams.b2,
            eps=hparams.epsilon,
            muon_weight_dimension_numbers=_matrix_axes,
        )
        direction = optax.chain(muon, optax.scale(-1.0))
    else:
        raise ValueError(f"optim.name={name!r} is none of {', '.join(OPTIMIZERS)}")
    decay = _decay(matrix=hparams.weight_decay, table=hparams.table_decay) if name != "adam" else optax.identity()
    direction = optax.GradientTransformation(direction.init, _promoting(direction.update))
    return optax.chain(_clip_by_global_norm(hparams.clip_norm), direction, decay)


def make_unit_schedule(
    name: str,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    decay_rate: float = 0.5,
    decay_every: int = 1000,
    decay_fraction: float = 0.2,
) -> Callable[[Int[Array, ""]], Scalar]:
    """Multiplier of the learning rate, at most 1: a linear warm-up, then by `name` until `num_steps`.

    constant; exponential: decay_rate^(t / decay_every); step: the same in jumps; linear and cosine: down to
    final_fraction; wsd: constant, then linear to final_fraction over the last `decay_fraction` of all steps;
    rsqrt: sqrt(warmup / step) (Vaswani et al. 2017, equation 3). Raises ValueError for an unknown name and for a
    warm-up that leaves no step.
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(f"schedule.warmup_steps={warmup_steps} must be in [0, {num_steps}), the number of steps")
    rest = num_steps - warmup_steps
    if name == "constant":
        after = optax.constant_schedule(1.0)
    elif name in ("exponential", "step"):
        after = optax.exponential_decay(1.0, decay_every, decay_rate, staircase=name == "step")
    elif name == "linear":
        after = optax.linear_schedule(1.0, final_fraction, rest)
    elif name == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest, alpha=final_fraction)
    elif name == "wsd":
        decay_steps = max(1, min(rest, round(decay_fraction * num_steps)))
        after = optax.linear_schedule(1.0, final_fraction, decay_steps, transition_begin=rest - decay_steps)
    elif name == "rsqrt":
        after = _rsqrt(max(warmup_steps, 1))
    else:
        raise ValueError(f"schedule.name={name!r} is none of {', '.join(SCHEDULES)}")
    if warmup_steps:
        warmup = optax.linear_schedule(1.0 / warmup_steps, 1.0, max(1, warmup_steps - 1))
        after = optax.join_schedules([warmup, after], [warmup_steps])
    return _promoting(after)


def leaf_kinds(params: Params) -> Params:
    """Kind of every parameter by its innermost name; raises ValueError for a name that is not in the vocabulary."""

    def kind(path, leaf):
        name = path[-1].key
        if name not in LEAF_KINDS:
            where = "/".join(str(entry.key) for entry in path)
            raise ValueError(
                f"parameter {where}: {name!r} is none of {', '.join(LEAF_KINDS)}; register it with leaves="
            )
        return LEAF_KINDS[name]

    return jax.tree_util.tree_map_with_path(kind, params)


def _decay(**strengths):
    """Add to the update of every parameter itself times the strength of its kind."""

    def update(updates, state, params):
        def decayed(update, param, kind):
            return update + strengths[kind] * param if kind in strengths else update

        return jax.tree.map(decayed, updates, params, leaf_kinds(params)), state

    def init(params):
        leaf_kinds(params)  # for its error, before the first step
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def _matrix_axes(params):
    """Muon's axes: the last is out; the first is in, the second under a scanned stack of layers."""

    def axes(path, leaf):
        if LEAF_KINDS[path[-1].key] != "matrix":
            return None
        stacked = any(entry.key == "repeats" for entry in path)
        return contrib.MuonDimensionNumbers(reduction_axis=int(stacked), output_axis=leaf.ndim - 1)

    leaf_kinds(params)
    return jax.tree_util.tree_map_with_path(axes, params)


def _clip_by_global_norm(max_norm):
    """Scale all gradients down to a global norm of at most `max_norm`, which may be traced (infinity: never)."""

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / jnp.maximum(optax.tree.norm(updates), 1e-12))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _promoting(function):
    """`function` of optax, which mixes counts of steps with floats, where strict promotion is asked of all else."""

    def run(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments)

    return run


def _rsqrt(warmup_steps):
    return lambda count: jnp.sqrt(warmup_steps / (count + warmup_steps))
