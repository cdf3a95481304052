"""Where a run stands: all that moves, before its first step or as a checkpoint has it."""

from typing import Any, NamedTuple

import jax

from hybrid_flax.config import ConfigError
from hybrid_flax.data.vectors import read_vectors
from hybrid_flax.models.build import CARRIED_CAPACITY, init_params
from hybrid_flax.models.embedding import replace_rows
from hybrid_flax.training.checkpoint import Checkpoints, Damaged
from hybrid_flax.training.optimizer import leaf_kinds
from hybrid_flax.training.setup import Setup
from hybrid_flax.training.state import TrainState
from hybrid_flax.training.step import init_train_state
from hybrid_flax.typing import PyTree

__all__ = ["Position", "fresh_position", "restore_position", "start_position"]


class Position(NamedTuple):
    """All that moves, as it is checkpointed: a run is this and its config."""

    state: TrainState
    carry: PyTree


def start_position(setup: Setup, config: Any, checkpoints: Checkpoints) -> Position:
    """The position of the newest checkpoint that is whole, or that before the first step, on its devices.

    Those that turn out to be damaged are left out. Raises ConfigError in one line where none of them is whole.
    """
    steps = checkpoints.steps()
    if not steps and not checkpoints.damaged:
        return fresh_position(setup, config)
    like = fresh_position(setup, config, starts=False)
    for step in steps:
        try:
            return restore_position(setup, checkpoints, step, like)
        except Damaged as error:
            checkpoints.leave_out(step, str(error))
    raise ConfigError(f"no checkpoint is whole: {'; '.join(checkpoints.damaged.values())}; use another --workdir")


def fresh_position(setup: Setup, config: Any, *, starts: bool = True) -> Position:
    """The position before the first step; starts: with what config.model.vectors and setup.start give, if anything."""
    parallel, model = setup.parallel, setup.model
    key_params, key_steps = jax.random.split(jax.random.key(config.seed))
    params = jax.jit(init_params, static_argnums=0)(model, key_params)
    if config.model.init_scale != 1.0:
        scales = {"matrix": config.model.init_scale}
        params = jax.tree.map(lambda leaf, kind: leaf * scales.get(kind, 1.0), params, leaf_kinds(params))
    if starts and config.model.vectors:
        params = _with_vectors(params, config.model, setup.source.tokenizer)
    if starts and setup.start is not None:
        params = setup.start.apply(params)
    state = parallel.put_state(init_train_state(params, setup.hparams, setup.traits, key_steps))
    carry = ()
    if setup.carried:
        fresh = model.init_state(setup.batch_size, CARRIED_CAPACITY)
        rows = parallel.rows(setup.batch_size)
        carry = parallel.put_rows(jax.tree.map(lambda leaf: leaf[rows], fresh))
    return Position(state, carry)


def restore_position(setup: Setup, checkpoints: Checkpoints, step: int, like: Position) -> Position:
    """The position that was saved after `step` updates, placed as `like` is. Raises Damaged, and ConfigError."""
    parallel = setup.parallel
    try:
        restored = checkpoints.restore(step, Position(like.state, parallel.get_rows(like.carry)))
    except Damaged:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    carry = parallel.put_rows(restored.carry) if parallel.kind == "pmap" else restored.carry
    return Position(restored.state, carry)


def _with_vectors(params, model, tokenizer):
    """Initial parameters whose embedding has the vectors of known words."""
    try:
        vectors = read_vectors(model.vectors, tokenizer, model.embedding_width or model.width)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    known, total = len(vectors.ids), tokenizer.vocab_size - 1
    print(
        f"{model.vectors}: vectors of {known:,} of {total:,} words ({100 * known / total:.1f} %), "
        f"{vectors.lowered:,} of them by lower case"
    )
    ids, rows = jax.device_put((vectors.ids, vectors.rows))
    return params | {"embed": replace_rows(params["embed"], ids, rows)}
