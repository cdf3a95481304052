"""Data sets as `datasets` loads them, from folders on disk."""

import json

import engines
import pytest

datasets = engines.library("datasets")

from hybrid_flax.data.hub import read_hub, read_hub_text  # noqa: E402


@pytest.fixture(autouse=True)
def _no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def pairs(records):
    return [(record.text, record.label) for record in records]


def error_of(name, read=read_hub, **options):
    with pytest.raises(ValueError) as caught:
        read(str(name), **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_csv_and_json(tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train.csv").write_text("sentence,mood\ngood,1\nbad,0\n")
    assert pairs(read_hub(str(folder), text="sentence", label="mood")["all"]) == [("good", "1"), ("bad", "0")]
    assert "train: no column 'moods'; nearest: mood" in error_of(folder, text="sentence", label="moods")
    folder = tmp_path / "json"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": f"of {split}", "label": "x"}) + "\n")
    found = read_hub(str(folder))
    assert {split: part[0].text for split, part in found.items()} == {
        "train": "of train", "valid": "of validation", "test": "of test",
    }  # fmt: skip
    assert read_hub_text(str(folder), valid_fraction=0.5) == (("of train",), ("of validation",), ("of test",))


def test_classes_have_their_names(tmp_path):
    features = {
        "words": datasets.Sequence(datasets.Value("string")),
        "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
    }
    rows = {"words": [["a", "b"], ["c"]], "tags": [[1, 2], [0]], "text": ["t one", "t two"], "label": [1, 0]}
    folder = tmp_path / "classes"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(folder / "train.parquet")
    assert pairs(read_hub(str(folder))["all"]) == [("t one", "good"), ("t two", "bad")]
    tagged = read_hub(str(folder), text="words", label="tags", tagged=True)["all"]
    assert pairs(tagged) == [(("a", "b"), ("B-X", "I-X")), (("c",), ("O",))]
    assert tagged[1].where.endswith("train, row 1")
    assert read_hub_text(str(folder), valid_fraction=0.5, document="line").train == ("t one",)
    assert "as many tags" in error_of(folder, text="text", label="tags", tagged=True)


def test_splits_that_are_left_out_are_named(monkeypatch, capsys):
    rows = datasets.Dataset.from_dict({"text": ["a", None, ""], "label": ["x", "y", "z"]})
    loaded = {"train": rows.select([0]), "unsupervised": rows, "test": rows.select([0]), "validation": rows}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: loaded)
    assert read_hub_text("reviews") == (("a",), ("a",), ("a",))
    assert capsys.readouterr().out == "hub:reviews: left out the splits unsupervised\n"
    assert "hub:reviews, valid, row 1: no 'text'" in error_of("reviews")
    odd = datasets.Dataset.from_dict({"text": ["a"], "label": [float("nan")]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": odd})
    assert "hub:reviews, train, row 0: 'label' is nan, not a text" in error_of("reviews")


def test_what_cannot_be_loaded(tmp_path):
    assert "there is no folder" in error_of(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in error_of(tmp_path / "empty")
    assert "cannot be loaded" in error_of("surely/no-such-data-set", read=read_hub_text)
