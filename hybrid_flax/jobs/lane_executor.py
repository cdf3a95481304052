"""Trials in lanes: one process trains many as one program, or one after another where that is measured to be faster."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax

from hybrid_flax.jobs.executor import Ended, trial_environment, why
from hybrid_flax.jobs.trial import TrialFolder

__all__ = ["LanesExecutor"]

_CANCELLED = 128 + signal.SIGTERM


class LanesExecutor:
    """At most `lanes` trials at a time in one process (`lane_worker`), which ends with this one.

    lanes.log in `workdir` has what it prints, lanes.jsonl what it measured and chose. patience: seconds from the wish
    to end to SIGKILL. Should the process die, the trials that it had begun have failed, and the others go to a new one.
    """

    def __init__(self, workdir: str | os.PathLike, lanes: int = 32, patience: float = 120.0):
        self.slots = lanes
        self._workdir, self._patience = Path(workdir).absolute(), patience
        self._process: subprocess.Popen[str] | None = None
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._unsent: list[str] = []
        self._sent: set[str] = set()
        self._begun: set[str] = set()
        self._ended: dict[str, Ended] = {}

    def submit(self, folder: TrialFolder) -> str:
        job = str(folder.path.absolute())
        self._unsent.append(job)  # sent by the next poll: trials that come together become lanes together
        return job

    def poll(self, job: str) -> Ended | None:
        self._receive()
        self._send_new()
        return self._ended.pop(job, None)

    def cancel(self, job: str) -> None:
        if job in self._unsent:
            self._unsent.remove(job)
            self._ended[job] = Ended(_CANCELLED)
        else:
            self._send({"cancel": job})

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(BrokenPipeError):
                _stdin(process).close()  # which asks it to save and end
            process.wait(self._patience)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also after another Ctrl-C
            if process.poll() is None:
                process.kill()
                process.wait()

    def _receive(self):
        while not self._reports.empty():
            report = self._reports.get()
            if report is None:
                self._died()
            elif "begun" in report:
                self._begun.add(report["begun"])
            else:
                self._end(report["ended"], Ended(report["code"], report["reason"]))

    def _died(self):
        if self._process is None:  # it was closed
            return
        code = self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            _stdin(self._process).close()
        self._process = None
        cannot_start = not self._begun
        for job in list(self._sent):
            if cannot_start or job in self._begun:
                self._end(job, Ended(code, self._why(code)))
            else:
                self._sent.remove(job)
                self._unsent.append(job)

    def _end(self, job, ended):
        self._sent.discard(job)
        self._begun.discard(job)
        self._ended[job] = ended

    def _send_new(self):
        if not self._unsent:
            return
        if self._process is None:
            self._start()
        jobs, self._unsent = self._unsent, []
        self._sent.update(jobs)
        self._send({"submit": jobs})

    def _send(self, message):
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):  # it died: a report says so
                _stdin(self._process).write(json.dumps(message) + "\n")
                _stdin(self._process).flush()

    def _start(self):
        self._workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "hybrid_flax.jobs.lane_worker", str(self.slots), str(self._workdir)]
        with (self._workdir / "lanes.log").open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=trial_environment(**_cache_settings()),
                text=True,
                start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which passes it on
            )
        threading.Thread(target=_read, args=(self._process.stdout, self._reports), daemon=True).start()

    def _why(self, code):
        reason = f"the process of the lanes: {why(code, self._workdir / 'lanes.log', self._log_from)}"
        return reason + (" fewer --jobs need less" if code == -signal.SIGKILL else "")


def _stdin(process: subprocess.Popen[str]) -> Any:
    assert process.stdin is not None  # it was started with a pipe
    return process.stdin


def _read(stream, reports):
    for line in stream:
        reports.put(json.loads(line))
    stream.close()
    reports.put(None)


def _cache_settings():
    """This process's compile cache, for another."""
    settings: Any = jax.config  # its attributes are made when jax is imported
    folder = settings.jax_compilation_cache_dir
    if not folder or not settings.jax_enable_compilation_cache:
        return {}
    seconds = settings.jax_persistent_cache_min_compile_time_secs
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(seconds)}
