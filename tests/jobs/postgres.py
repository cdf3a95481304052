"""A PostgreSQL server of this session alone, in a folder of its own, where its programs are installed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import engines

__all__ = ["server"]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of a fresh server on a socket in `folder`; skips where there is none to start."""
    engines.library("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    found = programs[-1] if programs else shutil.which("pg_ctl")
    if not found:
        engines.absent("PostgreSQL", "no pg_ctl is installed")
    found, data = Path(found), folder / "data"
    user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}  # the server refuses to be root's
    if user:
        shutil.chown(folder, **user)
        for parent in folder.parents:
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)  # pytest's own folders are closed to others

    def call(name, *arguments):
        command = [found.with_name(name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, **user, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    call("initdb", "-D", data, "-A", "trust", "-U", "worker", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    call("pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
    try:
        yield f"postgresql://worker@/postgres?host={folder}"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
