"""Solved widths: within 2 % of the budget or an error that is true, whatever grows and whatever is refused."""

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybrid_flax.compare import equalise
from hybrid_flax.compare.equalise import TOLERANCE, model_cost, solve_width
from hybrid_flax.compare.results import Budget
from hybrid_flax.models.build import init_params, make_model

TOKENS = jax.ShapeDtypeStruct((4, 12), "int32")


def maker(pattern, vocab_size=20, **options):
    pairs = tuple(sorted((key.replace("__", "."), value) for key, value in options.items()))
    return lambda width: make_model(
        vocab_size=vocab_size, width=width, depth=2, pattern=pattern, options=pairs, tied=False
    )


@pytest.mark.parametrize(
    ("pattern", "options", "kind", "amount"),
    [
        ("attn", {"attn__num_heads": 2}, "parameters", 255_000),
        ("gate:tanh+attn", {"attn__head_width": 8}, "flops", 90_000),
        ("tanh,conv", {}, "parameters", 40_000),
    ],
)
def test_widths_are_within_the_tolerance(pattern, options, kind, amount):
    make = maker(pattern, **options)
    cost = model_cost(make(solve_width(make, Budget(kind, float(amount)), TOKENS)), TOKENS)
    assert abs((cost.parameters if kind == "parameters" else cost.flops_per_token) - amount) <= TOLERANCE * amount


def test_costs_are_those_of_a_model_that_is_made():
    model = maker("tanh")(16)
    params, state = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)), model.init_state(1, 12)
    cost = model_cost(model, TOKENS)
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.state_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 2 * 4 * 16 + 2 * 4
    assert cost == model_cost(model, jax.ShapeDtypeStruct((1, 12), "int32"))  # of one row, by token
    assert model_cost(maker("bi:tanh")(8), TOKENS).state_bytes is None  # reads the future


def test_flops_are_those_of_the_matrices():
    """Input and recurrent maps of two layers and the head, but for what is small beside them."""
    cost = model_cost(maker("tanh", vocab_size=50)(64), TOKENS)
    matrices = 2 * (cost.parameters - 50 * 64)
    assert matrices < 1.05 * cost.flops_per_token and cost.flops_per_token < 1.15 * matrices


class Counted:
    """A make_model whose models are their widths, counted by a polynomial; some widths are refused."""

    def __init__(self, coefficients, step):
        self.coefficients, self.step = coefficients, step

    def __call__(self, width):
        if width % self.step:
            raise ValueError(f"{width} does not divide")
        return width

    def count(self, model, kind, shape):
        return float(np.polyval(self.coefficients, model))


@settings(max_examples=60)
@given(
    coefficients=st.tuples(st.sampled_from([0, 1, 3, 12]), st.integers(1, 3000), st.integers(0, 500)),
    step=st.sampled_from([1, 2, 8, 24]),
    amount=st.floats(1e3, 1e8),
)
@example(coefficients=(0, 232, 0), step=1, amount=15.1e6)  # the widest but a few
@example(coefficients=(0, 232, 0), step=24, amount=15.3e6)  # the widest is near enough, and below
@example(coefficients=(0, 232, 0), step=24, amount=15.6e6)  # the widest is not
def test_solved_or_truly_without_solution(coefficients, step, amount):
    made = Counted(coefficients, step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equalise, "_count", made.count)
        counts = np.polyval(coefficients, np.arange(step, 2**16, step, dtype=np.float64))
        near = np.abs(counts - amount) <= TOLERANCE * amount
        try:
            width = solve_width(made, Budget("parameters", amount), TOKENS)
        except ValueError as error:
            assert not near.any()
            assert "within 2% of" in str(error) or "stays below" in str(error)
        else:
            assert width % step == 0 and near[width // step - 1]


def test_what_cannot_be_solved_says_so():
    with pytest.raises(
        ValueError, match=r"within 2% of 60,000 parameters: the nearest are .* at width \d+, .* at width"
    ):
        solve_width(maker("attn", attn__num_heads=12), Budget("parameters", 60_000.0), TOKENS)
    with pytest.raises(ValueError, match="unknown mixer 'lsmt'"):
        solve_width(maker("lsmt"), Budget("parameters", 60_000.0), TOKENS)
    with pytest.raises(ValueError, match="within 2% of 10 parameters: the nearest are"):
        solve_width(maker("tanh"), Budget("parameters", 10.0), TOKENS)
