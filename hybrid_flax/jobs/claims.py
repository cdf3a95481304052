"""Who works on what: claims that end with the process that holds them, whatever ends it."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.locks import FileLock

__all__ = ["Claims", "FileClaims", "PostgresClaims"]


@runtime_checkable
class Claims(Protocol):
    """Claims of the workers of one study. What a worker holds is free the moment that it ends or is killed."""

    def take(self, name: str) -> bool:
        """Claim `name`, or say that another worker has it."""

    def release(self, name: str) -> None:
        """Give a claim back."""

    def exclusive(self) -> Any:
        """Context in which no other worker of the study is; waits for it."""

    def close(self) -> None:
        """Give all back."""


class FileClaims:
    """Claims of processes that share a file system: a locked file each, under `folder`."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)
        self._held: dict[str, FileLock] = {}

    def take(self, name: str) -> bool:
        lock = FileLock(self._folder / name)
        if name in self._held or not lock.acquire(wait=0.0):
            return False
        self._held[name] = lock
        return True

    def release(self, name: str) -> None:
        self._held.pop(name).release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        lock = FileLock(self._folder / "study")
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def close(self) -> None:
        for name in list(self._held):
            self.release(name)


class PostgresClaims:
    """Claims of processes that share a PostgreSQL server: advisory locks of a session, which end with it.

    A pooler must not share the session among clients. Raises ConfigError in one line where the server does not answer.
    """

    def __init__(self, url: str, study: str):
        import psycopg

        self._errors, self._study = psycopg.Error, study
        # The server notices within two minutes that a machine is gone.
        keepalive = "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=15 -c tcp_keepalives_count=4"
        try:
            self._session = psycopg.connect(url, autocommit=True, connect_timeout=15, options=keepalive)
        except psycopg.Error as error:
            raise ConfigError(f"--storage does not answer: {one_line(error)}") from error
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        if name in self._held or not self._ask("SELECT pg_try_advisory_lock(%s)", name):
            return False
        self._held.add(name)
        return True

    def release(self, name: str) -> None:
        self._held.remove(name)
        self._ask("SELECT pg_advisory_unlock(%s)", name)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self._ask("SELECT pg_advisory_lock(%s)", "study")
        try:
            yield
        finally:
            self._ask("SELECT pg_advisory_unlock(%s)", "study")

    def close(self) -> None:
        with contextlib.suppress(self._errors):  # at once, not when the server has seen the session end
            self._session.execute("SELECT pg_advisory_unlock_all()")
        self._session.close()
        self._held.clear()

    def _ask(self, query, name):
        digest = hashlib.sha256(f"hybrid_flax/{self._study}/{name}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        try:
            row = self._session.execute(query, (key,)).fetchone()
        except self._errors as error:
            raise ConfigError(f"--storage is lost, and with it the claims: {one_line(error)}") from error
        assert row is not None  # a function of SQL gives one row
        return row[0]
