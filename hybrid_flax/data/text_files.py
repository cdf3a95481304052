"""Text files: the one place that opens them, decodes them and cuts them into lines, and says what it cannot read.

Only regular files are read, so that nothing is read without end.
"""

import codecs
import difflib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "EMBEDDED",
    "cut_lines",
    "cut_tokens",
    "decode_text",
    "file_versions",
    "files_below",
    "find_path",
    "is_folder",
    "parts_of",
    "read_lines",
    "read_text",
    "regular_file",
    "stream_lines",
    "text_of",
]

EMBEDDED = {
    "shakespeare": "text without labels, for task.name=lm; others need labelled examples, such as 'vader'",
    "vader": "labelled examples, for task.name=classify or regress; lm needs text, such as 'shakespeare'",
}
_LONGEST_LINE = 2_000_000  # characters; more is a file without line ends
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def find_path(name: str) -> Path:
    """The path that is meant by what the user wrote; `~` is the home folder. Raises ValueError for none."""
    if not name:
        raise ValueError("data.path is empty: give a file or a folder")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"{name!r}: no home folder is known of this user: write the whole path") from None


def is_folder(path: Path, embedded: str = "") -> bool:
    """Whether a path is a folder. Raises in one line where nothing is there, with the name that was perhaps meant.

    embedded: a data set that needs no file. Raises FileNotFoundError for what is not there, ValueError for a link
    that leads nowhere and for what may not be looked at.
    """
    return stat.S_ISDIR(_mode(path, embedded))


def regular_file(path: Path) -> Path:
    """The path itself, where it is a file; raises as `is_folder`, and ValueError for folders, pipes and devices."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise ValueError(f"{str(path)!r} is a folder, where a file is needed")
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{str(path)!r} is no regular file but {kind}: copy what is to be read into a file")
    return path


def parts_of(folder: Path) -> list[Path]:
    """Files and folders in a folder, sorted, less those that a dot hides. Raises ValueError where it is closed."""
    try:
        return sorted(part for part in folder.iterdir() if not part.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from None


def files_below(folder: Path) -> list[Path]:
    """All files of a folder at every depth, as `parts_of`; links to folders are not followed."""
    parts = parts_of(folder)
    folders = [part for part in parts if os.path.isdir(part)]
    inner = [file for part in folders if not part.is_symlink() for file in files_below(part)]
    return sorted([*inner, *(part for part in parts if part not in folders)])


def file_versions(path: str, prefix: str = "") -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file that a data.path names; () where it names none.

    prefix: what may stand before it, as before a folder of the hub.
    """
    parts = [path] if os.path.exists(os.path.expanduser(path)) else path.removeprefix(prefix).split(",")
    roots = [os.path.abspath(os.path.expanduser(name)) for name in (part.rpartition("=")[2] for part in parts) if name]
    below = (os.path.join(at, name) for root in roots for at, _, names in os.walk(root) for name in names)
    files = [file for file in [*roots, *sorted(below)] if os.path.isfile(file)]
    return tuple((file, (found := os.stat(file)).st_mtime_ns, found.st_size) for file in files)


def text_of(file: Path, encoding: str = "utf-8") -> str:
    """`read_text` of a file that is not empty; raises ValueError where it is."""
    text = read_text(file, encoding)
    if not text.strip():
        raise ValueError(f"{str(file)!r} is empty")
    return text


def read_lines(file: Path, encoding: str = "utf-8") -> list[str]:
    """`cut_lines` of `read_text`."""
    return cut_lines(read_text(file, encoding), str(file))


def read_text(file: Path, encoding: str = "utf-8") -> str:
    """`decode_text` of a regular file; raises as `regular_file` too."""
    try:
        raw = regular_file(file).read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None
    return decode_text(raw, str(file), encoding)


def decode_text(raw: bytes, name: str, encoding: str = "utf-8") -> str:
    r"""The text of bytes: a byte order mark is dropped and `\r\n` becomes `\n`.

    Raises ValueError with the name and the line for what is no text in that encoding.
    """
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise ValueError(
            f"data.encoding={encoding!r} is none that Python knows, such as utf-8, latin-1, utf-16"
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name!r} is not {encoding.upper()}: byte 0x{raw[error.start]:02x} at offset {error.start}, "
            f"line {line}; data.encoding says what it is"
        ) from None
    except UnicodeError as error:
        raise ValueError(f"{name!r} is not {encoding.upper()}: {error}") from None
    text = text.removeprefix("\N{BYTE ORDER MARK}").replace("\r\n", "\n")
    if (place := text.find("\0")) >= 0:
        raise ValueError(
            f"{name}:{_line(text, place)}: a NUL byte, which no text has; data.encoding={encoding} is perhaps wrong"
        )
    if codecs.lookup(encoding).name != "utf-8" and (half := _HALF_PAIR.search(text)):
        raise ValueError(f"{name}:{_line(text, half.start())}: {half[0]!r} is half a character (a lone surrogate)")
    return text


def cut_lines(text: str, name: str) -> list[str]:
    r"""The lines of a text that `\n` ends, and what stands behind the last; no other sign ends a line.

    Raises ValueError with the name and the line for one that is too long to be an example, and for a text whose lines
    end in `\r` alone.
    """
    if "\r" in text and "\n" not in text:
        raise ValueError(f"{name}: carriage returns alone end its lines: write line feeds instead")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"{name}:{number}: a line of {len(line):,} characters, more than {_LONGEST_LINE:,}")
    return lines


def cut_tokens(line: str) -> list[str]:
    """What stands between spaces and tabs; a no-break space is part of its token."""
    return re.findall(r"[^ \t]+", line)


def stream_lines(path: Path, longest: int) -> Iterator[tuple[str, str]]:
    """(place, line) of a UTF-8 file that is too large to be held, blank lines too.

    longest: of a line, in bytes. Raises ValueError in one line with file and line, and as `regular_file`.
    """
    try:
        file = regular_file(path).open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        for number, raw in enumerate(iter(lambda: file.readline(longest), b""), start=1):
            where = f"{path}:{number}"
            if len(raw) == longest:
                raise ValueError(f"{where}: a line of {longest:,} bytes or more, too long for this file")
            try:
                yield where, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise ValueError(f"{where}: no UTF-8: it is read as text") from None


def _line(text, place):
    return text.count("\n", 0, place) + 1


def _mode(path, embedded=""):
    try:
        return path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error, embedded) from None


def _unreadable(path: Path, error: OSError, embedded: str = "") -> Exception:
    if not isinstance(error, FileNotFoundError):
        return ValueError(f"{str(path)!r} cannot be read: {error.strerror}")
    if path.is_symlink():
        return ValueError(f"{str(path)!r} is a link to {os.readlink(path)!r}, and nothing is there")
    return FileNotFoundError(_missing(path, embedded))


def _missing(path, embedded):
    if embedded and str(path) in EMBEDDED:
        return f"data.path={str(path)!r} is {EMBEDDED[str(path)]}"
    siblings = [embedded] if embedded and path.parent == Path() else []
    if os.access(path.parent, os.R_OK) and path.parent.is_dir():
        siblings += sorted(sibling.name for sibling in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"no file or folder {str(path)!r}" + (f"; nearest: {path.parent / close[0]}" if close else "")
