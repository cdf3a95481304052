"""The Hugging Face hub as an importer: data sets by name, or local folders that `datasets` loads, as records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid_flax.data.corpora import Corpus, complete_splits, cut_documents
from hybrid_flax.data.folders import SPLIT_NAMES
from hybrid_flax.data.readers import Record, plain_text, tagged_records
from hybrid_flax.data.text_files import find_path
from hybrid_flax.errors import nearest

__all__ = ["HUB", "read_hub", "read_hub_text"]

HUB = "hub:"  # what a data.path that names a data set of the hub begins with


def read_hub(name: str, *, text: str = "text", label: str = "label", tagged: bool = False) -> dict[str, list[Record]]:
    """Records by split: "train", "valid", "test"; "all" where there is a train split alone.

    name: "NAME" or "NAME,CONFIG", of the hub or of a folder. text, label: columns; numbers of classes become their
    names. tagged: texts are lists of words, labels their tags.
    Raises ValueError in one line for what cannot be loaded, and for columns that are not there.
    """
    splits = {}
    for split, rows in _load(name).items():
        name_of = _names_of_classes(rows.features, label, f"{HUB}{name}, {split}")
        records = _records(rows, text, label, name_of, f"{HUB}{name}, {split}")
        splits[split] = tagged_records(records) if tagged else list(records)
    return splits if splits.keys() != {"train"} else {"all": splits["train"]}


def read_hub_text(
    name: str, *, text: str = "text", document: str = "file", valid_fraction: float = 0.1, test_fraction: float = 0.0
) -> Corpus:
    """The texts of a column as a corpus, every row a "file"; the fractions cut what it has not from training.

    Raises ValueError as `read_hub` does.
    """
    texts = {}
    for split, rows in _load(name).items():
        _check_columns(rows.features, (text,), f"{HUB}{name}, {split}")
        texts[split] = tuple(
            plain_text(value, text, f"{HUB}{name}, {split}, row {number}")
            for number, value in enumerate(rows[text])
            if value not in (None, "")
        )
    parts = complete_splits(texts, valid_fraction, test_fraction, f"{HUB}{name}")
    return cut_documents(parts, document, f"{HUB}{name}")


def _load(name) -> dict[str, Any]:
    """Tables by our names of splits."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"data.path={HUB}{name} needs the extra hub: pip install 'hybrid_flax[hub]'") from None
    path, _, config = name.partition(",")
    if path.startswith((".", "/", "~")):
        path = str(find_path(path))
        if not Path(path).is_dir():
            raise ValueError(f"data.path={HUB}{name}: there is no folder {path!r}")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path, config or None)
    except Exception as error:  # of the network, the hub, the files or the library, each with its own class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"data.path={HUB}{name} cannot be loaded: {reason}") from None
    found: dict[str, Any] = {}
    if unknown := [str(split) for split in loaded if str(split) not in SPLIT_NAMES]:
        print(f"{HUB}{name}: left out the splits {', '.join(unknown)}")
    for split, rows in loaded.items():
        ours = SPLIT_NAMES.get(str(split))
        if ours in found:
            raise ValueError(f"data.path={HUB}{name} has two {ours} splits: {', '.join(map(str, loaded))}")
        if ours and len(rows):
            found[ours] = rows
    if "train" not in found:
        raise ValueError(f"data.path={HUB}{name} has no train split, only {', '.join(map(str, loaded)) or 'none'}")
    return found


def _records(rows, text, label, name_of, where) -> Iterator[Record]:
    _check_columns(rows.features, (text, label), where)
    for number, (words, given) in enumerate(zip(rows[text], rows[label])):
        place = f"{where}, row {number}"
        if words is None or given is None:
            raise ValueError(f"{place}: no {text if words is None else label!r}")
        given = tuple(name_of(item, place) for item in given) if isinstance(given, list) else name_of(given, place)
        listed = isinstance(words, list)
        yield Record(
            tuple(plain_text(word, text, place) for word in words) if listed else plain_text(words, text, place),
            given,
            place,
        )


def _check_columns(features, wanted, where):
    for column in wanted:
        if column not in features:
            raise ValueError(f"{where}: no column {column!r}; {nearest(column, features)}")


def _names_of_classes(features, label, where):
    """From a value of the label column and its place to its text: the name where it is the number of a class."""
    feature = features.get(label)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if not names:
        return lambda value, place: plain_text(value, label, place)
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: column {label!r} has two classes of one name among {', '.join(names)}")
    return lambda number, place: names[number] if number >= 0 else "-1"
