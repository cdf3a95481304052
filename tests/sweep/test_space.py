"""Rows and spaces: combinators against plain loops, draws inside their ranges, mistakes in one line."""

import itertools
import math
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hybrid_flax.sweep.space import (
    as_space,
    axis,
    chain,
    choice,
    draw,
    expand,
    float_range,
    has_spaces,
    int_range,
    product,
    sample,
    when,
    zip_,
)

scalars = st.one_of(st.integers(-9, 9), st.sampled_from("abc"), st.booleans())
parts = st.lists(st.lists(scalars, max_size=4), min_size=1, max_size=3)


@settings(max_examples=50)
@given(parts)
def test_product_and_chain(values):
    axes = [axis(f"k{number}", part) for number, part in enumerate(values)]
    expected = [
        {f"k{number}": value for number, value in enumerate(combination)} for combination in itertools.product(*values)
    ]
    assert list(product(*axes)) == expected
    assert list(chain(*axes)) == [row for part in axes for row in part]


@settings(max_examples=50)
@given(st.lists(st.tuples(scalars, scalars), max_size=5))
def test_zip(pairs):
    rows = zip_(axis("a", [a for a, _ in pairs]), axis("b", [b for _, b in pairs]))
    assert list(rows) == [{"a": a, "b": b} for a, b in pairs]


@settings(max_examples=50)
@given(st.integers(0, 12), st.integers(0, 3))
def test_sample(count, seed):
    rows = list(product(axis("a", range(4)), axis("b", range(3))))
    drawn = sample(rows, count, seed)
    assert len(drawn) == count and all(row in rows for row in drawn)
    assert len({str(row) for row in drawn}) == count
    assert drawn == sample(rows, count, seed)


def test_sample_of_spaces():
    space = {"a": float_range(1e-4, 1.0, log=True), "b": int_range(2, 9, step=3), "c": int_range(1, 64, log=True)}
    rows = sample([space | {"d": 7}], 400)
    assert all(1e-4 <= row["a"] <= 1.0 and row["b"] in (2, 5, 8) and 1 <= row["c"] <= 64 for row in rows)
    assert {row["b"] for row in rows} == {2, 5, 8}
    below = sum(row["a"] < 1e-2 for row in rows) / len(rows)
    assert 0.4 < below < 0.6  # evenly in the logarithm
    assert 0.35 < sum(row["c"] < 8 for row in rows) / len(rows) < 0.65
    assert {row["d"] for row in rows} == {7}


@settings(max_examples=30)
@given(st.integers(0, 100))
def test_conditional_draws(seed):
    rng = random.Random(seed)
    space = {
        "p": choice("lstm", "attn"),
        "heads": when("p", ["attn"], int_range(1, 3)),
        "fixed": when("p", ["lstm"], 5),
    }
    values = draw(space, lambda _, part: rng.choice(getattr(part, "options", (1, 2, 3))))
    assert ("heads" in values) == (values["p"] == "attn")
    assert values.get("fixed") == (5 if values["p"] == "lstm" else None)
    assert values in list(expand(space))


def test_expand_is_every_combination():
    space = {"p": choice("x", "y"), "n": when("p", ["y"], int_range(1, 3)), "q": 4}
    rows = [{"p": "x", "q": 4}] + [{"p": "y", "n": n, "q": 4} for n in (1, 2, 3)]
    assert list(expand(space)) == rows
    assert list(expand({"a": 1})) == [{"a": 1}]
    assert not has_spaces({"a": 1}) and has_spaces(space)


def test_expand_is_lazy():
    endless = expand({f"k{number}": int_range(0, 10**9) for number in range(5)})
    assert next(endless) == {f"k{number}": 0 for number in range(5)}


def test_a_full_product_is_a_space():
    space = as_space(list(product(axis("a", [1, 2]), axis("b", ["x"]), axis("c", [True, False]))))
    assert space == {"a": choice(1, 2), "b": "x", "c": choice(True, False)}
    assert as_space([{"a": choice(1, 2)}]) == {"a": choice(1, 2)}


MISTAKES = [
    (lambda: list(product(axis("a", [1]), axis("a", [2]))), "'a' is in two parts of product"),
    (lambda: list(zip_(axis("a", [1]), axis("b", [2, 3]))), "zip_ of parts of 1, 2 settings"),
    (lambda: list(zip_(axis("a", [1]), axis("a", [2]))), "'a' is in two parts of zip_"),
    (lambda: sample(axis("a", [1]), 2), "sample of 2 out of 1 settings"),
    (lambda: choice(), "choice.. of nothing"),
    (lambda: choice([1, 2]), "one by one"),
    (lambda: choice(1, 1), "every option once"),
    (lambda: float_range(1.0, 1.0), "must be below"),
    (lambda: float_range(0.0, 1.0, log=True), "above 0"),
    (lambda: float_range(0.0, math.inf), "finite"),
    (lambda: float_range(math.nan, 1.0), "finite"),
    (lambda: int_range(3, 1), "must be below"),
    (lambda: int_range(1, 9, step=0), "step must be at least 1"),
    (lambda: int_range(1, 9, step=2, log=True), "and 1 with log"),
    (lambda: when("a", "lstm", choice(1, 2)), "values is a list"),
    (lambda: when("a", [], 1), "values is a list"),
    (lambda: list(expand({"a": float_range(0.0, 1.0)})), "--search=random"),
    (lambda: list(expand({"a": when("a", [1], 2)})), "depends on itself"),
    (lambda: as_space([{"a": 1}, {"b": 2}]), "no full product"),
    (lambda: as_space([{"a": choice(1, 2)}, {"a": 3}]), "takes one setting"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
