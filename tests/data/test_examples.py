"""Labelled examples as batches: every one of them once an epoch, a label where it belongs, none where there is none."""

import numpy as np
import pytest

from hybrid_flax.data.examples import (
    eval_examples,
    label_names,
    make_example_batches,
    make_examples,
    split_records,
)
from hybrid_flax.data.readers import Record
from hybrid_flax.data.sources import labelled_source
from hybrid_flax.data.tokenizers import make_tokenizer

WORDS = "red green blue cyan pink grey gold"
TOKENIZER = make_tokenizer("char", [WORDS])


def records(count):
    return [Record(" ".join(WORDS.split()[: 1 + i % 7]), "ab"[i % 2], f"file:{i}") for i in range(count)]


def test_every_example_once_an_epoch():
    given = [Record(f"{'r' * (i + 1)}", "ab"[i % 2], "") for i in range(10)]
    examples = make_examples(given, TOKENIZER, "class", ("a", "b"))
    batches = make_example_batches(examples, batch_size=4, length=12, seed=0)
    rows = [(tokens.astype(bool).sum(), label) for step in range(5) for tokens, label in _rows(batches.batch(step))]
    for epoch in (rows[:10], rows[10:]):
        assert sorted(epoch) == [(i + 1, i % 2) for i in range(10)]
    assert rows[:10] != rows[10:] and batches.steps_per_epoch == 3
    part, whole = batches.batch(3, slice(1, 3)), batches.batch(3)
    assert all(np.array_equal(leaf, whole[name][1:3]) for name, leaf in part.items())
    evaluated = eval_examples(examples, batch_size=4, length=6)
    assert [batch["weights"].sum() for batch in evaluated] == [4, 4, 2]
    assert evaluated[2]["tokens"].shape == (4, 6) and not evaluated[2]["segment_ids"][2:].any()
    assert [label for batch in evaluated for _, label in _rows(batch)][:10] == [i % 2 for i in range(10)]


def _rows(batch):
    return zip(batch["tokens"], batch["labels"])


def test_tags_stand_at_the_first_piece_of_their_token():
    names = ("O", "B-X", "I-X")
    record = Record(("red", "blue", "gold"), ("O", "B-X", "I-X"), "")
    batch = eval_examples(make_examples([record], TOKENIZER, "tags", names), batch_size=1, length=9)[0]
    assert batch["weights"][0].tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0]  # the last two pieces of gold are cut
    assert batch["labels"][0, [0, 3, 7]].tolist() == [0, 1, 2] and not batch["labels"][0, [1, 2, 4, 5, 6, 8]].any()


def test_labels_of_every_kind():
    given = [Record("red", ("b", "a"), ""), Record("blue", (), ""), Record("", "b", "")]
    assert label_names(given, "classes") == ("a", "b")
    assert make_examples(given, TOKENIZER, "classes", ("a", "b")).labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    numbers = make_examples([Record("red", "-1.5", ""), Record("blue", "2", "")], TOKENIZER, "number", ())
    assert numbers.labels.tolist() == [-1.5, 2.0] and label_names(given, "number") == ()
    assert label_names([Record(("a",), ("I-Y",), ""), Record(("b",), ("B-X",), "")], "tags") == (
        "O", "B-X", "I-X", "B-Y", "I-Y",
    )  # fmt: skip
    assert [len(ids) for ids in make_examples(given, TOKENIZER, "classes", ("a", "b")).tokens] == [3, 4, 1]


def test_labels_that_are_wrong():
    for given, kind, wanted in (
        ([Record("red", "c", "file:7")], "class", "file:7: label 'c' does not occur"),
        ([Record("red", "much", "file:8")], "number", "file:8: label 'much' is no number"),
        ([Record("red", "nan", "file:9")], "number", "is no number"),
    ):
        with pytest.raises(ValueError, match=wanted):
            make_examples(given, TOKENIZER, kind, ("a", "b"))
    for given, kind in (([Record("red", "a", "")], "class"), ([Record(("red",), ("O",), "")], "tags")):
        with pytest.raises(ValueError, match="in the training data"):
            label_names(given, kind)


def test_a_random_split_is_whole_and_repeats():
    given = records(50)
    parts = split_records(given, valid_fraction=0.2, test_fraction=0.1, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 35, "valid": 10, "test": 5}
    assert sorted(r.where for part in parts.values() for r in part) == sorted(r.where for r in given)
    assert parts == split_records(given, valid_fraction=0.2, test_fraction=0.1, seed=3)
    assert parts["test"] != split_records(given, valid_fraction=0.2, test_fraction=0.1, seed=4)["test"]
    with pytest.raises(ValueError, match="no training examples"):
        split_records(given, valid_fraction=0.5, test_fraction=0.5, seed=0)


def test_ratings_as_numbers_and_as_signs():
    options = {"text": "text", "label": "label", "valid_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0}
    options |= {"tokenizer": "word", "vocab_size": 1000, "min_count": 2}
    numbers, signs = (labelled_source("vader", kind, **options) for kind in ("number", "class"))
    assert signs.labels == ("negative", "positive") and numbers.labels == ()
    batches = [source.splits["test"].batches(512, 40, False) for source in (numbers, signs)]
    ratings, labels = (np.concatenate([b["labels"][b["weights"] > 0] for b in part]) for part in batches)
    assert len(ratings) == round(0.2 * 10605) and np.array_equal(ratings > 0, labels == 1)
    missed, total = numbers.splits["test"].unknown
    assert 0 < missed < total
    with pytest.raises(ValueError, match="no state is carried"):
        numbers.splits["test"].batches(8, 40, True)
