"""Tags of every scheme become BIO2."""

import pytest

from hybrid_flax.data.tags import span_types, to_bio2


def test_schemes_become_bio2():
    bio2 = ("B-X", "I-X", "O", "B-X", "B-X", "I-X", "B-Y")
    assert to_bio2(("I-X", "I-X", "O", "I-X", "B-X", "I-X", "I-Y")) == bio2
    assert to_bio2(bio2) == bio2
    assert to_bio2(("B-X", "E-X", "O", "S-X", "B-X", "E-X", "S-Y")) == bio2
    assert to_bio2(("B-X", "L-X", "O", "U-X", "B-X", "L-X", "U-Y")) == bio2
    assert to_bio2(("I-X", "I-Y", "I-Y", "B-Y", "I-X")) == ("B-X", "B-Y", "I-Y", "B-Y", "B-X")
    with pytest.raises(ValueError, match=r"file:3.*tag 'X'"):
        to_bio2(("O", "X"), "file:3")


def test_types_of_spans():
    assert span_types(("O", "B-LOC", "I-LOC", "B-PER", "I-PER")) == ["LOC", "PER"]
