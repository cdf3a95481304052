"""A process for cases, watched: one that hangs or dies is started again after the case that it was at."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fuzz.case import Case, Outcome

__all__ = ["Worker", "stretched"]


def stretched(seconds: float) -> float:
    """So many seconds of a machine with nothing else to do, by the clock of one that is as busy as this one now."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Worker:
    """Runs cases one by one. limit: seconds a case. command: of the process, by default `worker.py`. grace: seconds
    beyond the limit after which it is ended from outside. most: cases before a fresh process, which frees memory."""

    def __init__(
        self, room: Path, limit: float, command: list[str] | None = None, grace: float = 15.0, most: int = 300
    ):
        self._limit, self._grace, self._most = limit, grace, most
        self._command = command or [sys.executable, str(Path(__file__).with_name("worker.py")), str(room), str(limit)]
        self._process: subprocess.Popen | None = None
        self._log: Any = None
        self._count = 0

    def run(self, case: Case) -> Outcome:
        """The outcome of a case, whatever it does to the process."""
        if self._process is None or self._count == self._most:
            self._start()
        self._count += 1
        process = self._process
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        starting = 8 * self._grace if self._count == 1 else 0.0  # it imports first
        ready, _, _ = select.select([process.stdout], [], [], stretched(self._limit + starting) + self._grace)
        line = process.stdout.readline() if ready else ""
        if line:
            return Outcome(*json.loads(line))
        process.kill()
        process.wait()
        self._log.seek(0)
        log = self._log.read()
        last = re.findall(r'File ".*/(hybrid_flax/\S+)", line \d+ in (\w+)', log)
        place = " ".join(last[0]) if last else "no line of the package"
        self.close()
        if not ready or "Timeout" in log:
            return Outcome("without end", f"deaf to signals in {place}", log[-3000:])
        return Outcome("traceback", f"the process died (exit {process.returncode}) in {place}", log[-3000:])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for file in (self._process.stdout, self._log):
                file.close()
            with contextlib.suppress(BrokenPipeError):  # of what it did not read any more
                self._process.stdin.close()
            self._process = None

    def _start(self) -> None:
        self.close()
        self._count = 0
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        root = Path(__file__).parents[2]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "MPLBACKEND": "agg",
            "PYTHONUTF8": "1",
            "PYTHONPATH": str(root),
        }
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
            start_new_session=True,
        )
