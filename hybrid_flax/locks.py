"""Locks of the kernel on files: they end with the process that holds them, whatever ends it, on any machine."""

import fcntl
import math
import os
import socket
import time
from pathlib import Path

from hybrid_flax.errors import ConfigError

__all__ = ["FileLock", "is_locked"]


class FileLock:
    """An exclusive lock on a file, also over the network where the file system can.

    The file names its holder, and stays when the lock is gone: to remove it would let two processes hold two files.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._file: int | None = None

    def acquire(self, wait: float = math.inf) -> bool:
        """Whether the lock is held now. wait: seconds. Raises ConfigError in one line where it cannot be locked."""
        end = time.monotonic() + wait
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            while not _take(self._file):
                if time.monotonic() >= end:
                    self.release()
                    return False
                time.sleep(0.02)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}".ljust(80).encode() + b"\n", 0)
        except OSError as error:
            self.release()
            raise ConfigError(f"{self._path} cannot be locked: {error.strerror}") from error
        return True

    def holder(self) -> str:
        """ "process 123 on HOST": who holds the lock, or held it last."""
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return "another process"

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_locked(path: str | os.PathLike) -> bool:
    """Whether some process holds the lock on the file."""
    if not Path(path).exists():
        return False
    file = os.open(path, os.O_RDONLY)
    try:
        return not _take(file, fcntl.LOCK_SH)  # which takes no write access, and no turn of another that asks
    finally:
        os.close(file)


def _take(file, kind=fcntl.LOCK_EX):
    """Whether the lock of an open file is this one's now."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
