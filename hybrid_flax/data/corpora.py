"""Corpora: the text a run learns from, as documents in three splits."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

DOCUMENT_KINDS = ("file", "paragraph", "line")


class Corpus(NamedTuple):
    """The documents (texts) of each split."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


def load_corpus(
    path: str, *, document: str = "file", valid_fraction: float = 0.1, test_fraction: float = 0.0
) -> Corpus:
    r"""Reads UTF-8 text and splits it into training, validation and test documents.

    Args:
      path: one of
        * "shakespeare": the 42 embedded works, split by work (the fractions do not apply);
        * a text file: by characters, first the training part, then validation, then test;
        * a folder with train.txt and valid.txt, perhaps test.txt: these are the splits;
        * any other folder: its *.txt files, sorted by path, at every depth, are split by characters as
          if they were one file; a file that straddles a boundary becomes two documents.
      document: what a document is: a whole "file" (or work), a "paragraph" (ended by blank lines) or a
        "line". Each keeps its own line ends, so that generated text has structure; blank ones are dropped.
      valid_fraction: the share of characters for validation, in [0, 1).
      test_fraction: the share of characters for test, in [0, 1).

    Line ends `\r\n` become `\n` and a byte order mark is dropped before characters are counted.

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: no text, not UTF-8, an unknown kind of document, or fractions that leave no training text.
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

    if path == "shakespeare":
        texts = _shakespeare()
    elif not path:
        raise ValueError("the path of the corpus is empty: give a text file, a folder or 'shakespeare'")
    elif Path(path).is_dir():
        texts = _folder(Path(path), valid_fraction, test_fraction)
    elif Path(path).exists():
        texts = _split_by_characters([_text_of(Path(path))], valid_fraction, test_fraction)
    else:
        raise FileNotFoundError(missing_path(Path(path)))

    corpus = Corpus(*(tuple(_documents(part, document)) for part in texts))
    if not corpus.train:
        raise ValueError(
            f"no training text is left of {path!r} at valid_fraction {valid_fraction} and test_fraction {test_fraction}"
        )
    return corpus


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


def _folder(folder: Path, valid_fraction: float, test_fraction: float) -> Corpus:
    """A folder of text: its own three splits if it has them, else all its files in one sequence."""
    train, valid, test = (folder / f"{split}.txt" for split in Corpus._fields)
    if train.is_file() and valid.is_file():
        return Corpus((_text_of(train),), (_text_of(valid),), (_text_of(test),) if test.is_file() else ())
    files = sorted(file for file in folder.rglob("*.txt") if file.is_file())
    if not files:
        raise ValueError(f"{str(folder)!r} is a folder without any *.txt file")
    texts = [text for text in map(read_text, files) if text.strip()]
    if not texts:
        raise ValueError(f"{str(folder)!r} has {len(files)} *.txt files, all of them empty")
    return _split_by_characters(texts, valid_fraction, test_fraction)


def _split_by_characters(texts: list[str], valid_fraction: float, test_fraction: float) -> Corpus:
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


def _text_of(file: Path) -> str:
    text = read_text(file)
    if not text.strip():
        raise ValueError(f"{str(file)!r} is empty")
    return text


def read_text(file: Path) -> str:
    """The text of a UTF-8 file; raises ValueError with file and line where it is not."""
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{str(file)!r} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}, line {line}"
        ) from None
    return text.removeprefix("\N{BYTE ORDER MARK}").replace("\r\n", "\n")


def missing_path(path: Path) -> str:
    """One line on a path that is not there, with the name that was perhaps meant."""
    message = f"no file or folder {str(path)!r}"
    siblings = ["shakespeare"] if path.parent == Path() else []
    if path.parent.is_dir():
        siblings += sorted(sibling.name for sibling in path.parent.iterdir())
    if nearest := difflib.get_close_matches(path.name, siblings, n=1):
        message += f": did you mean {str(path.parent / nearest[0])!r}?"
    return message
