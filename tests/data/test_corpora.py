import json
from pathlib import Path

import engines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_flax.data.corpora import load_corpus
from hybrid_flax.data.folders import NAME_THEM


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def error_of(kind: type[Exception], *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        load_corpus(*args, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_shakespeare_is_split_by_work():
    corpus = load_corpus("shakespeare")
    assert [len(part) for part in corpus] == [38, 2, 2]
    assert [text.split("\n", 1)[0] for text in corpus.valid] == [
        "MACBETH",
        "TWELFTH NIGHT; OR, WHAT YOU WILL",
    ]
    assert [text.split("\n", 1)[0] for text in corpus.test] == ["HAMLET, PRINCE OF DENMARK", "THE TEMPEST"]
    assert corpus.train[0].startswith("ALL'S WELL THAT ENDS WELL\n")
    assert corpus.train[-1].startswith("THE WINTER'S TALE\n")
    assert len(set(sum(corpus, ()))) == 42
    assert sum(map(len, sum(corpus, ()))) == 5_057_198
    assert not any("\r" in text or "Permission is hereby granted" in text for text in sum(corpus, ()))


def test_embedded_works_are_the_originals():
    originals = sorted(engines.data_sets("shakespeare-complete").glob("works/*.txt"))
    assert sorted(sum(load_corpus("shakespeare"), ())) == sorted(file.read_text() for file in originals)


def test_tiny_shakespeare_has_its_usual_split():
    file = engines.data_sets("tinyshakespeare") / "input.txt"
    corpus = load_corpus(str(file))
    assert [sum(map(len, part)) for part in corpus] == [1_003_854, 111_540, 0]
    assert corpus.train[0] + corpus.valid[0] == file.read_text()


def test_a_folder_with_splits_keeps_them():
    folder = engines.data_sets("wikitext2")
    corpus = load_corpus(str(folder))
    assert corpus == tuple(((folder / f"{split}.txt").read_text(),) for split in corpus._fields)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("train.txt", "test.txt"), ("train.txt", None, "test.txt")),
        (("train.txt", "dev.txt"), ("train.txt", "dev.txt", "")),
        (("train.txt", "validation.txt", "test.txt", "README.txt"), ("train.txt", "validation.txt", "test.txt")),
        (("wiki.train.txt", "wiki.val.txt", "night_train.txt"), ("wiki.train.txt", "wiki.val.txt", "")),
        (("train_1.txt", "train_2.txt", "dev.txt"), ("train_1.txttrain_2.txt", "dev.txt", "")),
        (
            ("a.train.txt", "a.test.txt", "b.train.txt", "b.dev.txt"),
            ("a.train.txtb.train.txt", "b.dev.txt", "a.test.txt"),
        ),
        (("train/a.txt", "train/b/c.txt", "test/a.txt"), ("train/a.txttrain/b/c.txt", None, "test/a.txt")),
    ],
)
def test_a_folder_keeps_the_splits_that_it_has(names, wanted, tmp_path):
    """No held-out text is trained on; validation is cut from training where there is none (None)."""
    for name in names:
        write(tmp_path / name, f"{name}")
    train, valid, test = ("".join(part) for part in load_corpus(str(tmp_path), valid_fraction=0.4))
    if wanted[1] is None:
        assert valid and wanted[0] == train + valid and wanted[0].startswith(train)
    else:
        assert (train, valid) == wanted[:2]
    assert test == wanted[2]
    if test:
        assert "has a test split of its own, so set it to 0" in error_of(ValueError, str(tmp_path), test_fraction=0.1)


def test_a_folder_of_texts_has_no_splits(tmp_path):
    """Names of books are no names of splits: without a series of them all texts count."""
    for name in ("night_train.txt", "latest.txt", "the_test.txt"):
        write(tmp_path / name, name)
    assert sum(map(len, load_corpus(str(tmp_path), valid_fraction=0.0).train)) == 37


ROWS = ["a text\nof two lines\n", "another", "", "the last"]


def write_table(path: Path) -> Path:
    """A table of `ROWS` under the key "body", with other columns beside it."""
    if path.suffix == ".jsonl":
        rows = [json.dumps({"id": number, "body": row}) for number, row in enumerate(ROWS)]
        path.write_text("\n".join(rows) + "\n")
    elif path.suffix == ".csv":
        path.write_text("id,body\n" + "".join(f'{number},"{row}"\n' for number, row in enumerate(ROWS)))
    elif path.suffix == ".parquet":
        pyarrow = engines.library("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"body": ROWS, "id": list(range(len(ROWS)))}), path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_the_texts_of_a_table_are_documents(ending, tmp_path, capsys):
    """Not its braces and quotes; alone, in a folder, and as the files of splits."""
    texts = tuple(filter(None, ROWS))
    path = write_table(tmp_path / f"one{ending}")
    assert load_corpus(str(path), text="body", valid_fraction=0.0).train == texts
    assert load_corpus(str(path), text="body", document="line", valid_fraction=0.0).train[:2] == (
        "a text\n",
        "of two lines\n",
    )
    assert load_corpus(str(tmp_path), text="body", valid_fraction=0.0).train == texts
    assert "no 'text'" in (message := error_of(ValueError, str(path))) or "no column 'text'" in message
    for split in ("train", "dev"):
        write_table(tmp_path / f"{split}{ending}")
    assert load_corpus(str(tmp_path), text="body") == (texts, texts, ())
    assert capsys.readouterr().out == f"{tmp_path}: left out one{ending}; where that is data, {NAME_THEM}\n"
    write(tmp_path / "README.txt", "about the texts")
    assert load_corpus(str(tmp_path), text="body") == (texts, texts, ())
    (tmp_path / f"dev{ending}").unlink()
    assert load_corpus(str(tmp_path), text="body", valid_fraction=0.0).train == ("about the texts",)
    assert f"left out one{ending}, train{ending};" in capsys.readouterr().out


def test_tables_that_hold_no_text(tmp_path):
    assert "is a list of tokens, not a text" in error_of(
        ValueError, write(tmp_path / "a.jsonl", '{"text": ["a", "b"]}\n')
    )
    assert "b.jsonl' is empty" in error_of(ValueError, write(tmp_path / "b.jsonl", '{"text": " "}\n'))
    assert ".json is not read: write one object a line" in error_of(ValueError, write(tmp_path / "c.json", "[]"))
    assert ".gz is not read: unpack it" in error_of(ValueError, write(tmp_path / "z" / "a.jsonl.gz", b"\x1f\x8b"))
    assert "z/a.jsonl.gz': .gz is not read: unpack it" in error_of(ValueError, str(tmp_path / "z"))


def test_the_splits_of_texts_can_be_named(tmp_path, capsys):
    for name in ("a.text", "b.text", "c.text", "d.text"):
        write(tmp_path / name, name)
    splits = "train=b.text,dev=c.text,train=a.text"
    assert load_corpus(str(tmp_path), splits=splits) == (("b.text", "a.text"), ("c.text",), ())
    assert "left out d.text;" in capsys.readouterr().out
    assert "is a folder without any *.txt file" in (message := error_of(ValueError, str(tmp_path)))
    assert NAME_THEM in message
    for name in ("train.txt", "dev.txt", "valid.txt"):
        write(tmp_path / name, name)
    assert "has two files for the valid split: dev.txt, valid.txt; data.splits=" in error_of(ValueError, str(tmp_path))


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab\n é")).filter(str.strip), min_size=1, max_size=6),
    valid=st.floats(0, 0.5),
    test=st.floats(0, 0.4),
)
def test_a_folder_is_cut_by_characters_and_loses_none(tmp_path_factory, texts, valid, test):
    folder = tmp_path_factory.mktemp("folder")
    for i, text in enumerate(texts):
        write(folder / f"{i % 2}" / f"{i}.txt", text)
    write(folder / "empty.txt", "")
    write(folder / "notes.md", "not text")
    together = "".join(texts[0::2] + texts[1::2])
    train_end = int((1 - valid - test) * len(together))
    if not together[:train_end].strip():
        error_of(ValueError, str(folder), valid_fraction=valid, test_fraction=test)
        return
    corpus = load_corpus(str(folder), valid_fraction=valid, test_fraction=test)
    valid_end = max(train_end, int((1 - test) * len(together)))
    bounds = (0, train_end, valid_end, len(together))
    for part, start, end in zip(corpus, bounds, bounds[1:]):
        # Only blank documents may be missing, and they are a matter of white space.
        assert "".join("".join(part).split()) == "".join(together[start:end].split())


def test_a_file_across_a_boundary_becomes_two_documents(tmp_path):
    write(tmp_path / "a.txt", "aaaa")
    write(tmp_path / "b.txt", "bbbb")
    write(tmp_path / "c.txt", "cc")
    corpus = load_corpus(str(tmp_path), valid_fraction=0.2, test_fraction=0.2)
    assert corpus == (("aaaa", "bb"), ("bb",), ("cc",))


def test_paragraphs_and_lines_keep_their_ends(tmp_path):
    file = write(tmp_path / "a.txt", "\n\none\n two\n\n \n\n  three\n\nfour")
    paragraphs = load_corpus(file, document="paragraph", valid_fraction=0.0)
    assert paragraphs.train == ("one\n two\n\n \n\n", "  three\n\n", "four")
    assert load_corpus(file, document="line", valid_fraction=0.0).train == (
        "one\n",
        " two\n",
        "  three\n",
        "four",
    )


def test_line_ends_and_byte_order_mark_are_normalised(tmp_path):
    file = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert load_corpus(file, valid_fraction=0.0).train == ("one\ntwo\n",)


def test_running_text_may_be_one_long_line(tmp_path):
    """As that of text8, 100 MB without a line end."""
    (tmp_path / "text8").write_text("anarchism " * 300_000)
    corpus = load_corpus(str(tmp_path / "text8"), document="file", valid_fraction=0.1, test_fraction=0.0)
    assert sum(map(len, corpus.train)) == 2_700_000


def test_errors_are_one_line_that_says_what_is_wrong(tmp_path):
    good = write(tmp_path / "input.txt", "some text\n" * 10)
    assert "input.txt" in error_of(FileNotFoundError, str(tmp_path / "inptu.txt"))
    assert "nearest" not in error_of(FileNotFoundError, str(tmp_path / "nowhere" / "input.txt"))
    assert "nearest: shakespeare" in error_of(FileNotFoundError, "shakespear")
    assert "path" in error_of(ValueError, "")
    assert "'shakespeare' has a test split of its own" in error_of(ValueError, "shakespeare", test_fraction=0.1)
    assert "is labelled examples, for task.name=classify" in error_of(FileNotFoundError, "vader")

    assert "empty" in error_of(ValueError, write(tmp_path / "empty.txt", " \n"))
    write(tmp_path / "blank" / "a.txt", "")
    assert "1 *.txt" in error_of(ValueError, str(tmp_path / "blank"))
    write(tmp_path / "none" / "a.md", "1,2")
    assert "*.txt" in error_of(ValueError, str(tmp_path / "none"))

    message = error_of(ValueError, write(tmp_path / "latin.txt", "né\nun\nété".encode("latin-1")))
    assert "latin.txt" in message and "0xe9" in message and "offset 1, line 1" in message
    message = error_of(ValueError, write(tmp_path / "cut.txt", "ab\ncd\né".encode()[:-1]))
    assert "offset 6, line 3" in message

    assert "file, paragraph, line" in error_of(ValueError, good, document="word")
    assert "-0.1" in error_of(ValueError, good, valid_fraction=-0.1)
    assert "nan" in error_of(ValueError, good, test_fraction=float("nan"))
    assert "below 1" in error_of(ValueError, good, valid_fraction=0.5, test_fraction=0.5)
    assert "0.999" in error_of(ValueError, good, valid_fraction=0.999)
