"""Folders of data: which file belongs to which split, and which files are left out."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hybrid_flax.data.text_files import find_path, is_folder, parts_of

__all__ = ["NAME_THEM", "SPLIT_NAMES", "given_splits", "print_left_out", "split_of", "words_of"]

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "devel", "development", "testa", "eval"), "valid"),
    **dict.fromkeys(("test", "testing", "tst", "testb"), "test"),
}
NAME_THEM = "data.splits=train=FILE,valid=FILE,test=FILE names them"
_MOST_NAMED = 6


def split_of(name: str) -> str | None:
    """The split that the name of a file or folder tells: "train", "valid", "test", or None.

    The last of its words that is one of `SPLIT_NAMES` counts; words are what stands between other signs than letters,
    so that latest.csv and developer_x.csv tell nothing.
    """
    return next((SPLIT_NAMES[word] for word in reversed(words_of(name)) if word in SPLIT_NAMES), None)


def words_of(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def given_splits(path: str, splits: str) -> dict[str, list[Path]]:
    """The files of a folder by split, as data.splits names them: "train=a.txt,train=b.txt,valid=c.txt".

    {} where it names none. Raises ValueError in one line for what is no such text, and as `is_folder`.
    """
    if not splits:
        return {}
    folder = find_path(path)
    if not os.path.isdir(folder):
        raise ValueError(f"data.splits={splits!r} names files of a folder and data.path={path!r} is none: set it to ''")
    found: dict[str, list[Path]] = {}
    for part in splits.split(","):
        split, _, name = (word.strip() for word in part.partition("="))
        if split not in SPLIT_NAMES or not name:
            raise ValueError(f"{part!r} in data.splits={splits!r} is not SPLIT=FILE with one of train, valid, test")
        is_folder(folder / name)  # raises where it is not there
        found.setdefault(SPLIT_NAMES[split], []).append(folder / name)
    named = [file for files in found.values() for file in files]
    if len(set(named)) < len(named):
        raise ValueError(f"data.splits={splits!r} names a file twice: each stands in one split")
    if "train" not in found:
        raise ValueError(f"data.splits={splits!r} names no file for train, only for {', '.join(found)}")
    return found


def print_left_out(folder: Path, used: Iterable[Path]) -> None:
    """One line that names what of a folder is not read; nothing where all is."""
    used = set(used)
    names = _left_out(folder, used | {parent for file in used for parent in file.parents})
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    if names:
        print(f"{folder}: left out {', '.join(names[:_MOST_NAMED])}{more}; where that is data, {NAME_THEM}")


def _left_out(folder, used):
    names = [f"{part.name}/" if part.is_dir() else part.name for part in parts_of(folder) if part not in used]
    inner = (part for part in parts_of(folder) if part in used and part.is_dir())
    return names + [f"{part.name}/{name}" for part in inner for name in _left_out(part, used)]
