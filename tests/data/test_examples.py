"""Labelled examples as batches: every one of them once an epoch, a label where it belongs, none where there is none."""

import itertools
import json
import re

import engines
import jax
import numpy as np
import pytest

from hybrid_flax.data.examples import (
    eval_examples,
    fold_records,
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
    other = make_example_batches(examples, batch_size=4, length=12, seed=1)
    assert not np.array_equal(batches.batch(0).tokens, other.batch(0).tokens)
    part, whole = batches.batch(3, slice(1, 3)), batches.batch(3)
    jax.tree.map(np.testing.assert_array_equal, part, jax.tree.map(lambda leaf: leaf[1:3], whole))
    evaluated = eval_examples(examples, batch_size=4, length=6)
    assert [batch.weights.sum() for batch in evaluated] == [4, 4, 2]
    assert evaluated[2].tokens.shape == (4, 6) and not evaluated[2].segments.ids[2:].any()
    assert [label for batch in evaluated for _, label in _rows(batch)][:10] == [i % 2 for i in range(10)]


def _rows(batch):
    return zip(batch.tokens, batch.targets)


def test_tags_stand_where_their_word_begins():
    names = ("O", "B-X", "I-X")
    record = Record(("red", "blue", "gold"), ("O", "B-X", "I-X"), "")
    batch = eval_examples(make_examples([record], TOKENIZER, "tags", names), batch_size=1, length=11)[0]
    assert batch.weights[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]  # the last two pieces of gold are cut
    assert batch.targets[0, [0, 4, 9]].tolist() == [0, 1, 2] and not batch.targets[0, [1, 2, 3, 5, 6, 7, 8, 10]].any()
    assert TOKENIZER.decode(batch.tokens[0]) == "red blue go"


@pytest.mark.parametrize("name", ["byte", "bpe", "whitespace", "word"])
def test_tags_of_odd_words(name):
    if name == "bpe":
        engines.library("tokenizers")
    record = Record(("U.N.", "\u00a0", "", "\u00e9t\u00e9", "don't"), ("B-X", "O", "O", "I-X", "B-X"), "")
    tokenizer = make_tokenizer(name, ["U.N. \u00e9t\u00e9 don't " * 3], vocab_size=270)
    tokens, labels = make_examples([record], tokenizer, "tags", ("O", "B-X", "I-X"))
    assert [tag for tag in labels[0].tolist() if tag >= 0] == [1, 0, 0, 2, 1]
    starts = np.append(np.flatnonzero(labels[0] >= 0), len(tokens[0]))
    pieces = [tokenizer.decode(tokens[0][a:b]).strip() for a, b in itertools.pairwise(starts)]
    assert pieces[0] == "U.N." and pieces[3:] == ["\u00e9t\u00e9", "don't"]


def test_labels_of_every_kind():
    given = [Record("red", ("b", "a"), ""), Record("blue", (), ""), Record("", "b", "")]
    assert label_names(given, "classes") == ("a", "b")
    assert make_examples(given, TOKENIZER, "classes", ("a", "b")).labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    numbers = make_examples([Record("red", "-1.5", ""), Record("blue", "2", "")], TOKENIZER, "number", ())
    assert numbers.labels.tolist() == [-1.5, 2.0] and label_names(given, "number") == ()
    assert label_names([Record(("a",), ("I-Y",), ""), Record(("b",), ("B-X",), "")], "tags") == (
        "O", "B-X", "I-X", "B-Y", "I-Y",
    )  # fmt: skip
    plain = [Record(("a", "b"), ("VERB", "O"), ""), Record(("b",), ("NOUN",), "")]
    assert label_names(plain, "tags") == ("NOUN", "O", "VERB")
    assert [tags.tolist() for tags in make_examples(plain, TOKENIZER, "tags", ("NOUN", "O", "VERB")).labels] == [
        [2, -1, 1], [0],
    ]  # fmt: skip
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


def test_folds_are_a_stratified_partition():
    given = [Record(str(i), "abc"[i % 7 % 3], f"file:{i}") for i in range(103)]
    folds = [fold_records(given, folds=10, fold=fold, kind="class", valid_fraction=0.1, seed=5) for fold in range(10)]
    assert sorted(r.where for parts in folds for r in parts["test"]) == sorted(r.where for r in given)
    for parts in folds:
        assert sorted(r.where for part in parts.values() for r in part) == sorted(r.where for r in given)
        assert len(parts["test"]) in (10, 11) and len(parts["valid"]) == round(0.1 * (103 - len(parts["test"])))
    for name in "abc":
        counts = [sum(r.label == name for r in parts["test"]) for parts in folds]
        assert max(counts) - min(counts) <= 1
    assert folds[3] == fold_records(given, folds=10, fold=3, kind="class", valid_fraction=0.1, seed=5)
    other = fold_records(given, folds=10, fold=3, kind="number", valid_fraction=0.0, seed=6)
    assert other["test"] != folds[3]["test"] and other["valid"] == []
    with pytest.raises(ValueError, match=r"2 examples do not make data\.folds=3"):
        fold_records(given[:2], folds=3, fold=0, kind="class", valid_fraction=0.1, seed=0)


def test_classes_that_are_numbers_or_twins():
    assert label_names([Record("a", "1", ""), Record("b", "0", ""), Record("c", "2.0", "")], "class") == (
        "0",
        "1",
        "2.0",
    )
    with pytest.raises(ValueError, match=r"file:2: label .0\.5. is a number, no class"):
        label_names([Record("a", "1", "file:1"), Record("b", "0.5", "file:2")], "class")
    with pytest.raises(ValueError, match="labels 'x' and 'x ' differ by white space alone"):
        label_names([Record("a", "x", ""), Record("b", "x ", "")], "class")


def source_of(path, kind, **options):
    given = {"text": "text", "label": "label", "valid_fraction": 0.1, "test_fraction": 0.0, "split_seed": 0}
    given |= {"tokenizer": "word", "vocab_size": 1000, "min_count": 1}
    return labelled_source(str(path), kind, **given | options)


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def size(split):
    return sum(int(batch.weights.sum()) for batch in split.batches(8, 8, False))


def test_a_rare_class_that_the_random_split_takes_away(tmp_path, capsys):
    """It counts as missed, and a line says so; another seed keeps the class in training."""
    path = written(tmp_path / "rows.jsonl", [(f"word {i}", "rare" if i == 13 else "ab"[i % 2]) for i in range(20)])
    missed = []
    for seed in range(8):
        source = source_of(path, "class", valid_fraction=0.3, test_fraction=0.2, split_seed=seed)
        printed = capsys.readouterr().out
        assert sorted(source.labels + source.unseen) == ["a", "b", "rare"]
        if source.unseen:
            missed.append(seed)
            assert re.fullmatch(
                r"(valid: 1 of 6|test: 1 of 4) rows have a label that no training example has \('rare'\): "
                "they count as missed, and the loss leaves them out\n",
                printed,
            )
        else:
            assert printed == ""
    assert 0 < len(missed) < 8


def test_labels_that_only_held_out_examples_have(tmp_path, capsys):
    """Targets count on behind the labels of training, of a run that is loaded too."""
    train = [("red", ["a"]), ("blue", ["b"]), ("gold", [])]
    written(tmp_path / "train.jsonl", train)
    written(tmp_path / "dev.jsonl", [("red", ["a", "d"]), ("blue", ["c"]), ("gold", ["a"])])
    for labels in (None, ("a", "b")):
        source = source_of(tmp_path, "classes", labels=labels)
        assert source.labels == ("a", "b") and source.unseen == ("c", "d")
        (batch,) = source.splits["valid"].batches(3, 8, False)
        assert batch.targets.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
        assert capsys.readouterr().out.startswith(
            "valid: 2 of 3 rows have a label that no training example has ('c', 'd'): they count as missed"
        )
    tags = [(["red", "blue", "gold"], ["B-X", "I-X", "O"])]
    folder = tmp_path / "tags"
    written(folder / "train.jsonl", tags)
    written(folder / "dev.jsonl", [(["red", "blue", "gold"], ["O", "B-Y", "I-Y"]), *tags])
    source = source_of(folder, "tags")
    assert source.labels + source.unseen == ("O", "B-X", "I-X", "B-Y", "I-Y")
    assert source.splits["valid"].batches(2, 3, False)[0].targets.tolist() == [[0, 3, 4], [1, 2, 0]]
    assert "valid: 2 tokens in 1 of 2 rows have" in capsys.readouterr().out
    written(folder / "dev.jsonl", [(["red", "blue"], ["NOUN", "VERB"])])
    with pytest.raises(ValueError, match=r"dev\.jsonl:1: tag '(NOUN|VERB)' is neither O nor B-TYPE"):
        source_of(folder, "tags")


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path):
    """1 and 1.0 of one file; those of training in one form and held-out ones in the other; and labels of older runs."""
    written(tmp_path / "mixed.jsonl", [("red", value) for value in (0, 1.0, 0.0, 1, "1")])
    source = source_of(tmp_path / "mixed.jsonl", "class", valid_fraction=0.0)
    (batch,) = source.splits["train"].batches(5, 8, False)
    assert source.labels == ("0", "1") and batch.targets.tolist() == [0, 1, 0, 1, 1]
    written(tmp_path / "two" / "train.jsonl", [("red", 0.0), ("blue", 1.0)])
    written(tmp_path / "two" / "dev.jsonl", [("red", 1), ("blue", 0)])
    for labels, wanted in ((None, [1, 0]), (("0", "1"), [1, 0]), (("1.0", "0.0"), [0, 1])):
        source = source_of(tmp_path / "two", "class", labels=labels)
        assert source.labels == (labels or ("0.0", "1.0")) and source.unseen == ()
        assert source.splits["valid"].batches(2, 8, False)[0].targets.tolist() == wanted
    written(tmp_path / "names.jsonl", [("red", "v2"), ("blue", "2"), ("gold", "2.0")])
    assert source_of(tmp_path / "names.jsonl", "class", valid_fraction=0.0).labels == ("2", "2.0", "v2")


def test_splits_that_are_not_there_are_taken_from_training(tmp_path):
    rows = [(f"word {i}", "ab"[i % 2]) for i in range(20)]
    for name in ("train", "test"):
        written(tmp_path / "two" / f"{name}.jsonl", rows)
    found = {name: size(split) for name, split in source_of(tmp_path / "two", "class").splits.items()}
    assert found == {"train": 18, "valid": 2, "test": 20} and list(found) == ["train", "valid", "test"]
    with pytest.raises(ValueError, match=r"data.test_fraction=0.1: '.*two' has a test split of its own"):
        source_of(tmp_path / "two", "class", test_fraction=0.1)
    for name in ("train", "dev"):
        written(tmp_path / "dev" / f"{name}.jsonl", rows)
    found = source_of(tmp_path / "dev", "class", test_fraction=0.1).splits
    assert {name: size(split) for name, split in found.items()} == {"train": 18, "valid": 20, "test": 2}


def test_several_labels_in_a_text_have_commas_between_them(tmp_path):
    (tmp_path / "rows.csv").write_text('text,label\none,"x, y"\ntwo,y\nnone,\n')
    source = source_of(tmp_path / "rows.csv", "classes", valid_fraction=0.0)
    (batch,) = source.splits["train"].batches(3, 8, False)
    assert source.labels == ("x", "y") and batch.targets.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert label_names([Record("a", ("x, y",), ""), Record("b", ("z",), "")], "classes") == ("x, y", "z")


def test_labels_that_no_task_can_use(tmp_path):
    for rows, kind, wanted in (
        ("text,label\none,x\ntwo,\n", "class", "rows.csv:3: label '' has an empty name"),
        ('text,label\none,"x,,y"\ntwo,y\n', "classes", "rows.csv:2: label 'x,,y' has an empty name"),
        (
            [("one", "x"), ("two", ["x", "y"])],
            "class",
            "rows.jsonl:2: label ['x', 'y'] is a list: use task.name=",
        ),
        ([("one", "x"), ("two", None)], "class", "rows.jsonl:2: 'label' is null"),
        (
            [("one", "x"), (["two"], ["y"])],
            "class",
            "'text' is a list of tokens, not a text: use",
        ),
    ):
        path = tmp_path / ("rows.csv" if isinstance(rows, str) else "rows.jsonl")
        path.write_text(rows) if isinstance(rows, str) else written(path, rows)
        with pytest.raises(ValueError) as caught:
            source_of(path, kind, valid_fraction=0.0)
        assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_ratings_as_numbers_and_as_signs():
    options = {"text": "text", "label": "label", "valid_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0}
    options |= {"tokenizer": "word", "vocab_size": 1000, "min_count": 2}
    numbers, signs = (labelled_source("vader", kind, **options) for kind in ("number", "class"))
    assert signs.labels == ("negative", "positive") and numbers.labels == ()
    batches = [source.splits["test"].batches(512, 40, False) for source in (numbers, signs)]
    ratings, labels = (np.concatenate([b.targets[b.weights > 0] for b in part]) for part in batches)
    assert len(ratings) == round(0.2 * 10605) and np.array_equal(ratings > 0, labels == 1)
    missed, total = numbers.splits["test"].unknown
    assert 0 < missed < total
    with pytest.raises(ValueError, match="no state is carried"):
        numbers.splits["test"].batches(8, 40, True)
