"""Examples of synthetic languages are exact, and functions of (seed, step, row) alone."""

import numpy as np
import pytest

from hybrid_flax.data.sources import language_source
from hybrid_flax.data.synthetic import EVAL_ROWS, LANGUAGES, make_language_batches


def count(modulus):
    def answers(symbols):
        ones, given = 0, []
        for symbol in symbols:
            ones += symbol == "1"
            given.append(str(ones % modulus))
        return given

    return answers


ORACLES = {"parity": count(2), "count3": count(3), "count5": count(5)}


def examples(batch, symbols):
    """(inputs, targets or None where they are not scored) of every row, as symbols."""
    for tokens, targets, weights, ids in zip(*(batch[k] for k in ("tokens", "targets", "weights", "segment_ids"))):
        live = ids > 0
        assert not tokens[~live].any() and not weights[~live].any()
        given = [symbols[token] for token in tokens[live]]
        yield given, [symbols[target] if weight else None for target, weight in zip(targets[live], weights[live])]


def test_every_language_has_an_oracle():
    assert ORACLES.keys() == LANGUAGES.keys()


@pytest.mark.parametrize("name", LANGUAGES)
def test_targets_are_right(name):
    language = LANGUAGES[name]
    batch = make_language_batches(language, batch_size=64, length=12, seed=3).batch(5)
    lengths = set()
    for given, targets in examples(batch, language.symbols):
        wanted = ORACLES[name](given)
        assert [w if t is not None else None for w, t in zip(wanted, targets)] == targets
        assert any(target is not None for target in targets)
        lengths.add(len(given))
    assert {language.total(language.shortest), language.total(12)} <= lengths
    assert batch["tokens"].shape == (64, language.total(12))


def test_a_batch_is_a_function_of_seed_step_and_row():
    batches = make_language_batches(LANGUAGES["parity"], batch_size=8, length=10, seed=1)
    other = make_language_batches(LANGUAGES["parity"], batch_size=8, length=10, seed=2)
    whole, part = batches.batch(4), batches.batch(4, slice(2, 6))
    for name, leaf in whole.items():
        assert np.array_equal(leaf[2:6], part[name])
    assert not np.array_equal(whole["tokens"], batches.batch(5)["tokens"])
    assert not np.array_equal(whole["tokens"], other.batch(4)["tokens"])


def test_the_test_split_is_longer_than_training_and_has_one_shape():
    source = language_source("parity", length=10, test_length=30)
    for split, (low, high) in {"valid": (1, 10), "test": (11, 30)}.items():
        batches = source.splits[split].batches(32, 0, False)
        lengths = np.concatenate([np.sum(batch["segment_ids"] > 0, axis=1) for batch in batches])
        assert len(lengths) == EVAL_ROWS and (lengths.min(), lengths.max()) == (low, high)
        assert {batch["tokens"].shape for batch in batches} == {(32, high)}
    assert set(language_source("parity", length=10, test_length=10).splits) == {"valid"}


def test_wrong_uses_are_refused():
    source = language_source("parity", length=10, test_length=30)
    for call in (
        lambda: language_source("parrity", length=10, test_length=30),
        lambda: source.train("stream", 8, 10, 0),
        lambda: source.train("windows", 0, 10, 0),
        lambda: source.train("windows", 8, 0, 0),
        lambda: source.splits["test"].batches(8, 0, True),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert "\n" not in str(caught.value)
