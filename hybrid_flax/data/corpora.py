"""Corpora: the text a run learns from, as documents in three splits."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

DOCUMENT_KINDS = ("file", "paragraph", "line")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "devel", "development"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
EMBEDDED = {
    "shakespeare": "text without labels, for task.name=lm; others need labelled examples, such as 'vader'",
    "vader": "labelled examples, for task.name=classify or regress; lm needs text, such as 'shakespeare'",
}


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
) -> Corpus:
    r"""Reads text and splits it into training, validation and test documents.

    Args:
      path: one of
        * "shakespeare": the 42 embedded works, split by work;
        * a text file: by characters, first the training part, then validation, then test;
        * a folder with train.txt and a valid.txt or test.txt, by any of `SPLIT_NAMES`: these are the splits, and
          the fractions cut from training what is not there. They may be folders, have a name in common, as
          wiki.train.txt and wiki.test.txt, and be several; what has another name, README.txt, is left out;
        * any other folder: its *.txt files, sorted by path, at every depth, are split by characters as
          if they were one file; a file that straddles a boundary becomes two documents.
      document: what a document is: a whole "file" (or work), a "paragraph" (ended by blank lines) or a
        "line". Each keeps its own line ends, so that generated text has structure; blank ones are dropped.
      valid_fraction: the share of characters for validation, in [0, 1).
      test_fraction: the share of characters for test, in [0, 1).
      encoding: of the files; the embedded works need none.

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

    if path == "shakespeare":
        check_test_fraction(path, test_fraction, Corpus._fields)
        texts = _shakespeare()
    elif not path:
        raise ValueError("the path of the corpus is empty: give a text file, a folder or 'shakespeare'")
    elif Path(path).is_dir():
        texts = _folder(Path(path), valid_fraction, test_fraction, encoding)
    elif Path(path).exists():
        texts = split_by_characters([text_of(Path(path), encoding)], valid_fraction, test_fraction)
    else:
        raise FileNotFoundError(missing_path(Path(path), "shakespeare"))

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


def split_of(name: str) -> str | None:
    """The split that the name of a file or folder tells: "train", "valid", "test", or None.

    The last of its words that is one of `SPLIT_NAMES` counts; words are what stands between other signs than letters,
    so that latest.csv and developer_x.csv tell nothing.
    """
    return next((SPLIT_NAMES[word] for word in reversed(_words(name)) if word in SPLIT_NAMES), None)


def text_of(file: Path, encoding: str = "utf-8") -> str:
    """`read_text` of a file that is not empty; raises ValueError where it is."""
    text = read_text(file, encoding)
    if not text.strip():
        raise ValueError(f"{str(file)!r} is empty")
    return text


def read_text(file: Path, encoding: str = "utf-8") -> str:
    """The text of a file; raises ValueError with file and line for what is no text in that encoding."""
    raw = file.read_bytes()
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise ValueError(
            f"data.encoding={encoding!r} is none that Python knows, such as utf-8, latin-1, utf-16"
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{str(file)!r} is not {encoding.upper()}: byte 0x{raw[error.start]:02x} at offset {error.start}, "
            f"line {line}; data.encoding says what it is"
        ) from None
    text = text.removeprefix("\N{BYTE ORDER MARK}").replace("\r\n", "\n")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise ValueError(f"{file}:{line}: a NUL byte, which no text has; data.encoding={encoding} is perhaps wrong")
    return text


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


def _folder(folder: Path, valid_fraction: float, test_fraction: float, encoding: str) -> Corpus:
    """A folder of text: its own splits if it has them, else all its files in one sequence."""
    own = {
        split: tuple(text for part in parts for text in _texts_below(part, encoding))
        for split, parts in _parts_of_splits(folder).items()
    }
    return complete_splits(own or {"train": _texts_below(folder, encoding)}, valid_fraction, test_fraction, str(folder))


def _parts_of_splits(folder: Path) -> dict[str, list[Path]]:
    """By split, the files and folders whose names differ by the split and by numbers alone; {} if there are none.

    One of them must be for training and one for another split: a lone train.txt, or a book of that name, is as others.
    """
    series: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for part in sorted(folder.iterdir()):
        split = split_of(part.stem)
        if split and (any(part.rglob("*.txt")) if part.is_dir() else part.suffix == ".txt"):
            rest = tuple(word for word in _words(part.stem) if word not in SPLIT_NAMES)
            series.setdefault(rest, {}).setdefault(split, []).append(part)
    found: dict[str, list[Path]] = {}
    for parts in series.values():
        for split, own in parts.items() if "train" in parts and len(parts) > 1 else ():
            found.setdefault(split, []).extend(own)
    return found


def _texts_below(path: Path, encoding: str) -> tuple[str, ...]:
    """The text of a file, or of all *.txt files of a folder that are not blank."""
    if path.is_file():
        return (text_of(path, encoding),)
    files = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise ValueError(f"{str(path)!r} is a folder without any *.txt file")
    texts = tuple(text for text in (read_text(file, encoding) for file in files) if text.strip())
    if not texts:
        raise ValueError(f"{str(path)!r} has {len(files)} *.txt files, all of them empty")
    return texts


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


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


def missing_path(path: Path, embedded: str = "") -> str:
    """One line on a path that is not there, with the name that was perhaps meant; embedded: one that needs no file."""
    if embedded and str(path) in EMBEDDED:
        return f"data.path={str(path)!r} is {EMBEDDED[str(path)]}"
    message = f"no file or folder {str(path)!r}"
    siblings = [embedded] if embedded and path.parent == Path() else []
    if path.parent.is_dir():
        siblings += sorted(sibling.name for sibling in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return message + (f"; nearest: {path.parent / close[0]}" if close else "")
