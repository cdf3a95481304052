"""The splits of a folder, and what of it is left out."""

import pytest
import tiny

from hybrid_flax.data.folders import given_splits, print_left_out, split_of
from hybrid_flax.data.readers import read_splits
from hybrid_flax.training.setup import make_setup


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} O\n")
    return str(folder)


def test_names_of_splits_are_whole_words():
    splits = {
        "train": "train wnut17train Training-set corpus.trn eng.train",
        "valid": "emerging.dev devel val_2 my_test_dev eng.testa eval",
        "test": "a.test eng.testb tst_1",
    }
    for split, names in splits.items():
        assert {split_of(name) for name in names.split()} == {split}
    assert {split_of(name) for name in ["latest", "developer_x", "interval", "trainer", "contest"]} == {None}


@pytest.mark.parametrize(
    "names",
    [
        ("eng.train.txt", "eng.testa.txt", "eng.testb.txt"),
        ("eng.train", "eng.testa", "eng.testb"),
        ("corpus.trn.conll", "corpus.dev.conll", "corpus.tst.conll"),
        ("train-en.iob", "eval-en.iob", "testing-en.iob"),
    ],
)
def test_every_file_is_a_split(names, tmp_path, capsys):
    found = read_splits(fill(tmp_path, *names), tagged=True)
    assert [found[split][0].text for split in ("train", "valid", "test")] == [(name,) for name in names]
    assert capsys.readouterr().out == ""


def test_what_is_left_out_is_named(tmp_path, capsys):
    folder = fill(
        tmp_path,
        *("train.conll", "a/b/c.conll", "notes.md", ".hidden", "x/1.txt", "x/2.txt"),
        *(f"{letter}.conll" for letter in "bcd"),
    )
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    assert list(read_splits(folder, tagged=True)) == ["train"]
    assert capsys.readouterr().out.startswith(
        f"{folder}: left out a/, b.conll, c.conll, d.conll, notes.md, x/; where that is data, data.splits="
    )
    fill(tmp_path, "0", "1")
    print_left_out(tmp_path, [tmp_path / "train.conll", tmp_path / "x" / "1.txt"])
    assert "left out 0, 1, a/, b.conll, c.conll, d.conll and 3 more; where" in capsys.readouterr().out


def test_what_folders_of_labels_leave_out(tmp_path, capsys):
    folder = fill(tmp_path, "neg/1.txt", "pos/1.txt", "pos/2.md", "raw/1.html", "vocabulary")
    assert len(read_splits(folder)["all"]) == 2
    assert "left out raw/, vocabulary, pos/2.md; where" in capsys.readouterr().out


def test_splits_can_be_named(tmp_path, capsys):
    folder = fill(tmp_path, "one.iob", "two.iob", "three.iob", "in/four.iob")
    found = read_splits(folder, tagged=True, splits="train=one.iob, train=in/four.iob,validation=two.iob")
    assert {split: [r.text for r in part] for split, part in found.items()} == {
        "train": [("one.iob",), ("in/four.iob",)],
        "valid": [("two.iob",)],
    }
    assert "left out three.iob; where" in capsys.readouterr().out
    assert given_splits("anything", "") == {}
    for splits, wanted in (
        ("train=one.iob,valid=tow.iob", "tow.iob'; nearest: "),
        ("train=one.iob,valid", "'valid' in data.splits='train=one.iob,valid' is not SPLIT=FILE with one of train, "),
        ("held=one.iob", "'held=one.iob' in data.splits="),
        ("valid=one.iob", "names no file for train, only for valid"),
        ("train=one.iob,test=one.iob", "names a file twice"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_splits(folder, tagged=True, splits=splits)
        assert wanted in str(caught.value) and "\n" not in str(caught.value)
    for path in ("vader", "hub:some/name", f"{folder}/one.iob"):
        with pytest.raises(ValueError, match=r"data\.splits='train=a' names files of a folder and data\.path='"):
            given_splits(path, "train=a")


def test_two_files_for_one_split(tmp_path):
    with pytest.raises(
        ValueError, match=r"two files for the valid split: dev\.iob, eval\.iob; data\.splits=train=FILE"
    ):
        read_splits(fill(tmp_path, "train.iob", "dev.iob", "eval.iob"), tagged=True)


@pytest.mark.parametrize("task", ["lm", "tag"])
def test_a_config_names_splits(task, tmp_path):
    for number, name in enumerate(("a.iob", "b.iob", "c.iob"), start=2):
        (tmp_path / name).write_text(f"{name} O\nx B-X\n\n" * number)
    changes = {"task__name": task, "data__mode": "windows" if task == "lm" else "padded", "model__pattern": "tanh"}
    config = tiny.tiny_config(tmp_path, data__splits="train=a.iob,valid=c.iob,test=b.iob", **changes)
    splits = make_setup(config).source.splits
    if task == "tag":
        assert {name: len(split.lengths) for name, split in splits.items()} == {"train": 2, "valid": 4, "test": 3}
    else:
        assert {name: split.unknown[1] for name, split in splits.items()} == {"train": 30, "valid": 60, "test": 45}
