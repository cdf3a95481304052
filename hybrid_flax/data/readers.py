"""Readers: labelled examples from files, each with the place that an error message names.

| format | what an example is |
|---|---|
| .csv, .tsv | a row; its text and label are columns, by name (a header) or by number (no header) |
| .jsonl | a line; text and label are keys; the label of one example may be a list |
| .parquet | a row, columns by name (needs pyarrow) |
| .conll, .iob, .iob2, .bio, .bmes, .annotated | lines between blank ones: token first, tag last, or by number |
| .conllu | likewise, by number; comments, ranges and empty words are skipped |
| a folder of folders | a *.txt file; its label is the name of its folder, which may lie in one for its split |
| LABEL=FILE,LABEL=FILE | a line of a file, which has its label before it |

Numbers and booleans of .jsonl and .parquet are read as Python writes them: 1, 1.0, True.
"""

import csv
import functools
import importlib.resources
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_flax.data.folders import NAME_THEM, SPLIT_NAMES, given_splits, print_left_out, split_of
from hybrid_flax.data.tags import are_spans, parse_tag, to_bio2
from hybrid_flax.data.text_files import (
    cut_lines,
    cut_tokens,
    files_below,
    find_path,
    is_folder,
    parts_of,
    read_lines,
    regular_file,
    text_of,
)
from hybrid_flax.errors import nearest
from hybrid_flax.registration import READERS, calling

__all__ = [
    "CONLL",
    "Record",
    "check_ending",
    "endings",
    "plain_text",
    "read_column",
    "read_records",
    "read_splits",
    "register_reader",
    "tagged_records",
]

CONLL = (".conll", ".iob", ".iob2", ".bio", ".bmes", ".annotated", ".conllu")
_MOST_CHARACTERS = 1_000_000  # of one field; more is a quote that was never closed
_CURES = {
    ".json": "write one object a line, and call it .jsonl",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz"), "unpack it"),
}


class Record(NamedTuple):
    """An example as it was read.

    text: a text, or the tokens of a tagged sentence. label: a text, a list of them, or a tag for every token; None
    where none was asked for.
    where: the file and the line.
    """

    text: str | tuple[str, ...]
    label: Any
    where: str


def register_reader(ending: str, read: Callable[[Path, str, str | None, str], Iterable[Record]]) -> None:
    """Have files with this ending, such as ".toml", read by read(file, text, label, encoding) -> `Record`s.

    text, label: the values of data.text and data.label; label is None where texts alone are asked for, as by lm.
    encoding: that of data.encoding. What is wrong with a file is a ValueError that names the place.
    Raises ValueError for an ending that is no ending or taken.
    """
    if not isinstance(ending, str) or not re.fullmatch(r"\.[a-z0-9_-]+", ending):
        raise ValueError(f"{ending!r} is no ending of files, such as '.toml': a dot, small letters and digits")
    if ending in (".txt", *CONLL):
        raise ValueError(f"the ending {ending!r} is taken: such files are read as they are")
    READERS.register(ending.removeprefix("."), read, reads_options=False)


def endings() -> tuple[str, ...]:
    """The endings of tables, for which readers are registered."""
    return tuple(f".{name}" for name in READERS)


def read_splits(
    path: str,
    *,
    text: str = "text",
    label: str = "label",
    tagged: bool = False,
    encoding: str = "utf-8",
    splits: str = "",
) -> dict[str, list[Record]]:
    """Records by split: "train", "valid", "test" as the files of a folder are named, "all" where nothing says.

    path: "vader" (embedded: movie snippets with mean ratings), a file, a folder with a file for each split (as
    `split_of` its name), a folder with a folder for each label, or with folders for splits that have one for each
    label, or "LABEL=FILE,LABEL=FILE".
    tagged: read tables without a known ending, and .tsv, as CoNLL columns. encoding: of all but parquet.
    splits: the files of a folder by split, as `given_splits` reads it; "": as they are named. What is left out of a
    folder is printed.
    Raises FileNotFoundError and ValueError in one line with file and line.
    """
    options: dict[str, Any] = {"text": text, "label": label, "tagged": tagged, "encoding": encoding}
    given = given_splits(path, splits)
    if path == "vader":
        return {"all": _vader()}
    place = find_path(path)
    if "=" in path and not os.path.exists(place) and not tagged:
        return {"all": list(_files_of_labels(path, encoding))}
    if not is_folder(place, "vader"):
        return {"all": read_records(place, **options)}
    files = given or _files_of_splits(place, tagged)
    if files:
        print_left_out(place, (file for some in files.values() for file in some))
        return {split: [r for file in some for r in read_records(file, **options)] for split, some in files.items()}
    folders = _folders_of_text(place)
    if not folders:
        for file in files_below(place):
            check_ending(file)
        raise ValueError(
            f"{path!r} has neither a file named for the train split ({', '.join((*endings(), *CONLL))}) "
            f"nor a folder of *.txt files for each label; {NAME_THEM}"
        )
    print_left_out(place, (file for folder in folders for file in _text_files(folder)))
    named = {split_of(folder.name): folder for folder in folders}
    if None in named or "train" not in named:
        return {"all": _files_in_folders(folders, encoding)}
    if len(named) < len(folders):
        raise ValueError(f"{path!r} has two folders for one split: {', '.join(folder.name for folder in folders)}")
    return _splits_of_folders(named, encoding)


def read_records(
    file: Path, *, text: str = "text", label: str = "label", tagged: bool = False, encoding: str = "utf-8"
) -> list[Record]:
    """The records of one file by its ending. Raises ValueError in one line with file and line."""
    ending = regular_file(file).suffix.lower()
    check_ending(file)
    if tagged and (ending not in endings() or ending == ".tsv"):
        records = _conll(file, text, label, encoding)
    elif ending in endings():
        records = _read(file, text, label, encoding)
    else:
        raise ValueError(f"{str(file)!r}: its ending is none of {', '.join(endings())}")
    if not records:
        raise ValueError(
            f"{str(file)!r} has no examples" + (", at most a header" if ending in (".csv", ".tsv") else "")
        )
    return tagged_records(records) if tagged else records


def read_column(file: Path, text: str, encoding: str) -> list[str]:
    """The texts of a table, without their labels. Raises ValueError in one line with file and line."""
    texts = []
    for record in _read(regular_file(file), text, None, encoding):
        if not isinstance(record.text, str):
            raise ValueError(f"{record.where}: {text!r} is a list of tokens, not a text")
        texts.append(record.text)
    return texts


def check_ending(file: Path) -> None:
    """Raises ValueError for a file that holds data in a form that must be changed before it is read."""
    ending = file.suffix.lower()
    if (cure := _CURES.get(ending)) and ending not in endings():
        raise ValueError(f"{str(file)!r}: {file.suffix} is not read: {cure}")


def plain_text(value: Any, key: str, where: str) -> str:
    """A text, number or boolean of a data set as text; raises ValueError, with the place, for anything else."""
    if isinstance(value, str):
        if half := re.search("[\ud800-\udfff]", value):
            raise ValueError(f"{where}: {key!r} has half a character, the lone surrogate {half[0]!r}")
    elif value is None:
        raise ValueError(f"{where}: {key!r} is null")
    elif not isinstance(value, int | float | Decimal) or (not isinstance(value, int) and not math.isfinite(value)):
        shown = " ".join(repr(value).split())
        raise ValueError(
            f"{where}: {key!r} is {shown if len(shown) <= 40 else shown[:40] + ' ...'}, not a text or a finite number"
        )
    return str(value)


def tagged_records(records: Iterable[Record]) -> list[Record]:
    """Sentences with their tags, those of spans in BIO2; sentences without a token are left out.

    Raises ValueError, with the place of the record, for one that is not a list of tokens and as many tags.
    """
    made = []
    for record in records:
        listed = isinstance(record.text, tuple) and isinstance(record.label, tuple)
        if not listed or len(record.text) != len(record.label):
            raise ValueError(f"{record.where}: tagging needs a list of tokens and as many tags")
        if record.text:
            made.append(record)
    if not are_spans(tag for record in made for tag in record.label):
        return made
    return [record._replace(label=to_bio2(record.label, record.where)) for record in made]


def _read(file, text, label, encoding) -> list[Record]:
    """What the reader of a file's ending gives, checked."""
    entry = READERS[file.suffix.lower().removeprefix(".")]
    with calling(f"reader of {str(file)!r}", entry.make, passes=ValueError):
        records = list(entry.make(file, text, label, encoding))
    for record in records:
        if not isinstance(record, Record) or not isinstance(record.text, str | tuple):
            raise ValueError(f"{str(file)!r}: its reader gave {record!r:.80}, no Record with a text or its tokens")
        if label is not None and not isinstance(record.label, str | tuple | list):
            raise ValueError(f"{record.where}: its reader gave the label {record.label!r:.80}, no text or several")
    return records


def _files_of_labels(path, encoding) -> Iterator[Record]:
    labels = []
    for part in path.split(","):
        label, _, name = part.partition("=")
        if not label or not name:
            raise ValueError(f"{part!r} in data.path={path!r} is not LABEL=FILE")
        if label in labels:
            raise ValueError(f"label {label!r} stands twice in data.path={path!r}")
        labels.append(label)
        lines = read_lines(find_path(name), encoding)
        if not any(map(str.strip, lines)):
            raise ValueError(f"{name!r} is empty")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Record(line.strip(), label, f"{name}:{number}")


def _folders_of_text(place):
    return [part for part in parts_of(place) if part.is_dir() and _text_files(part)]


def _text_files(folder):
    return [file for file in files_below(folder) if file.suffix == ".txt"]


def _files_in_folders(folders, encoding) -> list[Record]:
    return [
        Record(text_of(file, encoding).strip(), folder.name, str(file))
        for folder in folders
        for file in _text_files(folder)
    ]


def _splits_of_folders(splits, encoding) -> dict[str, list[Record]]:
    """Records of train/LABEL/*.txt, test/LABEL/*.txt; every split must have the folders that training has."""
    names = {split: sorted(part.name for part in parts_of(folder) if part.is_dir()) for split, folder in splits.items()}
    for split, folder in splits.items():
        if not names[split] or names[split] != names["train"]:
            raise ValueError(
                f"{str(folder)!r} has the folders of labels {', '.join(names[split]) or '(none)'} and "
                f"{str(splits['train'])!r} has {', '.join(names['train']) or '(none)'}: they must be the same; "
                "move away what is no label, or make an empty folder for a label without texts"
            )
    return {split: _files_in_folders(_folders_of_text(folder), encoding) for split, folder in splits.items()}


def _files_of_splits(folder, tagged) -> dict[str, list[Path]]:
    """The file of every split; {} where none is for training. eng.testa is a file of tags, as eng.testa.txt is."""
    known = (*endings(), *CONLL, ".txt", *(f".{name}" for name in SPLIT_NAMES)) if tagged else endings()
    found: dict[str, list[Path]] = {}
    for file in parts_of(folder):
        split = split_of(file.name)
        if file.is_dir() or file.suffix.lower() not in known or not split:
            continue
        if split in found:
            raise ValueError(
                f"{str(folder)!r} has two files for the {split} split: {found[split][0].name}, {file.name}; {NAME_THEM}"
            )
        found[split] = [file]
    return found if "train" in found else {}


def _table(file, text, label, encoding, delimiter=",") -> Iterator[Record]:
    wanted = [text] if label is None else [text, label]
    by_number = all(map(str.isdecimal, wanted))
    # Tab-separated values have no quotes: a lone one in a text must not swallow the lines after it.
    lines = (f"{line}\n" for line in read_lines(file, encoding))
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
        strict=True,
    )
    width, places = None, [int(name) for name in wanted] if by_number else None
    previous = csv.field_size_limit(_MOST_CHARACTERS)
    try:
        for row in reader:
            where = f"{file}:{reader.line_num}"
            if not row:
                continue
            if places is None:
                places = _columns(row, wanted, where)
                width = len(row)
                continue
            width = width or len(row)
            if len(row) != width or max(places) >= width:
                raise ValueError(f"{where}: {len(row)} columns, not {max(width, 1 + max(places))}")
            yield Record(row[places[0]], None if label is None else row[places[1]], where)
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(previous)


def _columns(header, wanted, where):
    places = []
    for name in wanted:
        if name not in header:
            raise ValueError(
                f"{where}: no column {name!r} in the header; {nearest(name, header)}; a table without a header has "
                "numbers of columns, from 0, for data.text and data.label"
            )
        if header.count(name) > 1:
            raise ValueError(f"{where}: column {name!r} stands twice in the header")
        places.append(header.index(name))
    return places


def _json_lines(file, text, label, encoding) -> Iterator[Record]:
    for number, line in enumerate(read_lines(file, encoding), start=1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: no JSON: {error}") from None
        if not isinstance(value, dict):
            keys = " and ".join(repr(key) for key in (text, label) if key is not None)
            raise ValueError(f"{where}: {type(value).__name__}, not an object with {keys}")
        yield _record(value, text, label, where)


def _parquet(file, text, label, encoding) -> Iterator[Record]:
    del encoding  # it has its own
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{str(file)!r}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is no parquet file: {str(error).splitlines()[0]}") from None
    for number, value in enumerate(rows):
        yield _record(value, text, label, f"{file}, row {number}")


def _record(value, text, label, where):
    given = []
    for key in (text, label) if label is not None else (text,):
        if key not in value:
            raise ValueError(f"{where}: no {key!r}; {nearest(key, map(str, value))}")
        items = value[key]
        listed = isinstance(items, list)
        given.append(tuple(plain_text(v, key, where) for v in items) if listed else plain_text(items, key, where))
    return Record(given[0], given[1] if label is not None else None, where)


def _conll(file, text, label, encoding) -> list[Record]:
    """Blocks of lines with a token and its tag. A tag that is none is told by its line, so all are read before."""
    blocks = list(_blocks(file, text, label, encoding))
    lines = {tag: line for block in reversed(blocks) for line, _, tag in reversed(block)}
    for tag in lines if are_spans(lines) else ():
        parse_tag(tag, f"{file}:{lines[tag]}")
    return [
        Record(tuple(token for _, token, _ in block), tuple(tag for _, _, tag in block), f"{file}:{block[0][0]}")
        for block in blocks
    ]


def _blocks(file, text, label, encoding) -> Iterator[list[tuple[int, str, str]]]:
    """(line, token, tag) of every block; tabs separate columns where there are any, else spaces."""
    universal = file.suffix.lower() == ".conllu"
    places = [_column(file, *given, universal) for given in (("text", text, 0), ("label", label, -1))]
    block: list[tuple[int, str, str]] = []
    width = 0
    for number, line in enumerate([*read_lines(file, encoding), ""], start=1):
        if universal and re.match(r"#|\d+[-.]\d", line):
            continue
        if not line.strip() or line.startswith("-DOCSTART-"):
            if block:
                yield block
            block = []
            continue
        columns = line.split("\t") if "\t" in line else cut_tokens(line)
        width = width or len(columns)
        if len(columns) != width and len(columns) > 1:
            raise ValueError(f"{file}:{number}: {len(columns)} columns, not {width} as in the lines before")
        if max(places) >= len(columns):
            raise ValueError(
                f"{file}:{number}: {len(columns)} columns, none of which has the number {max(places)}, from 0"
            )
        token, tag = (columns[place].strip(" ") for place in places)
        if len(columns) < 2 or not token or not tag:
            raise ValueError(f"{file}:{number}: {line.strip()[:40]!r} is not a token first and a tag last")
        block.append((number, token, tag))


def _column(file, name, given, default, universal):
    """The place of a column that data.text or data.label names by its number."""
    if given.isdecimal():
        return int(given)
    if given != name:
        raise ValueError(f"{str(file)!r}: data.{name}={given!r} is no number of a column, which count from 0")
    if universal:
        raise ValueError(
            f"{str(file)!r}: data.text and data.label must be numbers of columns of CoNLL-U, counted from 0: "
            "1 is the word, 3 its universal tag, 4 that of its language"
        )
    return default


@functools.lru_cache(maxsize=1)
def _vader() -> list[Record]:
    name = "movieReviewSnippets_GroundTruth.txt"
    packed = importlib.resources.files("hybrid_flax.data").joinpath("vader.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        lines = cut_lines(archive.read(name).decode("utf-8"), name)
    rows = [line.split("\t") for line in lines if line.strip()]
    return [Record(text, rating, f"vader:{number}") for number, (_, rating, text) in enumerate(rows, start=1)]


register_reader(".csv", _table)
register_reader(".tsv", functools.partial(_table, delimiter="\t"))
register_reader(".jsonl", _json_lines)
register_reader(".parquet", _parquet)
