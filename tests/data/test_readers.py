"""Readers of labelled examples: what they give, and one line with file and line for what they cannot read."""

import json
import re

import engines
import pytest

from hybrid_flax.data.corpora import load_corpus
from hybrid_flax.data.readers import Record, read_records, read_splits, register_reader


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(path, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_splits(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def pairs(records):
    return [(record.text, record.label) for record in records]


def test_tables(tmp_path):
    rows = [("a, b", "x"), ('say "hi"', "y")]
    made = {
        "t.csv": 'label,text\nx,"a, b"\ny,"say ""hi"""\n',
        "t.tsv": 'text\tlabel\na, b\tx\nsay "hi"\ty\n',
        "t.jsonl": "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows),
    }
    for name, text in made.items():
        assert pairs(read_records(write(tmp_path, name, text))) == rows
    no_header = write(tmp_path, "n.tsv", '1\tx\ta, b\n2\ty\tlone " quote\n')
    assert pairs(read_records(no_header, text="2", label="1")) == [("a, b", "x"), ('lone " quote', "y")]
    several = write(tmp_path, "s.jsonl", '{"text": "t", "label": ["x", "y"]}\n\n')
    assert pairs(read_records(several)) == [("t", ("x", "y"))]
    assert read_records(several)[0].where.endswith("s.jsonl:1")


def test_parquet(tmp_path):
    pyarrow = engines.library("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 0]}), path)
    assert pairs(read_records(path)) == [("a", "1"), ("b", "0")]


def test_conll(tmp_path):
    text = "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\n\n\nEkeus NNP I-NP I-PER\n"
    found = read_records(write(tmp_path, "train.conll", text), tagged=True)
    assert pairs(found) == [(("U.N.", "official"), ("B-ORG", "O")), (("Ekeus",), ("B-PER",))]
    assert [record.where.rpartition(":")[2] for record in found] == ["3", "7"]
    tokens = write(tmp_path, "t.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "B-X"]}\n')
    assert pairs(read_records(tokens, text="tokens", label="tags", tagged=True)) == [(("a", "b"), ("O", "B-X"))]


def test_plain_tags_and_columns_by_number(tmp_path):
    """Parts of speech are tags as they stand, also where one of a sentence looks like nothing else."""
    text = "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\n\n( -LRB- O O\n"
    path = write(tmp_path, "train.conll", text)
    assert pairs(read_records(path, label="1", tagged=True)) == [
        (("U.N.", "official"), ("NNP", "NN")), (("(",), ("-LRB-",)),
    ]  # fmt: skip
    assert pairs(read_records(path, text="1", label="2", tagged=True))[0] == (("NNP", "NN"), ("B-NP", "I-NP"))
    message = error_of(path, label="4", tagged=True)
    assert "train.conll:3: 4 columns, none of which has the number 4, from 0" in message
    assert "data.label='pos' is no number of a column, which count from 0" in error_of(path, label="pos", tagged=True)
    words = write(tmp_path, "t.jsonl", '{"text": ["a", "b"], "label": ["DET", "NOUN"]}\n')
    assert pairs(read_records(words, tagged=True)) == [(("a", "b"), ("DET", "NOUN"))]


def test_universal_dependencies(tmp_path):
    """Comments, the ranges of contracted words and words that are not there are no tokens; # itself may be one."""
    lines = [
        "# text = al # .",
        "1-2 al _ _",
        "1 a el ADP",
        "2 el el DET",
        "2.1 x x VERB",
        "3 # # SYM",
        "4 New_York . PROPN",
    ]
    text = "\n".join("\t".join(line.split()) if line[0] != "#" else line for line in lines).replace("_York", " York")
    path = write(tmp_path, "xx-ud-train.conllu", f"{text}\n\n# newpar\n{text}\n")
    found = read_splits(str(tmp_path), text="1", label="3", tagged=True)["train"]
    assert pairs(found) == [(("a", "el", "#", "New York"), ("ADP", "DET", "SYM", "PROPN"))] * 2
    assert found[1].where.endswith(f"{path.name}:12")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_tags_of_tables_become_bio2(ending, tmp_path):
    rows = [(["a", "b", "c"], ["I-X", "O", "S-Y"]), ([], []), (["d", "e"], ["B-X", "E-X"])]
    path = write(tmp_path, f"train{ending}", b"".join(b'{"text": %s, "label": %s}\n' % _json(*row) for row in rows))
    if ending == ".parquet":
        pyarrow = engines.library("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(dict(zip(("text", "label"), map(list, zip(*rows))))), path)
    found = pairs(read_records(path, tagged=True))
    assert found == [(("a", "b", "c"), ("B-X", "O", "B-Y")), (("d", "e"), ("B-X", "I-X"))]


def _json(*values):
    return tuple(json.dumps(value).encode() for value in values)


def test_what_is_no_tagged_sentence(tmp_path):
    good = '{"text": ["a"], "label": ["B-X"]}\n'
    for bad, wanted in (
        ('{"text": ["a"], "label": 5}', "as many tags"),
        ('{"text": ["a"], "label": "O"}', "as many tags"),
        ('{"text": "a", "label": ["O"]}', "as many tags"),
        ('{"text": ["a"], "label": ["X-Y"]}', "tag 'X-Y' is neither"),
    ):
        message = error_of(write(tmp_path, "t.jsonl", good + bad), tagged=True)
        assert "t.jsonl:2: " in message and wanted in message


def test_folders(tmp_path):
    for name in ("wnut17train.csv", "emerging.dev.csv", "emerging.test.csv", "notes.csv"):
        write(tmp_path, f"splits/{name}", f"text,label\n{name},x\n")
    found = read_splits(str(tmp_path / "splits"))
    assert {split: part[0].text for split, part in found.items()} == {
        "train": "wnut17train.csv", "valid": "emerging.dev.csv", "test": "emerging.test.csv",
    }  # fmt: skip
    for label, text in (("neg", "bad\n"), ("pos", "good\n"), ("pos", "fine\n")):
        write(tmp_path, f"labels/{label}/{text.strip()}.txt", text)
    found = read_splits(str(tmp_path / "labels"))
    assert pairs(found["all"]) == [("bad", "neg"), ("fine", "pos"), ("good", "pos")]


def test_only_whole_words_name_a_split(tmp_path):
    for name in ("train.csv", "latest.csv", "developer_x.csv", "contest-2.csv"):
        write(tmp_path, name, f"text,label\n{name},x\n")
    assert list(read_splits(str(tmp_path))) == ["train"]


def test_folders_of_labels_by_split(tmp_path):
    """The layout of the IMDB reviews: no review for testing is trained on."""
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            write(tmp_path, f"{split}/{label}/0_1.txt", f"{split} {label}\n")
    found = read_splits(str(tmp_path))
    assert {split: pairs(part) for split, part in found.items()} == {
        split: [(f"{split} {label}", label) for label in ("neg", "pos")] for split in ("train", "test")
    }
    write(tmp_path, "train/unsup/0_0.txt", "no label")
    message = error_of(tmp_path)
    assert "test' has the folders of labels neg, pos and" in message and "train' has neg, pos, unsup" in message
    (tmp_path / "test" / "unsup").mkdir()
    assert len(read_splits(str(tmp_path))["train"]) == 3
    write(tmp_path, "testing/neg/a.txt", "a")
    assert "two folders for one split: test, testing, train" in error_of(tmp_path)
    for label in ("train", "tram"):  # vehicles
        write(tmp_path, f"vehicles/{label}/a.txt", label)
    assert pairs(read_splits(str(tmp_path / "vehicles"))["all"]) == [("train", "train"), ("tram", "tram")]


def test_embedded_ratings():
    records = read_splits("vader")["all"]
    assert len(records) == 10605 and records[-1].label == "-1.8125" and records[0].text.startswith("The Rock")


def test_what_cannot_be_read(tmp_path):
    cases = {
        "a.csv": (b"text,label\ngood,x\nbad \xff,y\n", "line 3"),
        "b.csv": ("text,label\ngood,x\nonly one\n", "b.csv:3: 1 columns, not 2"),
        "c.csv": ("texts,label\ngood,x\n", "c.csv:1: no column 'text' in the header; nearest: texts"),
        "d.csv": ("text,label\n", "no examples"),
        "e.csv": ("", "no examples"),
        "f.csv": ('text,label\n"never closed,x\n' + "word " * 300_000, "f.csv:3: field larger"),
        "l.csv": ("text,label,text\ngood,x,y\n", "l.csv:1: column 'text' stands twice"),
        "m.csv": (b"text,label\ngood\0,x\n", "m.csv:2: a NUL byte"),
        "g.jsonl": ('{"text": "a", "label": "x"}\nnot json\n', "g.jsonl:2: no JSON"),
        "h.jsonl": ('{"text": "a", "labels": "x"}\n', "h.jsonl:1: no 'label'; nearest: labels"),
        "i.jsonl": ("[1]\n", "i.jsonl:1: list"),
        "j.xml": ("<a/>", "its ending is none of .csv"),
        "k.parquet": ("nothing", "parquet"),
    }
    for name, (text, wanted) in cases.items():
        assert wanted in error_of(write(tmp_path, name, text)), name
    tagged = {
        "l.conll": ("a O\nb\n", "l.conll:2: 'b' is not a token first and a tag last"),
        "o.conll": ("a x O\nb O\n", "o.conll:2: 2 columns, not 3"),
        "p.conll": ("a O\n\nb O\nc X-Y\n", "p.conll:4: tag 'X-Y'"),
        "m.conll": ("a X\n\nb O\nc B-Y\n", "m.conll:1: tag 'X'"),
        "t.conll": ("a O\nb b-per\n", "t.conll:2: tag 'b-per'"),
        "u.conllu": (
            "1\ta\tX\n",
            "data.text and data.label must be numbers of columns of CoNLL-U, counted from 0: 1 is",
        ),
        "q.conll": ("\tO\n", "q.conll:1: 'O' is not"),
        "r.conll": ("\n\n", "no examples"),
        "s.conll": (b"a O\nb\0 O\n", "s.conll:2: a NUL byte"),
    }
    for name, (text, wanted) in tagged.items():
        assert wanted in error_of(write(tmp_path, name, text), tagged=True), name
    assert "as many tags" in error_of(write(tmp_path, "n.jsonl", '{"text": ["a"], "label": ["O", "O"]}\n'), tagged=True)
    assert "nearest: " in error_of(tmp_path / "a.cvs")
    assert "data.path='shakespeare' is text without labels, for task.name=lm" in error_of("shakespeare")
    assert "nearest: vader" in error_of("vadr")
    assert "nor a folder" in error_of(tmp_path)
    for name in ("train.csv", "training.csv"):
        write(tmp_path, f"two/{name}", "text,label\na,x\n")
    assert "two files for the train split" in error_of(tmp_path / "two")


def test_what_stands_for_a_text_in_json(tmp_path):
    """Numbers and booleans have a meaning, and whatever else is refused with its line, in lists too."""
    good = '{"text": "a", "label": "x"}\n'
    rows = "".join(f'{{"text": "a", "label": {value}}}\n' for value in ("1", "1.0", "true", "-2.5", '["x", 2]'))
    labels = [label for _, label in pairs(read_records(write(tmp_path, "g.jsonl", rows)))]
    assert labels == ["1", "1.0", "True", "-2.5", ("x", "2")]
    for value, wanted in (
        ("NaN", "is nan, not a text or a finite number"),
        ("-Infinity", "is -inf, not a text or a finite number"),
        ("1e999", "is inf, not a text or a finite number"),
        ("null", "is null"),
        ('{"name": "x"}', "is {'name': 'x'}, not a text or a finite number"),
        ('["x", [1]]', "is [1], not a text or a finite number"),
        ('["x", null]', "is null"),
        ('"cut \\ud83d"', "has half a character, the lone surrogate '\\ud83d'"),
        ('["\\udc00"]', "has half a character, the lone surrogate '\\udc00'"),
    ):
        for key, row in (("label", f'"text": "a", "label": {value}'), ("text", f'"text": {value}, "label": "x"')):
            message = error_of(write(tmp_path, "b.jsonl", f"{good}{{{row}}}\n"))
            assert message.startswith(f"{tmp_path}/b.jsonl:2: {key!r} {wanted}") and message.encode()
    assert "b.jsonl:1: no JSON: " in error_of(write(tmp_path, "b.jsonl", "[" * 100_000))
    whole = write(tmp_path, "w.jsonl", '{"text": "\\ud83d\\ude00", "label": "x"}\n')
    assert pairs(read_records(whole)) == [("\U0001f600", "x")]


def test_parquet_of_other_types(tmp_path):
    pyarrow = engines.library("pyarrow")
    from pyarrow import parquet

    for label, wanted in (([b"x"], "is b'x', not a text"), ([float("nan")], "is nan, not a text"), ([None], "is null")):
        parquet.write_table(pyarrow.table({"text": ["a"], "label": label}), tmp_path / "t.parquet")
        assert f"t.parquet, row 0: 'label' {wanted}" in error_of(tmp_path / "t.parquet")


def test_columns_are_cut_at_spaces_and_tabs(tmp_path):
    """A no-break space belongs to its token, wherever it stands in it."""
    rows = [("1\u00a0000", "O"), ("\u00a0", "O"), ("x\u2003", "B-X"), ("\u3000y", "I-X")]
    for separator in (" ", "\t", "   "):
        text = "".join(f"{token}{separator}{tag}\n" for token, tag in rows)
        assert pairs(read_records(write(tmp_path, "t.tsv", text), tagged=True)) == [tuple(zip(*rows))]


def test_forms_that_must_be_changed_first(tmp_path):
    write(tmp_path, "d/records.json", "[]")
    for path in (tmp_path / "d", tmp_path / "d" / "records.json"):
        assert "records.json': .json is not read: write one object a line, and call it .jsonl" in error_of(path)
    assert "unpack it" in error_of(write(tmp_path, "t.csv.gz", b"\x1f\x8b"))
    no_header = write(tmp_path, "n.tsv", "0\ta text\n1\tanother\n")
    assert "n.tsv:1: no column 'text' in the header" in (message := error_of(no_header))
    assert "a table without a header has numbers of columns, from 0, for data.text and data.label" in message


def test_a_file_for_each_label(tmp_path):
    bad = write(tmp_path, "rt.neg", b"bad\n\n worse \n")
    good = write(tmp_path, "rt.pos", "d\u00e9j\u00e0 vu\r\n".encode("latin-1"))
    found = read_splits(f"neg={bad},pos={good}", encoding="latin-1")["all"]
    assert pairs(found) == [("bad", "neg"), ("worse", "neg"), ("d\u00e9j\u00e0 vu", "pos")]
    assert [record.where.rpartition(":")[2] for record in found] == ["1", "3", "1"]
    assert "is not UTF-8: byte 0xe9 at offset 1, line 1" in error_of(f"neg={bad},pos={good}")
    assert "label 'neg' stands twice" in error_of(f"neg={bad},neg={bad}")
    assert "is not LABEL=FILE" in error_of(f"neg={bad},{good}")
    assert "nearest: " in error_of(f"neg={tmp_path}/rt.ne")
    assert "data.encoding='latin' is none" not in error_of(f"neg={bad},pos={good}", encoding="ascii")
    assert "data.encoding='klingon' is none that Python knows" in error_of(f"neg={bad}", encoding="klingon")
    assert "is empty" in error_of(f"neg={write(tmp_path, 'none', '')}")


def test_marks_and_line_ends_of_other_systems(tmp_path):
    table = "\N{BYTE ORDER MARK}text,label\r\na,x\r\n"
    assert pairs(read_records(write(tmp_path, "t.csv", table))) == [("a", "x")]
    wide = write(tmp_path, "w.csv", "text,label\r\nd\u00e9j\u00e0,x\r\n".encode("utf-16"))
    assert pairs(read_records(wide, encoding="utf-16")) == [("d\u00e9j\u00e0", "x")]
    words = "\N{BYTE ORDER MARK}EU B-ORG\r\n\r\nthe\tDT\tO\r\n"
    assert "2 columns" not in error_of(write(tmp_path, "w.conll", words), tagged=True)
    line = write(tmp_path, "u.jsonl", '{"text": "a\u2028b", "label": "x"}\n')
    assert pairs(read_records(line)) == [("a\u2028b", "x")]


@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.tsv", "l.jsonl", "l.conll"])
def test_a_line_of_ten_million_characters(name, tmp_path):
    path = write(tmp_path, name, "text,label\n" + "a" * 10_000_000)
    spec = f"x={path}" if name == "l.txt" else path
    assert f"{name}:2: a line of 10,000,000 characters, more than 2,000,000" in error_of(spec, tagged="conll" in name)


def test_a_reader_of_ones_own(tmp_path):
    """For labelled records and for texts, as a file and in a folder of splits, also of an ending that others refuse."""

    def read(file, text, label, encoding):
        for number, line in enumerate(file.read_text(encoding).splitlines(), start=1):
            left, _, right = line.partition("|")
            yield Record(left, None if label is None else right, f"{file}:{number}")

    for ending in (".bar", ".json"):
        register_reader(ending, read)
        file = write(tmp_path, f"a{ending}", "one|x\ntwo|y\n")
        assert pairs(read_records(file)) == [("one", "x"), ("two", "y")]
        assert load_corpus(str(file), valid_fraction=0.0).train == ("one", "two")
    for split in ("train", "valid", "test"):
        write(tmp_path, f"folder/{split}.bar", f"{split} one|x\n{split} two|y\n")
    assert {split: len(part) for split, part in read_splits(str(tmp_path / "folder")).items()} == {
        "train": 2,
        "valid": 2,
        "test": 2,
    }
    assert load_corpus(str(tmp_path / "folder")).test == ("test one", "test two")


@pytest.mark.parametrize(
    ("give", "wanted"),
    [
        (lambda *a: [1], "its reader gave 1, no Record with a text or its tokens"),
        (lambda *a: [Record("a", 3, "here:1")], "here:1: its reader gave the label 3, no text or several"),
        (lambda *a: {}["missing"], r"reader of '.*a.bar' \(.*\) fails: KeyError: missing \(.*test_readers.py, line"),
        (lambda *a: int("here:7 is no number"), "here:7 is no number"),
        (lambda *a: [], "has no examples"),
    ],
)
def test_what_a_reader_gives_is_checked(tmp_path, give, wanted):
    register_reader(".bar", give)
    assert re.search(wanted, error_of(write(tmp_path, "a.bar", "")))


@pytest.mark.parametrize("ending", ["bar", ".", ".a.b", ".Bar", "", ".txt", ".conll"])
def test_endings_that_cannot_be(ending):
    with pytest.raises(ValueError, match=r"is no ending of files|is taken"):
        register_reader(ending, lambda *a: [])
    with pytest.raises(ValueError, match=r"reader 'csv' is already registered for hybrid_flax.data.readers._table"):
        register_reader(".csv", lambda *a: [])
