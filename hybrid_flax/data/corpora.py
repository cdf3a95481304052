"""Corpora: the text a run learns from, as documents in three splits."""

from __future__ import annotations

import functools
import importlib.resources
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hybrid_flax.data.folders import NAME_THEM, SPLIT_NAMES, given_splits, print_left_out, split_of, words_of
from hybrid_flax.data.readers import check_ending, endings, read_column
from hybrid_flax.data.text_files import files_below, find_path, is_folder, parts_of, read_text

DOCUMENT_KINDS = ("file", "paragraph", "line")


class Corpus(NamedTuple):
    """The documents (texts) of each split."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


def load_corpus(
    path: str,
    *,
    document: str = "file",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    encoding: str = "utf-8",
    text: str = "text",
    splits: str = "",
) -> Corpus:
    r"""Reads text and splits it into training, validation and test documents.

    Args:
      path: one of
        * "shakespeare": the 42 embedded works, split by work;
        * a text file: by characters, first the training part, then validation, then test; a table (`endings`) is the
          texts of its rows, each a "file";
        * a folder with train.txt and a valid.txt or test.txt, by any of `SPLIT_NAMES`: these are the splits, and
          the fractions cut from training what is not there. They may be folders, have a name in common, as
          wiki.train.txt and wiki.test.txt, and be several; what has another name, README.txt, is left out;
        * any other folder: its *.txt files, sorted by path, at every depth, are split by characters as
          if they were one file; a file that straddles a boundary becomes two documents.
        Tables take the place of *.txt files where they alone are named as splits, and where there is no such file.
        What is left out of a folder is printed.
      document: what a document is: a whole "file" (or work), a "paragraph" (ended by blank lines) or a
        "line". Each keeps its own line ends, so that generated text has structure; blank ones are dropped.
      valid_fraction: the share of characters for validation, in [0, 1).
      test_fraction: the share of characters for test, in [0, 1).
      encoding: of the files; the embedded works need none.
      text: the column or key of the text in tables.
      splits: the files of a folder by split, as `given_splits` reads it; "": as they are named.

    Line ends `\r\n` become `\n` and a byte order mark is dropped before characters are counted.

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: what `read_text` refuses, no text, an unknown kind of document, or fractions that leave no
        training text, or for test where there is a test split.
    """
    if document not in DOCUMENT_KINDS:
        raise ValueError(f"unknown kind of document {document!r}: one of {', '.join(DOCUMENT_KINDS)}")
    for name, fraction in (("valid_fraction", valid_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} {fraction} is outside [0, 1)")
    if not valid_fraction + test_fraction < 1:
        raise ValueError(
            f"valid_fraction {valid_fraction} + test_fraction {test_fraction} must be below 1, "
            "or no training text is left"
        )

    given = given_splits(path, splits)
    if path == "shakespeare":
        check_test_fraction(path, test_fraction, Corpus._fields)
        texts = _shakespeare()
    else:
        place = find_path(path)
        parts = given or _parts(place)
        files = {split: [(part, _data_files(part)) for part in some] for split, some in parts.items()}
        own = {
            split: tuple(t for part, below in some for t in _texts(part, below, text, encoding))
            for split, some in files.items()
        }
        texts = complete_splits(own, valid_fraction, test_fraction, path)
        if is_folder(place):
            print_left_out(place, (file for some in files.values() for _, below in some for file in below))

    return cut_documents(
        texts, document, f"{path!r} at valid_fraction {valid_fraction} and test_fraction {test_fraction}"
    )


def cut_documents(texts: Corpus, document: str, what: str) -> Corpus:
    """Texts as documents of a kind. Raises ValueError, naming `what` they are, where none is left to train on."""
    corpus = Corpus(*(tuple(_documents(part, document)) for part in texts))
    if not corpus.train:
        raise ValueError(f"no training text is left of {what}")
    return corpus


def split_by_characters(texts: Sequence[str], valid_fraction: float, test_fraction: float) -> Corpus:
    """Cuts a sequence of texts where its first, second and third share of characters end."""
    total = sum(map(len, texts))
    train_end = int((1 - valid_fraction - test_fraction) * total)
    # max: rounding must not put the end of validation before its start.
    valid_end = max(train_end, int((1 - test_fraction) * total))
    parts = []
    for first, last in ((0, train_end), (train_end, valid_end), (valid_end, total)):
        part, start = [], 0
        for text in texts:
            part.append(text[max(first - start, 0) : max(last - start, 0)])
            start += len(text)
        parts.append(tuple(filter(None, part)))
    return Corpus(*parts)


def complete_splits(
    given: Mapping[str, tuple[str, ...]], valid_fraction: float, test_fraction: float, path: str
) -> Corpus:
    """The texts of each split that there is; the fractions cut from training what is not there."""
    check_test_fraction(path, test_fraction, given)
    held_out = {split: texts for split, texts in given.items() if split != "train"}
    cut = split_by_characters(given["train"], 0.0 if "valid" in given else valid_fraction, test_fraction)
    return cut._replace(**held_out)


def check_test_fraction(path: str, test_fraction: float, splits: Iterable[str]) -> None:
    """Raises ValueError for a fraction of data with a test split of its own."""
    if test_fraction and "test" in splits:
        raise ValueError(f"data.test_fraction={test_fraction}: {path!r} has a test split of its own, so set it to 0")


# Whole works, so that no play is half known: a tragedy and a comedy in each held-out split.
_VALID_WORKS = ("macbeth", "twelfth_night")
_TEST_WORKS = ("hamlet", "tempest")
_NOTICES = ("README.txt", "COPYING.txt")


@functools.lru_cache(maxsize=1)
def _shakespeare() -> Corpus:
    """The embedded works, sorted by name within each split."""
    packed = importlib.resources.files("hybrid_flax.data").joinpath("shakespeare.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = sorted(name for name in archive.namelist() if name not in _NOTICES)
        works = {name.removesuffix(".txt"): archive.read(name).decode("utf-8") for name in names}
    held_out = _VALID_WORKS + _TEST_WORKS
    return Corpus(
        train=tuple(text for name, text in works.items() if name not in held_out),
        valid=tuple(works[name] for name in _VALID_WORKS),
        test=tuple(works[name] for name in _TEST_WORKS),
    )


def _parts(path: Path) -> dict[str, list[Path]]:
    """By split, the files and folders whose names differ by the split and by numbers alone; else all is for training.

    One of them must be for training and one for another split: a lone train.txt, or a book of that name, is as others.
    Raises ValueError where two words name one split, so that nothing says which of them is meant.
    """
    found: dict[str, list[Path]] = {}
    for kinds in _kinds() if is_folder(path, "shakespeare") else ():
        series: dict[tuple[str, ...], dict[str, list[Path]]] = {}
        for part in parts_of(path):
            split, words = split_of(part.stem), words_of(part.stem)
            if split and any(file.suffix.lower() in kinds for file in _data_files(part)):
                rest = tuple(word for word in words if word not in SPLIT_NAMES)
                series.setdefault(rest, {}).setdefault(split, []).append(part)
        for parts in series.values():
            for split, own in parts.items() if "train" in parts and len(parts) > 1 else ():
                if len({(part.suffix, *words_of(part.stem)) for part in own}) > 1:
                    names = ", ".join(part.name for part in own)
                    raise ValueError(f"{str(path)!r} has two files for the {split} split: {names}; {NAME_THEM}")
                found.setdefault(split, []).extend(own)
        if found:
            return found
    return {"train": [path]}


def _kinds() -> tuple[tuple[str, ...], ...]:
    """The endings of files in folders: tables are read where there is no text file."""
    return (".txt",), endings()


def _data_files(path: Path) -> list[Path]:
    """A file itself; of a folder all *.txt files, or all tables where there is none."""
    if not is_folder(path):
        return [path]
    files = files_below(path)
    chosen = ([file for file in files if file.suffix.lower() in kinds] for kinds in _kinds())
    return next(filter(None, chosen), [])


def _texts(path: Path, files: Sequence[Path], text: str, encoding: str) -> list[str]:
    """The texts of a file, or of the files of a folder, that are not blank; raises ValueError where there is none."""
    if not files:
        for file in files_below(path):
            check_ending(file)
        raise ValueError(f"{str(path)!r} is a folder without any *.txt file, or {', '.join(endings())}; {NAME_THEM}")
    texts = [t for file in files for t in _texts_of_file(file, text, encoding) if t.strip()]
    if not texts:
        what = "is" if files == [path] else f"has {len(files)} *{files[0].suffix} files, all of them"
        raise ValueError(f"{str(path)!r} {what} empty")
    return texts


def _texts_of_file(file: Path, text: str, encoding: str) -> list[str]:
    check_ending(file)
    return read_column(file, text, encoding) if file.suffix.lower() in endings() else [read_text(file, encoding)]


def _documents(texts: Iterable[str], document: str) -> list[str]:
    """Texts to documents; none is blank, and together they are the texts less their blank parts."""
    if document == "paragraph":
        texts = (paragraph for text in texts for paragraph in _paragraphs(text))
    elif document == "line":
        texts = (line for text in texts for line in re.findall(r"[^\n]+\n?", text))
    return [text for text in texts if text.strip()]


def _paragraphs(text: str) -> list[str]:
    ends = [blank.end() for blank in re.finditer(r"\n\s*\n", text)] + [len(text)]
    return [text[start:end] for start, end in zip([0, *ends], ends)]
