"""Models of one size: the width at which a model has a given number of parameters or of operations."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from hybrid_flax.compare.results import Budget, Cost
from hybrid_flax.cost import flops, tree_bytes, tree_size
from hybrid_flax.models.build import init_params, model_is_causal
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.typing import Segments

__all__ = ["TOLERANCE", "model_cost", "solve_width"]

TOLERANCE = 0.02  # of the budget
_GAP = 512  # widths in a row that a model may refuse: heads, groups and halves of heads must divide them
_WIDEST = 2**16


def solve_width(make_model: Callable[[int], SequenceModel], budget: Budget, tokens: Any) -> int:
    """The width at which `make_model(width)` comes to within `TOLERANCE` of the budget, the first that is found.

    make_model: raises ValueError for widths that do not fit, which are passed over; it must grow with the width.
    tokens: the input of one row, an array or its shape and dtype. Nothing is compiled or run.
    Raises ValueError in one line with the nearest widths and their counts where none is near enough.
    """

    def measure(width: int) -> float:
        return _count(make_model(width), budget.kind, _shape(tokens))

    low, high = _bracket(make_model, measure, budget.amount)
    while True:
        # Counts grow between linearly and with the square, so their square roots lie almost on a line.
        share = (math.sqrt(budget.amount) - math.sqrt(low[1])) / (math.sqrt(high[1]) - math.sqrt(low[1]))
        guess = _valid(make_model, round(low[0] + share * (high[0] - low[0])), low[0], high[0])
        if guess is None:
            break
        found = (guess, measure(guess))
        if abs(found[1] - budget.amount) <= TOLERANCE / 2 * budget.amount:
            return guess
        low, high = (found, high) if found[1] <= budget.amount else (low, found)
    width, count = min(low, high, key=lambda pair: abs(pair[1] - budget.amount))
    if abs(count - budget.amount) <= TOLERANCE * budget.amount:
        return width
    near = ", ".join(f"{count:,.0f} at width {width}" for width, count in (low, high) if width)
    wanted = f"{budget.amount:,.0f} {_unit(budget.kind)}"
    raise ValueError(f"no model.width comes within {TOLERANCE:.0%} of {wanted}: the nearest are {near}")


def model_cost(model: SequenceModel, tokens: Any) -> Cost:
    """What is known of a model before it runs, for rows like `tokens` (an array, or its shape and dtype).

    Every parameter counts, also those of embedding and head: they are part of what is trained and kept, and as wide as
    the model, so that leaving them out would make a gift of them to the widest row.
    """
    length = tokens.shape[1]
    state = tree_bytes(jax.eval_shape(lambda: model.init_state(1, length))) if model_is_causal(model) else None
    parameters, forward = (_count(model, kind, _shape(tokens)) for kind in ("parameters", "flops"))
    return Cost(int(parameters), forward, state)


@functools.cache
def _count(model, kind, shape) -> float:
    """The parameters of a model, or the operations of its forward pass for one row, by token."""
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    if kind == "parameters":
        return float(tree_size(params))
    tokens, ids = (jax.ShapeDtypeStruct(size, "int32") for size in (shape, shape[:2]))

    def forward(params, tokens, ids, positions):
        return model.apply({"params": params}, tokens, Segments(ids, positions))[0]

    return flops(forward, params, tokens, ids, ids) / shape[1]


def _bracket(make_model, measure, amount):
    """Two valid widths with their counts, the first at most `amount` (or 0, with nothing), the second above it.

    Where none is above it, the second is the widest, if that is near enough.
    """
    low, width = (0, 0.0), 16
    while (valid := _valid(make_model, width, low[0], min(width + _GAP, _WIDEST))) is not None:
        count = measure(valid)
        if count > amount:
            return low, (valid, count)
        low = (valid, count)
        width = min(valid + max(1, round(valid * (1.2 * math.sqrt(amount / count) - 1))), _WIDEST - 1)
    if width < _WIDEST - 1:
        make_model(width)  # says what is wrong with it
        raise ValueError(f"no model.width from {low[0] + 1} to {width + _GAP} fits this model")
    if abs(low[1] - amount) <= TOLERANCE * amount:
        return (0, 0.0), low
    raise ValueError(f"even at model.width={low[0]} this model stays below {amount:,.0f}: {low[1]:,.0f}")


def _valid(make_model, guess, low, high):
    """The width nearest to `guess` strictly between low and high that the model takes; None where there is none."""
    for distance in range(_GAP):
        for width in (guess - distance, guess + distance):
            if low < width < high:
                try:
                    make_model(width)
                except ValueError:
                    continue
                return width
    return None


def _shape(tokens):
    return (1, *tokens.shape[1:])


def _unit(kind):
    return "parameters" if kind == "parameters" else "forward FLOPs a token"
