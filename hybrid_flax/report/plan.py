"""What a setup will cost, before anything trains: sizes from `eval_shape`, FLOPs from one walk over the jaxpr."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hybrid_flax.console import make_console
from hybrid_flax.cost import flops, peak_bytes, tree_bytes, tree_size
from hybrid_flax.models.build import CARRIED_CAPACITY, init_params, model_is_causal
from hybrid_flax.models.model import Block, layer_mixer
from hybrid_flax.models.places import by_place
from hybrid_flax.training.devices import device_memory
from hybrid_flax.training.frozen import moving
from hybrid_flax.training.setup import Setup
from hybrid_flax.training.step import init_train_state, make_train_step
from hybrid_flax.typing import Mixer, Segments
from hybrid_flax.units import format_bytes, format_count

__all__ = ["LayerCost", "ModelPlan", "make_plan", "memory_warning", "print_plan", "step_arguments"]


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
    activation_bytes: what else is alive at the worst moment of the forward and backward pass of one device's rows, by
    `peak_bytes`: what is kept for the backward pass, and what that works in, copies of the logits above all.
    length: of a row, in tokens. tokens_per_step, num_steps: of the training run. start: lines on what it takes from
    another run. frozen: parameters that are not trained.
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
    start: tuple[str, ...] = ()
    frozen: int = 0

    @property
    def device_bytes(self) -> int:
        """What training holds on one device."""
        return self.optimizer_bytes + self.gradient_bytes + self.activation_bytes


def make_plan(setup: Setup, num_steps: int) -> ModelPlan:
    """The plan of a setup; nothing is compiled or run."""
    model, task, traits = setup.model, setup.task, setup.traits
    rows = setup.batch_size // setup.parallel.num_devices
    length = setup.batches.tokens_per_step // setup.batch_size
    state, *data = step_arguments(setup, rows)
    params = state.params
    gradient = jax.value_and_grad(_loss(model, task))
    peak = peak_bytes(gradient, params, *step_arguments(setup, rows // traits.accumulate)[1:])
    layers = _layer_costs(model, params, length)
    step = make_train_step(model, task, traits, None)
    return ModelPlan(
        layers=layers,
        parameters=tree_size(params),
        forward_flops=sum(row.forward_flops for row in layers),
        train_flops=flops(step, state, *data) / (rows * length),
        optimizer_bytes=tree_bytes((state.params, state.opt_state, state.ema)),
        gradient_bytes=tree_bytes(moving(params, traits.frozen)),
        activation_bytes=max(peak - tree_bytes(params), 0),
        length=length,
        tokens_per_step=setup.batches.tokens_per_step,
        num_steps=num_steps,
        start=() if setup.start is None else tuple(setup.start.lines()),
        frozen=sum(tree_size(by_place(params)[place]) for place in traits.frozen),
    )


def step_arguments(setup: Setup, rows: int) -> tuple[Any, Any, Any]:
    """State, carry and batch of a train step of `rows` rows, as shapes: nothing is computed or held."""
    model = setup.model
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    state = jax.eval_shape(lambda p: init_train_state(p, setup.hparams, setup.traits, jax.random.key(0)), params)
    carry = jax.eval_shape(lambda: model.init_state(rows, CARRIED_CAPACITY)) if setup.carried else ()
    row = setup.batches.batch(0, slice(0, 1))
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), row)
    return state, carry, batch


def memory_warning(plan: ModelPlan, available: int) -> str | None:
    """What to say where training holds more than the `available` bytes of a device; None where it does not."""
    if plan.device_bytes <= available:
        return None
    return (
        f"warning: about {format_bytes(plan.device_bytes)} are needed on a device, which has "
        f"{format_bytes(available)}: lower data.batch_size, data.length or model.width, raise optim.accumulate, or set "
        "model.remat=true"
    )


def print_plan(plan: ModelPlan, console: Console | None = None, options: Sequence[str] = ()) -> None:
    """The plan as a table and the totals below it, with a warning where a device has too little memory for it.

    options: those of what is registered and chosen, as `options_in_use` writes them.
    """
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
    if plan.frozen:
        console.print(f"frozen parameters     {plan.frozen:,} of {plan.parameters:,}")
    console.print(f"train FLOPs/token     {format_count(plan.train_flops)} (forward, backward and update)")
    console.print(f"train FLOPs in all    {format_count(plan.train_flops * plan.tokens_per_step * plan.num_steps)}")
    console.print(f"parameters and optim  {format_bytes(plan.optimizer_bytes)}")
    console.print(f"gradients             {format_bytes(plan.gradient_bytes)}")
    console.print(
        f"activations           {format_bytes(plan.activation_bytes)} per device, at the worst moment of a step"
    )
    console.print(f"tokens per step       {plan.tokens_per_step:,}, {plan.num_steps:,} steps")
    for line in (*(f"option                {option}" for option in options), *plan.start):
        console.print(line, soft_wrap=True, markup=False)
    if warning := memory_warning(plan, device_memory()):
        console.print(warning, soft_wrap=True)


def _layer_costs(model, params, length):
    """A row for every layer, and one for what is left of the whole model: embedding, norm and head."""
    design = model.design
    x = jax.ShapeDtypeStruct((1, length, design.width), jnp.dtype(design.dtype))
    token = jax.ShapeDtypeStruct((1, 1, design.width), jnp.dtype(design.dtype))
    costs = {}
    for layer in dict.fromkeys(design.layers):
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
        costs[layer] = LayerCost(layer, tree_size(block_params), forward / length, decode, *sizes)
    rows = [costs[layer]._replace(name=f"{index} {layer}") for index, layer in enumerate(design.layers)]
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
