"""The recurrent primitive: a cell, its input map before the scan and its output map after it."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import project
from hybrid_flax.ops.norm import layer_norm, rms_norm
from hybrid_flax.ops.scan import unroll
from hybrid_flax.ops.segments import FRESH, last_live_id, resets
from hybrid_flax.typing import (
    Array,
    Cell,
    Float,
    Hidden,
    Mixer,
    Params,
    Segments,
    State,
    TokenMask,
    Traits,
    promote_state,
)

__all__ = ["GATES", "NORMS", "recurrent", "run_cell"]

GATES = {"gelu": jax.nn.gelu, "silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}
NORMS = ("rms", "layer")


def recurrent(
    cell: Cell,
    width: int,
    *,
    form: str = "auto",
    output_norm: Annotated[str, NORMS] | None = None,
    output_gate: Annotated[str, tuple(GATES)] | None = None,
) -> Mixer:
    """Unroll `cell` over the tokens of each document; y_t is mapped back to `width`, unless it is one head of it.

    form: "sequential", one of cell.forms, or "auto" (see `choose_form`). output_norm: "rms" or "layer", over each
    head of y. output_gate: y ⊙ act(x W_g) with act one of GATES (Dauphin et al. 2017), followed by the output map.
    Documents reset the state to `cell.init_state`; padding leaves it alone and gives zero.
    Parameters: input, cell, norm, gate and output where there is one. State: input, cell, id (last document).
    Raises ValueError for an unknown form.
    """
    if form not in ("auto", "sequential", *cell.forms):
        raise ValueError(f"form={form!r} is none of {', '.join(('auto', 'sequential', *cell.forms))}")
    has_output = output_gate is not None or cell.width != width or cell.heads > 1

    def init(key: Array) -> Params:
        key_input, key_cell, key_gate, key_output = jax.random.split(key, 4)
        params: dict[str, Any] = {"input": cell.input.init(key_input), "cell": cell.init(key_cell)}
        if output_norm:
            params["norm"] = {"scale": jnp.ones(cell.width)}
        if output_norm == "layer":
            params["norm"]["bias"] = jnp.zeros(cell.width)
        if output_gate:
            params["gate"] = {"kernel": fan_in_normal(key_gate, (width, cell.width))}
        if has_output:
            params["output"] = {"kernel": fan_in_normal(key_output, (cell.width, width))}
        return params

    def init_state(batch_size: int, capacity: int) -> State:
        return {
            "input": cell.input.init_state(batch_size, capacity),
            "cell": cell.init_state(batch_size),
            "id": jnp.full((batch_size,), FRESH, jnp.int32),
        }

    def apply(params: Params, x: Hidden, segments: Segments, state: State | None = None) -> tuple[Hidden, State | None]:
        if state is None:
            input_state, cell_state = None, cell.init_state(x.shape[0])
            carried_id = jnp.full(x.shape[:1], FRESH, jnp.int32)
        else:
            state = lax.stop_gradient(state)
            input_state, cell_state, carried_id = state["input"], state["cell"], state["id"]
        live = segments.ids > 0
        u, input_state = cell.input.apply(params["input"], x, segments, input_state)
        reset = resets(segments.ids, carried_id)
        cell_state = promote_state(cell_state, x.dtype)
        y, cell_state = run_cell(cell, form, params["cell"], u, reset, ~live, cell_state)
        y = jnp.where(live[..., None], y, 0)
        if output_norm:
            y = jnp.where(live[..., None], _normalise(y, params["norm"], cell.heads), 0)
        if cell.finish:
            y = jnp.where(live[..., None], cell.finish(params["cell"], u, y), 0)
        y = y.astype(x.dtype)
        if output_gate:
            y = y * GATES[output_gate](project(x, params["gate"]["kernel"]))
        if has_output:
            y = project(y, params["output"]["kernel"])
        if state is None:
            return y, None
        return y, {"input": input_state, "cell": cell_state, "id": last_live_id(segments.ids, carried_id)}

    parts = (("input", cell.input),)
    return Mixer(init, init_state, apply, Traits(cell.input.traits.causal, parts, ("recurrent", form)))


def _normalise(y: Float[Array, "B T N"], params: Params, heads: int) -> Float[Array, "B T N"]:
    """Every head of y[B,T,N] by itself, then scale and bias per feature."""
    parts = y.reshape(*y.shape[:-1], heads, -1)
    scale = params["scale"].reshape(heads, -1)
    bias = params["bias"].reshape(heads, -1) if "bias" in params else None
    parts = rms_norm(parts, scale) if bias is None else layer_norm(parts, scale, bias)
    return parts.reshape(y.shape)


def run_cell(
    cell: Cell, form: str, params: Params, u: Any, reset: TokenMask, hold: TokenMask, state: State
) -> tuple[Array, State]:
    """The recurrence alone, on projected inputs u: (y[B,T,N], state after the last step)."""
    form = choose_form(cell, reset.shape[1]) if form == "auto" else form
    if form != "sequential":
        return cell.forms[form](params, u, reset, hold, state)
    initial = jax.tree.map(lambda h, leaf: h.astype(leaf.dtype), cell.init_state(reset.shape[0]), state)
    return unroll(lambda h, u_t: cell.step(params, h, u_t), initial, state, u, reset, hold)


def choose_form(cell: Cell, length: int) -> str:
    """The form that "auto" runs: one step is sequential, then by what the cell has and the device is.

    A chunked form is matrix products, which every device does best. A parallel scan does O(log T) times the work
    of a sequential one, which only an accelerator hides; on a CPU the sequential scan is two to three times faster
    at every length.
    """
    if length == 1:
        return "sequential"
    for form in ("chunked", "deferred"):
        if form in cell.forms:
            return form
    if "associative" in cell.forms and jax.default_backend() != "cpu":
        return "associative"
    return "scan" if "scan" in cell.forms else "sequential"
