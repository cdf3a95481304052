"""Text comes from files in one way: what is no text, no file or not there is one line, and only \\n ends a line."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_flax.data import text_files
from hybrid_flax.data.corpora import load_corpus
from hybrid_flax.data.readers import read_splits
from hybrid_flax.data.text_files import (
    cut_lines,
    cut_tokens,
    decode_text,
    file_versions,
    files_below,
    find_path,
    read_lines,
    read_text,
    stream_lines,
)
from hybrid_flax.data.tokenizers import make_tokenizer
from hybrid_flax.data.vectors import read_vectors
from hybrid_flax.errors import ConfigError
from hybrid_flax.predict import read_texts

ODD = "a\u2028b\x85c\x0cd\x0be\x1cf\rg"  # what str.splitlines would cut


@given(st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])), min_size=1))
def test_lines_are_what_ends_with_a_line_feed(lines):
    text = "\n".join(lines) + "\n"
    assert cut_lines(text, "") == lines
    assert cut_lines(text + "x", "") == [*lines, "x"]


def test_lines_that_carriage_returns_alone_end(tmp_path):
    path = tmp_path / "t.conll"
    path.write_bytes(b"He O\rBerlin B-LOC\r\rShe O\r")
    with pytest.raises(ValueError, match="carriage returns alone end its lines: write line feeds instead"):
        read_splits(str(path), tagged=True)
    assert cut_lines("a\rb\n", "") == ["a\rb"]


def test_every_reader_cuts_the_same_lines(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(f"\N{BYTE ORDER MARK}{ODD}\r\n\nlast".encode())
    assert read_lines(path) == [ODD, "", "last"] and read_texts(str(path)) == [ODD, "", "last"]
    assert [record.text for record in read_splits(f"x={path}")["all"]] == [ODD, "last"]
    assert load_corpus(str(path), document="line", valid_fraction=0.0).train == (ODD + "\n", "last")
    assert [line for _, line in stream_lines(path, 99)] == [ODD, "", "last"]
    field = ODD.replace("\r", "")
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        (tmp_path / name).write_text(f"text{separator}label\n{field}{separator}x\n")
        assert [record.text for record in read_splits(str(tmp_path / name))["all"]] == [field]


def test_tokens_are_cut_at_spaces_and_tabs():
    assert cut_tokens(" 1\u00a0000\t x\u2003y  z\u3000 ") == ["1\u00a0000", "x\u2003y", "z\u3000"]
    assert cut_tokens(" \t") == []


@pytest.mark.parametrize(
    ("raw", "encoding", "wanted"),
    [
        (b"ab\ncd\n\xe9", "utf-8", "f' is not UTF-8: byte 0xe9 at offset 6, line 3; data.encoding says"),
        (b"a\nb\0", "utf-8", "f:2: a NUL byte"),
        (b"a", "klingon", "data.encoding='klingon' is none that Python knows"),
        (b"a\n+2D0-", "utf-7", "f:2: '\\ud83d' is half a character"),
        (b"xn--\xff", "punycode", "f' is not PUNYCODE"),
    ],
)
def test_what_is_no_text(raw, encoding, wanted):
    with pytest.raises(ValueError) as caught:
        decode_text(raw, "f", encoding)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    str(caught.value).encode()


def make_paths(folder):
    """Paths that are no files that can be read, and what is said of each."""
    for name in ("folder", "closed"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    return {
        "pipe": "no regular file but a pipe",
        "broken": "is a link to 'nowhere', and nothing is there",
        "loop": "cannot be read: Too many levels of symbolic links",
        "pip": "no file or folder",
        "pipe/x": "cannot be read: Not a directory",
        "n" * 300: "cannot be read: File name too long",
    } | ({"/dev/zero": "no regular file but a device"} if os.path.exists("/dev/zero") else {})


def test_paths_that_hold_no_text(tmp_path):
    """Whatever reads them says so in one line, and comes to an end."""
    tokenizer = make_tokenizer("word", ["a b"])
    cases = make_paths(tmp_path)
    readers = (
        load_corpus,
        read_splits,
        lambda path: read_splits(f"x={path}"),
        read_texts,
        lambda path: read_vectors(path, tokenizer, 2),
    )
    for name, wanted in cases.items():
        for read in readers:
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                read(str(tmp_path / name))
            assert wanted in str(caught.value) and "\n" not in str(caught.value), (name, read)
    for read in readers[2:]:
        with pytest.raises(ValueError, match="is a folder, where a file is needed"):
            read(str(tmp_path / "folder"))
    with pytest.raises(ConfigError, match="has no text"):
        (tmp_path / "blank").write_text(" \n\n")
        read_texts(str(tmp_path / "blank"))
    with pytest.raises(ValueError, match=r"^data\.path is empty"):
        read_splits("")


def test_files_and_folders_that_are_closed(tmp_path, monkeypatch):
    """Simulated, because root may read everything."""
    path = tmp_path / "t.txt"
    path.write_text("a b")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    for name, read in (("read_bytes", read_text), ("stat", read_text), ("iterdir", lambda _: files_below(tmp_path))):
        with monkeypatch.context() as patch:
            patch.setattr(text_files.Path, name, refuse)
            with pytest.raises(ValueError, match=r"' cannot be read: Permission denied$"):
                read(path)
    with monkeypatch.context() as patch:
        patch.setattr(text_files.Path, "open", refuse)
        with pytest.raises(ValueError, match=r"' cannot be read: Permission denied$"):
            list(stream_lines(path, 99))


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.txt").write_text("a 1 2\n")
    assert find_path("~/t.txt") == tmp_path / "t.txt"
    assert read_texts("~/t.txt") == ["a 1 2"] and load_corpus("~/t.txt", valid_fraction=0.0).train == ("a 1 2\n",)
    assert [record.label for record in read_splits("x=~/t.txt")["all"]] == ["x"]
    assert read_vectors("~/t.txt", make_tokenizer("word", ["a"]), 2).rows.tolist() == [[1, 2]]
    versions = file_versions("~/t.txt")
    assert versions and versions == file_versions("x=~/t.txt") == file_versions("hub:~/t.txt", "hub:")
    (tmp_path / "t.txt").write_text("a 1 2 3\n")
    assert file_versions("~/t.txt") != versions
    with pytest.raises(ValueError, match="no home folder is known"):
        find_path("~surely-no-such-user/t.txt")


def test_hidden_files_and_links_to_folders(tmp_path):
    """A link back to a folder above it is not followed, so that reading ends."""
    (tmp_path / "a").mkdir()
    for name in ("a/b.txt", ".hidden.txt", "c.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "broken.txt").symlink_to("nowhere")
    assert [str(file.relative_to(tmp_path)) for file in files_below(tmp_path)] == ["a/b.txt", "a/broken.txt", "c.txt"]
    with pytest.raises(ValueError, match=r"broken\.txt' is a link to 'nowhere'"):
        load_corpus(str(tmp_path))
