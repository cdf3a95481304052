"""Files that are written whole or not at all, and what is read back from them."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from hybrid_flax.errors import ConfigError, one_line

__all__ = ["read_json", "write_json", "write_whole"]


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


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; raises ConfigError in one line where it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error
