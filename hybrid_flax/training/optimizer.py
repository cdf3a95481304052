"""Optimisers and schedules from optax, with hyperparameters that may be traced."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from hybrid_flax.errors import ConfigError
from hybrid_flax.registration import OPTIMIZERS, SCHEDULES, Chosen, calling
from hybrid_flax.training.state import Hparams, OwnHparams
from hybrid_flax.typing import LEAF_KINDS, Array, Int, Params, Scalar

__all__ = [
    "Course",
    "leaf_kinds",
    "make_optimizer",
    "make_unit_schedule",
    "register_optimizer",
    "register_schedule",
]


class Course(NamedTuple):
    """What a schedule is drawn over: the arguments of `make_unit_schedule`, and the steps `rest` after the warm-up."""

    rest: int
    num_steps: int
    warmup_steps: int
    final_fraction: float
    decay_rate: float
    decay_every: int
    decay_fraction: float


def register_optimizer(name: str, make: Callable[..., optax.GradientTransformation], *, decays: bool = True) -> None:
    """Make `name` an optimizer: make(hparams, **options) -> the direction of a step before the learning rate.

    That is what `optax.scale_by_adam` and its like give. hparams: the knobs optim.* as attributes, scalars that may be
    traced, and `nesterov`, a bool. Options are the keyword-only arguments of `make`, `optimizers.NAME.OPTION` in a
    config; those that are floats may be traced too. decays: whether weights decay under it.
    Raises ValueError as `Table.register`.
    """
    OPTIMIZERS.register(name, make, decays)


def register_schedule(name: str, make: Callable[..., Callable[[Int[Array, ""]], Scalar]]) -> None:
    """Make `name` a schedule: make(course, **options) -> (steps after the warm-up -> factor of the learning rate).

    course: a `Course`. Options are the keyword-only arguments of `make`, `schedules.NAME.OPTION` in a config.
    Raises ValueError as `Table.register`.
    """
    SCHEDULES.register(name, make)


def make_optimizer(
    optimizer: str | Chosen, hparams: Hparams | OwnHparams, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """Clip, precondition and decay weights; the caller multiplies by -learning rate * unit schedule.

    Weight decay is decoupled, of one strength for matrices and another for tables of embeddings; vectors have none,
    and nothing has under "adam". "sgd" has momentum, Nesterov's if asked.
    "muon" (Jordan et al. 2024) orthogonalises every matrix, its size matched to Adam's (Liu et al. 2025,
    equation 4), and gives the rest to Adam, under `nesterov` to NAdam (Dozat 2016). Its Nesterov step is NAdam's too:
    b m_t / (1 - b^(t+1)) + (1 - b) g_t / (1 - b^t), t = 1, 2, ...; Jordan et al. have no such corrections, which soon
    are 1. optimizer: a name, or one of `OPTIMIZERS` with its options. Raises ValueError for an unknown name.
    """
    choice = OPTIMIZERS.choose(optimizer) if isinstance(optimizer, str) else optimizer
    knobs, options = hparams if isinstance(hparams, OwnHparams) else (hparams, {})
    direction = choice.make(SimpleNamespace(**knobs._asdict(), nesterov=nesterov), **options)
    if not isinstance(direction, optax.GradientTransformation):
        raise ConfigError(
            f"optimizer {choice.name} returned {type(direction).__name__}, no optax.GradientTransformation"
        )
    decays = choice.entry.traits
    decay = _decay(matrix=hparams.weight_decay, table=hparams.table_decay) if decays else optax.identity()
    direction = optax.GradientTransformation(
        _named(choice, direction.init), _named(choice, _promoting(direction.update))
    )
    return optax.chain(_clip_by_global_norm(hparams.clip_norm), direction, decay)


def make_unit_schedule(
    name: str | Chosen,
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
    rsqrt: sqrt(warmup / step), steps counted from 1 (Vaswani et al. 2017, equation 3).
    name: that of a schedule, or one of `SCHEDULES` with its options.
    Raises ValueError for an unknown name and for a warm-up that leaves no step.
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(f"schedule.warmup_steps={warmup_steps} must be in [0, {num_steps}), the number of steps")
    choice = SCHEDULES.choose(name) if isinstance(name, str) else name
    rest = num_steps - warmup_steps
    course = Course(rest, num_steps, warmup_steps, final_fraction, decay_rate, decay_every, decay_fraction)
    after = choice.make(course)
    if not callable(after):
        raise ConfigError(f"schedule {choice.name} returned {type(after).__name__}, no function of the steps")
    if warmup_steps:
        warmup = optax.linear_schedule(1.0 / warmup_steps, 1.0, max(1, warmup_steps - 1))
        after = optax.join_schedules([warmup, after], [warmup_steps])
    return _named(choice, _promoting(after))


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


def _named(choice, function):
    """`function`, whose faults are told as those of what was chosen."""

    def run(*arguments):
        with calling(choice.name, choice.entry.make, passes=ValueError):
            return function(*arguments)

    return run


def _promoting(function):
    """`function` of optax, which mixes counts of steps with floats, where strict promotion is asked of all else."""

    def run(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments)

    return run


def _adam(hparams):
    return optax.scale_by_adam(b1=hparams.b1, b2=hparams.b2, eps=hparams.epsilon)


def _rmsprop(hparams):
    return optax.scale_by_rms(decay=hparams.b2, eps=hparams.epsilon)


def _sgd(hparams):
    return optax.trace(decay=hparams.momentum, nesterov=hparams.nesterov)


def _lion(hparams):
    return optax.scale_by_lion(b1=hparams.b1, b2=hparams.b2)


def _adafactor(hparams):
    del hparams
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())


def _muon(hparams):
    muon = contrib.muon(
        learning_rate=1.0,
        beta=hparams.momentum,
        nesterov=hparams.nesterov,
        consistent_rms=0.2,
        adam_b1=hparams.b1,
        adam_b2=hparams.b2,
        eps=hparams.epsilon,
        muon_weight_dimension_numbers=_matrix_axes,
    )
    return optax.chain(muon, optax.scale(-1.0))


def _wsd(course):
    decay_steps = max(1, min(course.rest, round(course.decay_fraction * course.num_steps)))
    return optax.linear_schedule(1.0, course.final_fraction, decay_steps, transition_begin=course.rest - decay_steps)


def _rsqrt(course):
    return lambda count: jnp.sqrt(max(course.warmup_steps, 1) / (count + course.warmup_steps + 1))


register_optimizer("adam", _adam, decays=False)
register_optimizer("adamw", _adam)
register_optimizer("rmsprop", _rmsprop)
register_optimizer("sgd", _sgd)
register_optimizer("lion", _lion)
register_optimizer("adafactor", _adafactor)
register_optimizer("muon", _muon)
register_schedule("constant", lambda c: optax.constant_schedule(1.0))
register_schedule("exponential", lambda c: optax.exponential_decay(1.0, c.decay_every, c.decay_rate))
register_schedule("step", lambda c: optax.exponential_decay(1.0, c.decay_every, c.decay_rate, staircase=True))
register_schedule("linear", lambda c: optax.linear_schedule(1.0, c.final_fraction, c.rest))
register_schedule("cosine", lambda c: optax.cosine_decay_schedule(1.0, c.rest, alpha=c.final_fraction))
register_schedule("wsd", _wsd)
register_schedule("rsqrt", _rsqrt)
