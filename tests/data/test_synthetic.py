"""Examples of synthetic languages are exact, and functions of (seed, step, row) alone.

The oracles read an example as people do, symbol by symbol, and know nothing of how it was drawn.
"""

import re

import jax
import numpy as np
import pytest

from hybrid_flax.data.sources import language_source
from hybrid_flax.data.synthetic import EVAL_ROWS, LANGUAGES, make_language, make_language_batches


def prefixes(answer):
    """Targets under every symbol: the answer to every prefix."""
    return lambda s: [answer(s[: n + 1]) for n in range(len(s))]


def after(answer):
    """Targets under the blanks after the input."""

    def targets(s):
        inputs = [symbol for symbol in s if symbol != "_"]
        answers = answer(inputs)
        assert s == inputs + ["_"] * len(answers)
        return [None] * len(inputs) + answers

    return targets


def calculate(s):
    if len(s) % 2 == 0:
        return None
    return str(eval(" ".join(s)) % 5)  # digits and operators that the test itself has checked


def walk(s):
    return str((s.count("1") - s.count("2")) % 5)


def compose(s):
    """Where each of five points ends, moved by one element after the other."""
    ends = ""
    for point in "01234":
        for element in s:
            point = element[int(point)]
        ends += point
    return ends


def pairs(s):
    text = "".join(s)
    changes = len(re.findall("(?=01)", text)) + len(re.findall("(?=10)", text))
    return "1" if changes % 2 == 0 else "0"


def hidden(s):
    half = len(s) // 2
    first, second = "".join(s[:half]), "".join(s[half:])
    return [symbol for symbol in "01" if first.replace("?", symbol) == second.replace("?", symbol)]


def stack(s):
    found = "".join(symbol if len(symbol) == 1 else f"<{symbol}>" for symbol in s)
    while "<" in found:
        found = re.sub(r"^([01]*)<push([01])>", r"\1\2", found, count=1)
        found = re.sub(r"^([01]*?)[01]?<pop>", r"\1", found, count=1)
    return [*found[::-1], "."]


def recall(s):
    """Every key of the first 2 x 8 symbols, where it comes again; noise that looks like a key does not count."""
    value = dict(zip(s[:16:2], s[1:16:2]))
    return [None] * 16 + [value.get(symbol) for symbol in s[16:]]


def follow(s):
    return [None] * (len(s) - 1) + [s[s.index(s[-1]) + 1]]


ORACLES = {
    "parity": prefixes(lambda s: str(s.count("1") % 2)),
    "counting": prefixes(lambda s: str(s.count("1") % 3)),
    "even_pairs": prefixes(pairs),
    "cycle_navigation": prefixes(walk),
    "modular_arithmetic": prefixes(calculate),
    "s5": prefixes(compose),
    "a5": prefixes(compose),
    "reverse": after(lambda s: s[::-1]),
    "duplicate": after(lambda s: s * 2),
    "odds_first": after(
        lambda s: [x for i, x in enumerate(s, 1) if i % 2] + [x for i, x in enumerate(s, 1) if not i % 2]
    ),
    "bucket_sort": after(lambda s: [symbol for symbol in "01234" for other in s if other == symbol]),
    "missing_duplicate": after(hidden),
    "stack_manipulation": after(stack),
    "mqar": recall,
    "selective_copying": after(lambda s: [symbol for symbol in s if symbol != "."]),
    "induction_heads": follow,
    "needle": follow,
}
LENGTH = {"mqar": 64, "selective_copying": 40}


def examples(batch, symbols):
    """(inputs, targets or None where they are not scored) of every row, as symbols."""
    for tokens, targets, weights, ids in zip(batch.tokens, batch.targets, batch.weights, batch.segments.ids):
        live = ids > 0
        assert not tokens[~live].any() and not weights[~live].any() and not targets[weights == 0].any()
        given = [symbols[token] for token in tokens[live]]
        yield given, [symbols[target] if weight else None for target, weight in zip(targets[live], weights[live])]


def test_every_language_has_an_oracle():
    assert ORACLES.keys() == LANGUAGES.keys()


@pytest.mark.parametrize("name", LANGUAGES)
def test_targets_are_right(name):
    language, length = make_language(name), LENGTH.get(name, 12)
    batch = make_language_batches(language, batch_size=64, length=length, seed=3).batch(5)
    lengths, answers = set(), set()
    for given, targets in examples(batch, language.symbols):
        if name == "modular_arithmetic":
            assert all(
                re.fullmatch("[0-4]" if place % 2 == 0 else r"[-+*]", symbol) for place, symbol in enumerate(given)
            )
        wanted = ORACLES[name](given)
        if name == "mqar":  # some keys come again by chance
            wanted = [symbol if target is not None else None for symbol, target in zip(wanted, targets)]
            assert sum(target is not None for target in targets) == 8
        assert wanted == targets
        lengths.add(len(given))
        answers |= set(targets) - {None}
    assert len(answers) > 1
    assert max(lengths) <= language.total(length) == batch.tokens.shape[1]
    assert len(lengths) == 1 if language.one_length else min(lengths) <= language.total(language.shortest) + 1


def test_options_change_the_language():
    assert len(make_language("counting,modulus=7").symbols) == 7
    language = make_language("mqar,pairs=2,vocab_size=32")
    batch = make_language_batches(language, batch_size=4, length=20, seed=0).batch(0)
    assert batch.weights.sum(axis=1).tolist() == [2.0] * 4 and batch.tokens.max() < 32


def test_a_batch_is_a_function_of_seed_step_and_row():
    batches = make_language_batches(make_language("parity"), batch_size=8, length=10, seed=1)
    other = make_language_batches(make_language("parity"), batch_size=8, length=10, seed=2)
    whole, part = batches.batch(4), batches.batch(4, slice(2, 6))
    jax.tree.map(np.testing.assert_array_equal, part, jax.tree.map(lambda leaf: leaf[2:6], whole))
    assert not np.array_equal(whole.tokens, batches.batch(5).tokens)
    assert not np.array_equal(whole.tokens, other.batch(4).tokens)


def test_the_test_split_is_longer_than_training_and_has_one_shape():
    source = language_source("parity", length=10, test_length=30)
    for split, (low, high) in {"valid": (1, 10), "test": (11, 30)}.items():
        batches = source.splits[split].batches(32, 0, False)
        lengths = np.concatenate([np.sum(batch.segments.ids > 0, axis=1) for batch in batches])
        scored = np.concatenate([np.sum(batch.weights, axis=1) for batch in batches])
        assert len(lengths) == EVAL_ROWS and (lengths.min(), lengths.max()) == (low, high)
        assert {batch.tokens.shape for batch in batches} == {(32, 30)}
        assert np.array_equal(scored, lengths - (10 if split == "test" else 0))


def test_lengths_that_are_rounded_down_stay_longer_than_training():
    """A string and its copy are of even length: 41 would be rounded down to 40, which was trained on."""
    for length, shortest in ((40, 42), (41, 42)):
        source = language_source("missing_duplicate", length=length, test_length=44)
        batches = source.splits["test"].batches(32, 0, False)
        assert {int(n) - 1 for batch in batches for n in np.sum(batch.segments.ids > 0, axis=1)} == {shortest, 44}
    with pytest.raises(
        ValueError, match=r"eval\.length=41 has no example of 'missing_duplicate'.*set it to 42 or more"
    ):
        language_source("missing_duplicate", length=40, test_length=41)


def test_without_longer_rows_the_test_split_has_other_examples_of_the_same_lengths():
    source = language_source("mqar,pairs=2,vocab_size=32", length=20, test_length=20)
    valid, test = (source.splits[split].batches(32, 0, False) for split in ("valid", "test"))
    rows = [{row.tobytes() for batch in batches for row in batch.tokens} for batches in (valid, test)]
    assert len(rows[0]) == len(rows[1]) == EVAL_ROWS and not rows[0] & rows[1]
    assert {batch.tokens.shape for batch in valid + test} == {(32, 20)}


def test_wrong_uses_are_refused():
    source = language_source("parity", length=10, test_length=30)
    for call in (
        lambda: make_language("parrity"),
        lambda: make_language("parity,modulus=3"),
        lambda: make_language("counting,modulo=3"),
        lambda: make_language("counting,modulus=three"),
        lambda: make_language("counting,modulus=1"),
        lambda: make_language("cycle_navigation,places=2"),
        lambda: make_language("modular_arithmetic,modulus=1"),
        lambda: make_language("bucket_sort,values=1"),
        lambda: make_language("mqar,pairs=128"),
        lambda: source.train("padded", 0, 10, 0),
        lambda: source.train("padded", 8, 0, 0),
        lambda: source.splits["test"].batches(8, 0, True),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert "\n" not in str(caught.value)
