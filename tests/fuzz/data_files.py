"""Data files: lines and bytes of every format, and what stands where a file is wanted; read by preview and predict."""

import builtins
import contextlib
import errno
import io
import json
import os
from pathlib import Path
from unittest import mock

from fuzz.case import Case, nonsense, unknown, valid
from fuzz.judge import Action, Strategy

from hybrid_flax.cli import main

__all__ = ["DATA_FILES"]

_GOOD_JSON = '{"text": "a good film", "label": "good"}'
_LINES = {
    "jsonl": (
        (
            _GOOD_JSON,
            '{"text": "a bad film", "label": "bad", "more": [1]}',
            "",
            '{"text": "caf\\u00e9", "label": "good"}',
        ),
        (
            '{"text": NaN, "label": "good"}',
            '{"text": "x", "label": NaN}',
            '{"text": "x", "label": Infinity}',
            "{}",
            '{"text": null, "label": "good"}',
            '{"text": "x", "label": null}',
            '{"text": "x", "label": {"a": 1}}',
            '{"text": {"a": 1}, "label": "good"}',
            '{"text": "x"}',
            '{"label": "good"}',
            "null",
            "3",
            '"x"',
            "[]",
            "{",
            "x",
            '{"text": "x", "label": "good"',
            "{'text': 'x', 'label': 'good'}",
            '{"text": "\\ud800", "label": "good"}',
            '{"text": "x", "label": "\\ud800"}',
            '{"text": ["a", "b"], "label": "good"}',
            '{"text": "x", "label": ["a"]}',
            '{"text": 1e999, "label": "good"}',
            '{"text": -Infinity, "label": "good"}',
            "[" * 100000,
        ),
        (
            '{"text": "x", "label": true}',
            '{"text": "x", "label": 1}',
            '{"text": "x", "label": 1.0}',
            '{"text": 3, "label": "a"}',
            '{"text": "", "label": "good"}',
            '{"text": " ", "label": "good"}',
            '{"text": "x", "label": ""}',
            "\x00",
            '{"text": "x", "text": "y", "label": "good"}',
            '{"text": "a\\u0000b", "label": "good"}',
            "\x0c",
            "\u2028",
            '{"text": "x", "label": 123456789012345678901234567890}',
            '{"text": "' + "x" * 3000000 + '", "label": "a"}',
        ),
    ),
    "csv": (
        ("a good film,good", '"a, b",bad', '"say ""x""",good', "café,good", ""),
        ("one", "a,b,c", '"unclosed,good', 'a"b"c","x"y,good', ",,,,,,"),
        (
            "a,",
            ",good",
            ",",
            "\x00,good",
            " , ",
            "a\u2028b,good",
            "a\x0cb,good",
            '"a\nb",good',
            "x" * 2000000 + ",good",
        ),
    ),
    "tsv": (
        ("a good film\tgood", 'a "quoted film\tbad', "café\tgood"),
        ("one", "a\tb\tc"),
        ("a\t", "\tgood", "\x00\tgood", "a\u2028b\tgood", "a\x85b\tgood"),
    ),
    "conll": (
        ("He O", "Ada B-PER", "Lovelace I-PER", "", "in O", "Rome B-LOC"),
        ("He", "He O O O", "He X-PER-", "He B-", "x -PER", "a b c d"),
        ("\u00a0 O", "a\u00a0b O", "\x00 O", "-DOCSTART- O", "# x", "I-PER I-PER", "\tO", "\u2028"),
    ),
    "txt": (
        ("some words of text", "and more of them", "", "café"),
        (),
        ("\x00", "\u2028", "\ufeff", "\x0c", "x" * 300000, "日本語", "\u202e", "\x1b[31m", "[/x]"),
    ),
}
_BYTES = (
    nonsense("bytes", "ff fe 41"),
    nonsense("bytes", "c3 28"),
    nonsense("bytes", "ed a0 80"),
    nonsense("bytes", "80"),
    nonsense("bytes", "utf-16"),
    valid("bytes", "bom"),
    valid("bytes", "crlf"),
    unknown("bytes", "cr"),
    unknown("bytes", "00 00"),
    unknown("bytes", "utf-8 twice"),
)
_PLACES = (
    "folder",
    "pipe",
    "zero",
    "null",
    "nowhere",
    "broken link",
    "loop",
    "empty",
    "blanks",
    "no permission",
    "socket",
)
_HEADS = {"csv": "text,label", "tsv": "text\tlabel"}
_TASKS = {"jsonl": "classify", "csv": "classify", "tsv": "classify", "conll": "tag", "txt": "lm"}
_TREES = (
    nonsense("tree", "no train"),
    nonsense("tree", "two trains"),
    nonsense("tree", "empty folder"),
    nonsense("tree", "loop inside"),
    nonsense("tree", "pipe inside"),
    nonsense("tree", "unlike labels"),
    valid("tree", "label folders"),
    valid("tree", "splits"),
)
_PARQUET = (
    *(
        nonsense("parquet", name)
        for name in ("no parquet", "cut", "null", "nan label", "no column", "no rows", "objects")
    ),
    valid("parquet", "whole"),
)
_INPUTS = (
    valid("input", "a good film\na bad one\n"),
    valid("input", "\ufeffa good film\r\na bad one"),
    nonsense("input", ""),
    nonsense("input", " \n\t\n"),
    *(
        unknown("input", text)
        for text in ("\n\n", "a\u2028b\n", "a\x0cb\x85c\n", "\x00\n", "x " * 5000, "a\n\nb\n", "[/x]")
    ),
    *(nonsense("place", place) for place in _PLACES),
    nonsense("bytes", "ff fe 41"),
    nonsense("bytes", "utf-16"),
)


def _make(rng) -> Case:
    form = rng.choices(("lines", "place", "tree", "parquet", "input", "tag", "pairs"), (12, 4, 2, 2, 3, 1, 1))[0]
    if form == "input":
        return Case("data_files", ("input",), (rng.choice(_INPUTS),))
    if form == "tree":
        return Case("data_files", ("tree",), (rng.choice(_TREES),))
    if form == "parquet":
        return Case("data_files", ("parquet",), (rng.choice(_PARQUET),))
    ending = rng.choice(sorted(_LINES))
    if form == "place":
        return Case("data_files", (ending,), (nonsense("place", rng.choice(_PLACES)),))
    if form == "pairs":
        return Case(
            "data_files",
            ("pairs",),
            (
                nonsense(
                    "pairs",
                    rng.choice(
                        (
                            "a=nowhere.txt,b=nowhere.txt",
                            "a=,b=",
                            "=x",
                            "a={here}/folder,b={here}/folder",
                            "a=/dev/zero,b=/dev/zero",
                            "a={here}/pipe,b={here}/pipe",
                            ",,",
                            "a=b=c",
                        ),
                    ),
                ),
            ),
        )
    right, wrong, odd = _LINES[ending]
    parts = []
    made, texts = rng.choices(((valid, right), (nonsense, wrong), (unknown, odd)), (1, 6, 3))[0]
    if texts:
        parts.append(made("line", rng.choice(texts)))
    if rng.random() < 0.25:
        parts.append(rng.choice(_BYTES))
    tokenizer = rng.choice(("word", "word", "char", "byte")) if ending != "conll" else "word"
    return Case("data_files", (ending, tokenizer), tuple(parts))


def _actions(case, here, room) -> list[Action]:
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    places = [part.text for part in case.parts if part.name == "place"]
    ending, tokenizer = (*case.frame, "word")[:2]
    path = here / f"data.{'txt' if ending == 'input' else ending}"
    if ending == "tree":
        _grow(here / "tree", case.parts[0].text)
        return [_preview(here / "tree", "classify", "word", room)]
    if ending == "parquet":
        _write_parquet(here / "data.parquet", case.parts[0].text)
        return [_preview(here / "data.parquet", "classify", "word", room)]
    if ending == "pairs":
        return [_preview(case.parts[0].text.replace("{here}", str(here)), "classify", "word", room)]
    if places:
        _put(path, places[0])
    else:
        path.write_bytes(_content(case, ending))
    denied = path if places == ["no permission"] else None
    if ending == "input":
        words = ["predict", f"--workdir={room / 'runs' / 'labelled'}", f"--input={path}"]
        return [Action(lambda: _without_permission(denied, words))]
    return [_preview(path, _TASKS[ending], tokenizer, room, denied)]


def _preview(path, task: str, tokenizer: str, room: Path, denied: Path | None = None) -> Action:
    words = ["preview", f"--config={room / 'lm.py'}", f"--config.data.path={path}", f"--config.task.name={task}"]
    words += [f"--config.data.tokenizer={tokenizer}", "--config.model.pattern=lstm"]
    words += [] if task == "lm" else ["--config.data.mode=padded"]
    return Action(lambda: _without_permission(denied, words))


def _content(case, ending: str) -> bytes:
    """The good lines of a format, many times, with the case's lines in between."""
    if ending == "input":
        given = [part.text for part in case.parts if part.name == "input"]
        body = (given or ["a film\na good one\n"])[0].encode("utf-8", "surrogatepass")
    else:
        right = [line for line in _LINES[ending][0] if line or ending in ("txt", "conll")] * 12
        odd = [part.text for part in case.parts if part.name == "line"]
        lines = [*([_HEADS[ending]] if ending in _HEADS else []), *right, *odd * 4, *right]  # some for every split
        body = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    for part in case.parts:
        if part.name == "bytes":
            body = _spoil(body, part.text)
    return body


def _spoil(body: bytes, how: str) -> bytes:
    middle = body.find(b"\n", len(body) // 2) + 1
    if how == "bom":
        return b"\xef\xbb\xbf" + body
    if how == "crlf":
        return body.replace(b"\n", b"\r\n")
    if how == "cr":
        return body.replace(b"\n", b"\r")
    if how == "utf-16":
        return body.decode("utf-8", "replace").encode("utf-16")
    if how == "utf-8 twice":
        return body.decode("latin-1").encode("utf-8")
    return body[:middle] + bytes.fromhex(how) + body[middle:]


def _put(path: Path, place: str) -> None:
    """Something else where a file is wanted."""
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "socket":
        import socket

        with contextlib.closing(socket.socket(socket.AF_UNIX)) as made, contextlib.chdir(path.parent):
            made.bind(path.name)
    elif place in ("zero", "null"):
        path.symlink_to(f"/dev/{place}")
    elif place == "broken link":
        path.symlink_to("nowhere")
    elif place == "loop":
        path.symlink_to(path.name)
    elif place in ("empty", "blanks"):
        path.write_text("" if place == "empty" else " \n\n\t\n")
    elif place == "no permission":
        path.write_text(_GOOD_JSON)


def _without_permission(denied: Path | None, words: list[str]) -> int:
    """The command, for which `denied` cannot be opened: whoever tests may be root, who can."""
    if denied is None:
        return main(words)
    true_open = io.open

    def refuse(file, *args, **options):
        if isinstance(file, str | Path) and Path(file) == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return true_open(file, *args, **options)

    with mock.patch.object(io, "open", refuse), mock.patch.object(builtins, "open", refuse):
        return main(words)


def _grow(tree: Path, how: str) -> None:
    """A folder of files by split or of folders by label."""
    tree.mkdir()
    lines = "text,label\n" + "a good film,good\na bad film,bad\n" * 10

    def labels(folder: Path, names=("good", "bad")) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)
            for number in range(8):
                (folder / name / f"{number}.txt").write_text(f"a {name} film")

    if how in ("splits", "no train", "two trains"):
        names = {
            "splits": ("train", "valid"),
            "no train": ("valid", "test"),
            "two trains": ("train", "training", "valid"),
        }
        for name in names[how]:
            (tree / f"{name}.csv").write_text(lines)
    elif how == "unlike labels":
        labels(tree / "train")
        labels(tree / "test", ("good", "other"))
    elif how != "empty folder":
        labels(tree)
    if how == "loop inside":
        (tree / "good" / "loop.txt").symlink_to("loop.txt")
    if how == "pipe inside":
        os.mkfifo(tree / "good" / "pipe.txt")


def _write_parquet(path: Path, how: str) -> None:
    from pyarrow import Table, parquet

    rows = [{"text": f"a {label} film", "label": label} for label in ("good", "bad") * 15]
    if how == "null":
        rows[3]["label"] = None
    elif how == "no column":
        rows = [{"texts": row["text"], "label": row["label"]} for row in rows]
    elif how == "no rows":
        rows = []
    elif how == "nan label":
        rows = [{"text": row["text"], "label": float("nan")} for row in rows]
    elif how == "objects":
        rows = [{"text": row["text"], "label": {"a": row["label"]}} for row in rows]
    parquet.write_table(Table.from_pylist(rows), path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no parquet":
        path.write_text(json.dumps(rows))


DATA_FILES = Strategy(16, _make, _actions)
