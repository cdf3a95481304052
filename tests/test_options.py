"""Options as text: what is written is read again, and what is no value is refused by name."""

import math
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_flax.errors import ConfigError
from hybrid_flax.options import Option, options_of
from hybrid_flax.ranges import Range


@given(
    st.one_of(
        st.integers(-(2**31) + 1, 2**31 - 1),
        st.floats(-3e38, 3e38, allow_subnormal=False),
        st.booleans(),
        st.sampled_from(("rms", "layer")),
    )
)
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_again(value):
    text = Option.write(value)
    read = Option(value, type(value)).read("x", text)
    assert read == value and type(read) is type(value)
    assert not {*text} & {*":+,@= "}


def test_none_is_read_where_it_is_the_default():
    assert Option(None, int).read("x", Option.write(None)) is None
    assert Option("none", str).read("x", "none") == "none"
    with pytest.raises(ConfigError, match=r"^x='none' is no int$"):
        Option(3, int).read("x", "none")


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        (Option(3, int, Range(at_least=1)), "0", "x=0 must be at least 1"),
        (Option(3, int), "3.5", "x='3.5' is no int"),
        (Option(3, int), "٣", "x='٣' is no int"),
        (Option(3.0, float), "１.5", "x='１.5' is no float"),
        (Option(3.0, float), "nan", "x=nan must be finite in float32"),
        (Option(True, bool), "yes", "x='yes' is no bool"),
        (Option("a", str, choices=("a", "b")), "c", "x='c' is none of a, b"),
        (Option((1, 2), tuple), "[1]", "x: a tuple cannot stand in a layer"),
    ],
)
def test_what_is_no_value(option, text, message):
    with pytest.raises(ConfigError) as caught:
        option.read("x", text)
    assert str(caught.value) == message


def test_options_are_the_keywords_of_a_builder():
    def build(width: int, *, size: Annotated[int, Range(at_least=2)] | None = None, kind: str = "a") -> None: ...

    options = options_of(build, {"kind": "b"})
    assert options == {"size": Option(None, int, Range(at_least=2)), "kind": Option("b", str)}
    assert math.isfinite(options["size"].read("x", "2"))
