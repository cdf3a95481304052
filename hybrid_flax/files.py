"""Files that are written whole or not at all, and what is read back from them."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from hybrid_flax.errors import ConfigError, one_line

__all__ = ["read_json", "reading", "write_json", "write_whole"]

T = TypeVar("T")


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file of which nobody ever sees a part, whatever ends this process; several processes may write it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: str | os.PathLike, value: Any, indent: int = 2) -> None:
    """`write_whole` of a value as JSON."""
    write_whole(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: str | os.PathLike, kind: type[T]) -> T:
    """The value in a JSON file; raises ConfigError in one line where it cannot be read or is no `kind`."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is a folder or a device")
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path} is damaged: it holds a {type(value).__name__} where a {kind.__name__} belongs")
    return value


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Raise ConfigError in one line that names the file where what it holds is not what belongs there."""
    try:
        yield
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(f"{path} is damaged: it has no {one_line(error)}") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"{path} is damaged: {one_line(error)}") from error
