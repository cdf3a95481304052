"""What a setup will cost, before anything trains: sizes from `eval_shape`, FLOPs from one walk over the jaxpr."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hybrid_flax.console import make_console
from hybrid_flax.cost import flops, residual_bytes, tree_bytes, tree_size
from hybrid_flax.models.build import CARRIED_CAPACITY, init_params, model_is_causal
from hybrid_flax.models.model import Block, layer_mixer
from hybrid_flax.train.setup import Setup
from hybrid_flax.train.step import init_train_state, make_train_step
from hybrid_flax.typing import Mixer, Segments
from hybrid_flax.units import format_bytes, format_count

__all__ = ["LayerCost", "ModelPlan", "make_plan", "print_plan"]


class LayerCost(NamedTuple):
    """One row of the plan.

    parameters: numbers. forward_flops: per token of a whole sequence. decode_flops: of one token from a carried
    state. state_bytes: of one sequence, whatever its length. cache_bytes: what is cached of its live tokens besides,
    for a sequence of the planned length.
    """

    name: str
    parameters: int
    forward_flops: float
    decode_flops: float
    state_bytes: int
    cache_bytes: int


class ModelPlan(NamedTuple):
    """layers: every layer, then what is left; parameters and train_flops (per token, with the update) of the whole.

    optimizer_bytes: parameters, their average and optimizer state. gradient_bytes: of the gradients that a step makes.
    activation_bytes: kept for the backward pass of one device's rows. What the compiled step needs besides, to work in,
    is XLA's choice and not in the plan. length: of a row, in tokens. tokens_per_step, num_steps: of the training run.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    forward_flops: float
    train_flops: float
    optimizer_bytes: int
    gradient_bytes: int
    activation_bytes: int
    length: int
    tokens_per_step: int
    num_steps: int


def make_plan(setup: Setup, num_steps: int) -> ModelPlan:
    """The plan of a setup; nothing is compiled or run."""
    model, task, traits = setup.model, setup.task, setup.traits
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    state = jax.eval_shape(lambda p: init_train_state(p, setup.hparams, traits, jax.random.key(0)), params)
    rows = setup.batch_size // setup.parallel.num_devices
    length = setup.batches.tokens_per_step // setup.batch_size
    part_rows = rows // traits.accumulate

    def carry(num_rows):
        return jax.eval_shape(lambda: model.init_state(num_rows, CARRIED_CAPACITY)) if setup.carried else ()

    layers = _layer_costs(model, params, length)
    step = make_train_step(model, task, traits, None)
    return ModelPlan(
        layers=layers,
        parameters=tree_size(params),
        forward_flops=sum(row.forward_flops for row in layers),
        train_flops=flops(step, state, carry(rows), _batch(setup, rows)) / (rows * length),
        optimizer_bytes=tree_bytes((state.params, state.opt_state, state.ema)),
        gradient_bytes=tree_bytes(params),
        activation_bytes=residual_bytes(_loss(model, task), params, carry(part_rows), _batch(setup, part_rows)),
        length=length,
        tokens_per_step=setup.batches.tokens_per_step,
        num_steps=num_steps,
    )


def print_plan(plan: ModelPlan, console: Console | None = None) -> None:
    """The plan as a table and the totals below it."""
    console = console or make_console()
    table = Table(title=f"Plan for sequences of {plan.length} tokens", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for name in ("parameters", "FLOPs/token", "decoding", "state", "cache"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in plan.layers:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            format_count(row.forward_flops),
            format_count(row.decode_flops),
            format_bytes(row.state_bytes),
            format_bytes(row.cache_bytes),
        )
    table.add_section()
    table.add_row(
        "all",
        f"{plan.parameters:,}",
        format_count(plan.forward_flops),
        format_count(sum(row.decode_flops for row in plan.layers)),
        format_bytes(sum(row.state_bytes for row in plan.layers)),
        format_bytes(sum(row.cache_bytes for row in plan.layers)),
    )
    console.print(table)
    console.print(f"train FLOPs/token     {format_count(plan.train_flops)} (forward, backward and update)")
    console.print(f"train FLOPs in all    {format_count(plan.train_flops * plan.tokens_per_step * plan.num_steps)}")
    console.print(f"parameters and optim  {format_bytes(plan.optimizer_bytes)}")
    console.print(f"gradients             {format_bytes(plan.gradient_bytes)}")
    console.print(f"activations           {format_bytes(plan.activation_bytes)} per device, kept for the backward pass")
    console.print("                      (XLA needs more than all this to work in, for copies of the logits above all)")
    console.print(f"tokens per step       {plan.tokens_per_step:,}, {plan.num_steps:,} steps")


def _layer_costs(model, params, length):
    """A row for every layer, and one for what is left of the whole model: embedding, norm and head."""
    design = model.design
    x = jax.ShapeDtypeStruct((1, length, design.width), jnp.dtype(design.dtype))
    token = jax.ShapeDtypeStruct((1, 1, design.width), jnp.dtype(design.dtype))
    rows = []
    for index, layer in enumerate(design.layers):
        block, mixer = Block(design, layer), layer_mixer(design, layer)
        block_params = jax.eval_shape(block.init, jax.random.key(0), x, Segments.single(1, length))["params"]
        state, fixed = _state(mixer, length), tree_bytes(_state(mixer, 0))
        forward, decode = (
            flops(
                lambda p, x, ids, pos, s, b=block: b.apply({"params": p}, x, Segments(ids, pos), s), block_params, *rest
            )
            for rest in ((x, *_segments(1, length), None), (token, *_segments(1, 1), state))
        )
        sizes = (fixed, tree_bytes(state) - fixed)
        rows.append(LayerCost(f"{index} {layer}", tree_size(block_params), forward / length, decode, *sizes))
    whole = _state(model, length) if model_is_causal(model) else None
    forward = flops(_forward(model), params, _tokens(model, length), *_segments(1, length), None) / length
    decode = flops(_forward(model), params, _tokens(model, 1), *_segments(1, 1), whole)
    rest = LayerCost(
        "embedding, norm, head",
        tree_size(params) - sum(row.parameters for row in rows),
        forward - sum(row.forward_flops for row in rows),
        decode - sum(row.decode_flops for row in rows),
        0,
        0,
    )
    return (*rows, rest)


def _state(mixer, capacity):
    """The state of one row; None, which holds no bytes, where a mixer reads the future and so does not decode."""
    if isinstance(mixer, Mixer) and not mixer.traits.causal:
        return None
    return jax.eval_shape(lambda: mixer.init_state(1, capacity))


def _forward(model):
    return lambda p, tokens, ids, positions, state: model.apply({"params": p}, tokens, Segments(ids, positions), state)


def _loss(model, task):
    """The loss sum of a batch, as the train step differentiates it."""

    def loss(params, carry, batch):
        state = None if carry == () else carry
        logits, _ = _forward(model)(params, batch.tokens, *batch.segments, state)
        return task.loss(logits, batch)["loss"]

    return loss


def _tokens(model, length):
    return jax.ShapeDtypeStruct(model.token_shape(1, length), jnp.int32)


def _ids(rows, length):
    return jax.ShapeDtypeStruct((rows, length), jnp.int32)


def _segments(rows, length):
    return _ids(rows, length), _ids(rows, length)


def _batch(setup, rows):
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, setup.batches.batch(0, slice(0, rows))))
